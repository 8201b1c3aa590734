"""Every example from its first line to its last: as a program, under torchrun, as two processes, in parts."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from minirlhf.jobs import opened

from .conftest import small_task

MEASURES = {"gold_reward", "model_reward", "grammatical", "length", "distinct_2"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
EXAMPLES = os.path.join(os.path.dirname(__file__), "..", "..", "examples")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def torchrun(folder, *words):
    """Start torchrun in a folder -> its process."""
    command, env = [sys.executable, "-m", "torch.distributed.run", *map(str, words)], os.environ | ONE_THREAD
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def programs(forks, inputs, tmp_path_factory):
    """name -> (working folder, output) of two ways to start the main job, run side by side."""
    settings = ["--config", inputs / "ppo.toml", "--data", inputs / "pairs.jsonl"]
    one, two = (tmp_path_factory.mktemp(name) for name in ("python", "two"))
    process = torchrun(two, "--standalone", "--nproc_per_node", "2", f"{EXAMPLES}/ppo.py", *settings)
    shutil.copy(f"{EXAMPLES}/ppo.py", one / "mine.py")  # a copy elsewhere
    with contextlib.chdir(one):
        (done,) = forks.run(["mine.py", *settings], env=[ONE_THREAD])
    results = {"python": (one, done.stderr + done.stdout), "two": (two, process.communicate(timeout=240)[0])}
    assert (done.returncode, process.returncode) == (0, 0), results
    return results


def test_the_whole_job_runs_as_a_program_into_a_fresh_folder_with_all_its_stages(programs):
    cwd, output = programs["python"]
    folder = cwd / "runs" / "ppo-001"
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer",
        "sft",
        "reward",
        "ppo",
        "inputs.json",
        "stages.json",
        "summary.json",
        "page.html",
    }
    planned = json.loads((folder / "stages.json").read_text())
    assert list(planned) == ["sft", "reward", "ppo"] and all(seconds > 0 for seconds in planned.values())
    for stage, steps in (("sft", 4), ("reward", 4), ("ppo", 2)):
        names = {path.name for path in (folder / stage).iterdir()}
        assert names >= {"config.toml", "metrics.jsonl", "timings.jsonl", "log.txt", "checkpoints", "model"}
        assert len((folder / stage / "metrics.jsonl").read_text().splitlines()) == steps
    for text in ("before PPO", "after PPO", "KL to the reference", "distinct-2", "preference rows from", "parameters"):
        assert text in output
    assert output.count("prompt  ") == 1 and "ppo-001" in output.splitlines()[-1]
    assert output.count("stages: sft -> reward -> ppo; results in runs/ppo-001") == 1
    assert re.search(r"\d+ s, \d+% of them for evaluations; everything is in runs/ppo-001\n", output)
    assert output.endswith("curves and samples: runs/ppo-001/page.html\n")
    for stage in ("sft", "reward", "ppo"):
        assert output.count(f"{stage} step  ") == 1


def test_summary_has_the_issues_keys_and_no_gold_on_the_users_own_data(programs):
    for name in ("python", "two"):
        found = summary(programs[name][0] / "runs" / "ppo-001")
        assert found.keys() == {"seconds", "before", "after", "kl", "reward_model_accuracy"}
        for measures in (found["before"], found["after"]):
            assert measures.keys() == MEASURES
            assert measures["gold_reward"] is None and measures["grammatical"] is None
            assert 1 <= measures["length"] <= 8 and 0 <= measures["distinct_2"] <= 1
            assert isinstance(measures["model_reward"], float)
        assert 0 <= found["reward_model_accuracy"] <= 1 and found["seconds"] > 0 and isinstance(found["kl"], float)


def test_two_processes_come_to_the_summary_of_one_and_print_once(programs):
    one, two = (summary(programs[name][0] / "runs" / "ppo-001") for name in ("python", "two"))
    for when in ("before", "after"):
        known = {name: value for name, value in one[when].items() if value is not None}
        assert {name: two[when][name] for name in known} == pytest.approx(known, rel=1e-3)
    assert two["reward_model_accuracy"] == one["reward_model_accuracy"]
    assert programs["two"][1].count("before PPO") == 1


@pytest.mark.slow
def test_sft_runs_alone_under_torchrun(inputs, tmp_path):
    settings = ["--config", inputs / "sft.toml", "--data", inputs / "pairs.jsonl"]
    words = ["--nproc_per_node", "1", "--master_port", "0", f"{EXAMPLES}/sft.py", *settings]
    output = torchrun(tmp_path, *words).communicate(timeout=240)[0]
    assert "the model: runs/sft-001/sft/model" in output
    assert (tmp_path / "runs" / "sft-001" / "sft" / "model" / "model.safetensors").exists()


def test_this_process_and_a_fresh_one_write_the_same(programs, finished):
    # the same seed: weights of all stages bit for bit
    fresh = contents(programs["python"][0] / "runs" / "ppo-001")
    here = contents(finished)
    names = [name for name in fresh if name.endswith(("metrics.jsonl", "model/model.safetensors", "tokenizer.json"))]
    assert len(names) > 8 and [name for name in names if here[name] != fresh[name]] == []


def test_a_job_stopped_after_each_stage_and_resumed_is_the_whole_job(call, inputs, finished, tmp_path, capsys):
    data, output = ("--data", inputs / "pairs.jsonl"), tmp_path / "job"
    call("ppo", tmp_path, *data, "--output", output, "--stop-after", "sft", "--tracker", "tensorboard")
    (events,) = (output / "sft" / "tensorboard").iterdir()  # a later start may have another tracker, or none
    assert events.read_bytes().count(b"eval/loss") > 1
    assert {path.name for path in output.iterdir()} == {"tokenizer", "sft", "inputs.json", "stages.json", "page.html"}
    call("ppo", tmp_path, *data, "--output", output, "--stop_after", "reward", "--resume")
    both = {"tokenizer", "sft", "reward", "inputs.json", "stages.json", "page.html"}
    assert {path.name for path in output.iterdir()} == both
    first = {name: text for name, text in contents(output).items() if name != "page.html"}
    capsys.readouterr()
    call("ppo", tmp_path, *data, "--output", output, "--resume")
    printed = capsys.readouterr().out
    assert "sft: finished already" in printed and "reward: finished already" in printed
    last = contents(output)
    assert all(last[name] == text for name, text in first.items())
    names = ("ppo/metrics.jsonl", "ppo/model/model.safetensors")
    assert [last[name] for name in names] == [contents(finished)[name] for name in names]
    assert {**summary(output), "seconds": 0} == {**summary(finished), "seconds": 0}


def test_a_finished_job_resumes_to_the_same_summary_and_trains_nothing(call, inputs, finished, tmp_path):
    before = contents(finished)
    call("ppo", tmp_path, "--data", inputs / "pairs.jsonl", "--output", finished, "--resume")
    after = contents(finished)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] in (
        [],
        ["page.html", "summary.json"],
        ["summary.json", "page.html"],
    )
    kept = [{**json.loads(text["summary.json"]), "seconds": 0} for text in (before, after)]
    assert kept[0] == kept[1]


def test_each_job_without_output_gets_a_fresh_folder_and_resume_takes_the_last(call, inputs, tmp_path):
    data = "--data", inputs / "pairs.jsonl"
    for _ in range(2):
        call("sft", tmp_path, *data)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["sft-001", "sft-002"]
    before = contents(tmp_path)
    call("sft", tmp_path, *data, "--resume")
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("place", ["", "model"])
def test_ppo_alone_from_the_models_of_another_job(call, inputs, finished, tmp_path, place):
    models = "--policy", finished / "sft" / place, "--reward", finished / "reward" / place
    call("ppo", tmp_path, "--data", inputs / "pairs.jsonl", *models, "--output", tmp_path / "job")
    names = {path.name for path in (tmp_path / "job").iterdir()}
    assert names == {"ppo", "inputs.json", "stages.json", "summary.json", "page.html"}
    found, whole = summary(tmp_path / "job"), summary(finished)
    assert found["reward_model_accuracy"] is None
    assert (found["before"], found["after"], found["kl"]) == (whole["before"], whole["after"], whole["kl"])


def test_ppo_with_a_separate_value_model(call, inputs, finished, tmp_path):
    models = "--policy", finished / "sft", "--reward", finished / "reward"
    call("ppo", tmp_path, "--data", inputs / "pairs.jsonl", *models, "--ppo.separate_value_model", "--output", "job")
    files = set(contents(tmp_path / "job" / "ppo" / "checkpoints" / "step-2"))
    assert {"policy/model.safetensors", "value/model.safetensors"} <= files
    assert "policy/value_head.safetensors" not in files


def test_a_reward_model_from_an_sft_model(call, inputs, finished, tmp_path, capsys):
    data = "--data", inputs / "pairs.jsonl"
    call("reward_model", tmp_path, *data, "--policy", finished / "sft")
    folder = tmp_path / "runs" / "reward-001" / "reward"
    assert "accuracy on held-out pairs: " in capsys.readouterr().out
    assert contents(folder)["metrics.jsonl"] == contents(finished)["reward/metrics.jsonl"]


@pytest.mark.parametrize(("name", "grammatical"), [("reviews", True), ("arithmetic", False)])
def test_embedded_tasks_have_gold_measures(call, tmp_path, monkeypatch, name, grammatical):
    monkeypatch.setattr(opened, "embedded_task", small_task)
    call("ppo", tmp_path, "--task", name, "--output", tmp_path / "job", "--sft.steps", "2", "--ppo.steps", "1")
    for measures in (summary(tmp_path / "job")["before"], summary(tmp_path / "job")["after"]):
        assert isinstance(measures["gold_reward"], float)
        assert isinstance(measures["grammatical"], float) == grammatical


@pytest.mark.parametrize(
    "program",
    [
        "sft",
        "reward_model",
        "ppo",
        "grpo",
        "dpo",
        "unpaired",
        "online_dpo",
        "distillation",
        "process_reward",
    ],
)
def test_help_shows_the_settings_and_the_metrics(call, tmp_path, capsys, program):
    with pytest.raises(SystemExit) as caught:
        call(program, tmp_path, "--help", "all")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and list(tmp_path.iterdir()) == []
    for flag in ("--output", "--seed", "--data", "--resume", f"--{program}.lr", "docs/metrics.md"):
        assert flag in text
