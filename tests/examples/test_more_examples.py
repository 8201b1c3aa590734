"""The examples of the other algorithms, from their first line to their last, with sizes that take a second."""

import json
import sys

import pytest

from minirlhf.algorithms.grpo_recipes import ALGORITHMS
from minirlhf.algorithms.grpo_settings import GRPOConfig
from minirlhf.jobs import opened, stage
from minirlhf.jobs.programs import GRPO_DEFAULTS, GRPOJobConfig
from minirlhf.jobs.settings import sections
from minirlhf.tasks.steps import step_rows
from minirlhf.training.settings import parse_settings

from .conftest import small_task

PROGRAMS = {
    "grpo": ["--stop_sft_at", "none"],
    "dpo": [],
    "unpaired": [],
    "online_dpo": [],
    "distillation": ["--student_width", "8", "--student_steps", "2"],
}


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(opened, "embedded_task", small_task)
    monkeypatch.setattr(stage, "EVALUATION_PROMPTS", 32)


LONG = ("unpaired", "distillation")  # their flags are tried by the test below


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PROGRAMS]
)
def test_it_trains_from_the_policy_on_and_is_read_again_when_resumed(call, tmp_path, program):
    argv = [*PROGRAMS[program], "--task", "reviews", "--output", tmp_path / "job"]
    call(program, tmp_path, *argv)
    found = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert isinstance(found["before"]["gold_reward"], float) and isinstance(found["after"]["gold_reward"], float)
    assert {path.name for path in (tmp_path / "job").iterdir()} >= {"tokenizer", "sft", program, "summary.json"}
    lines = (tmp_path / "job" / program / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == (2 if program in ("grpo", "online_dpo") else 3)
    call(program, tmp_path, *argv, "--resume")
    again = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


@pytest.mark.parametrize("program", ["dpo", "unpaired", "online_dpo", "distillation", "grpo"])
def test_it_trains_on_your_own_rows_from_a_policy_and_a_reward_you_have(call, inputs, finished, tmp_path, program):
    argv = ["--data", inputs / "pairs.jsonl", "--policy", finished / "sft", "--output", tmp_path / "job"]
    reward = ["--reward", finished / "reward"] if program in ("online_dpo", "grpo") else []
    call(program, tmp_path, *argv, *reward, *PROGRAMS[program])
    found = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert found["after"]["gold_reward"] is None and isinstance(found["after"]["length"], float)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_name_of_an_algorithm_is_flag_enough(name):
    classes = sections("grpo", GRPOConfig, job=GRPOJobConfig, after=("sft", "reward"), defaults=GRPO_DEFAULTS)
    config = parse_settings(classes, ["--grpo.algorithm", name], description="")["grpo"].recipe
    assert (config.batch_size, config.group_size, config.lr) == (256, 4, 1e-3)
    assert config.minibatches == (1 if config.surrogate == "reinforce" else 2)


def test_grpo_checks_sums_by_default_and_stops_sft_early(call, tmp_path, capsys):
    argv = ["--stop_sft_at", "0", "--sft.steps", "80", "--output", tmp_path / "job"]
    call("grpo", tmp_path, *argv)
    steps = (tmp_path / "job" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 50 and "eval/solved" in json.loads(steps[-1])  # looked at every 50 steps: once is enough
    found = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert 0 <= found["greedy_gold_before"] <= 1 and 0 <= found["greedy_gold_after"] <= 1
    assert not (tmp_path / "job" / "reward").exists()
    with pytest.raises(SystemExit):  # a finished SFT that stopped elsewhere is another one
        call("grpo", tmp_path, *argv[2:], "--resume", "--stop_sft_at", "0.5")
    assert "it began with 'stop_sft_at = 0.0'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["process", pytest.param("outcome", marks=pytest.mark.slow)])
def test_process_rewards_on_the_embedded_rows_and_on_your_own(call, tmp_path, capsys, kind):
    wide = ["--kind", kind, "--model.max_position_embeddings", "200"]
    call("process_reward", tmp_path, *wide, "--rows", "60", "--output", tmp_path / "job")
    assert "held-out labels" in capsys.readouterr().out
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in step_rows(60, 1)))
    call("process_reward", tmp_path, *wide, "--data", data, "--output", tmp_path / "own")
    assert (tmp_path / "own" / "process_reward" / "model" / "config.json").exists()


def test_process_rewards_on_rows_whose_held_out_part_is_too_long(call, tmp_path, capsys):
    rows = [{**row, "steps": [*row["steps"], "x" * 300], "labels": [*row["labels"], True]} for row in step_rows(2, 1)]
    files = {"rows": step_rows(28, 1), "long": rows}
    for name, its_rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its_rows))
    data = "--data", tmp_path / "rows.jsonl", "--held_out", tmp_path / "long.jsonl"
    call("process_reward", tmp_path, "--model.max_position_embeddings", "200", *data, "--output", "job")
    out = capsys.readouterr().out
    assert "2 of 2 rows are left out: line 1: has " in out and "on 0 held-out labels" in out
    metrics = [json.loads(line) for line in (tmp_path / "job/process_reward/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3 and "eval/accuracy" not in metrics[-1]


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "a"}', '{"prompt": "a", "steps": 3, "labels": [true]}'])
def test_a_line_that_is_no_labelled_row_is_named(call, tmp_path, capsys, line):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "steps": ["b"], "labels": [true]}\n' + line + "\n")
    with pytest.raises(SystemExit) as caught:
        call("process_reward", tmp_path, "--data", data)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {data}: ") and "line 2: " in error


def test_compare_writes_a_file_a_result_and_goes_on_where_it_stopped(call, inputs, tmp_path, monkeypatch, capsys):
    """Its parts are made small from outside: what it compares at full size is docs/results.md."""
    monkeypatch.syspath_prepend(str(inputs))
    (inputs / "compare.toml").write_text("seeds = 1\n")
    sys.modules.pop("compare", None)
    call("compare", tmp_path, "--list")
    names = capsys.readouterr().out.split()
    assert {"ppo", "grpo", "dapo", "dpo_sigmoid", "dpo_simpo", "unpaired_kto", "online_dpo", "nash_md"} <= {*names}
    compare = sys.modules["compare"]
    for name, value in {"STEPS": 1, "COMPLETIONS": 16, "EVALUATED": 8, "MAX_TOKENS": 6}.items():
        monkeypatch.setattr(compare, name, value)
    monkeypatch.setattr(compare, "SFTConfig", lambda: compare_settings("sft"))
    monkeypatch.setattr(compare, "RewardConfig", lambda **table: compare_settings("reward"))
    for only in ("grpo,dpo_sigmoid", "grpo,dpo_sigmoid,ppo,nash_md,unpaired_kto"):
        call("compare", tmp_path, "--only", only, "--output", tmp_path / "out")
    results = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()}
    assert len(results) == 5 and "grpo-seed-0.json" in results
    call("compare", tmp_path, "--only", "grpo", "--output", tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()} == results
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.count("\n| ") == 5 and "gold reward" in table
    settings = compare.online_settings
    monkeypatch.setattr(compare, "online_settings", lambda name: settings(name) | {"lr": 1e-4})
    call("compare", tmp_path, "--only", "grpo,nash_md", "--output", tmp_path / "out")  # one recipe has changed
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()}
    assert [name for name in now if now[name] != results[name]] == ["nash_md-seed-0.json"]


def compare_settings(stage):
    from minirlhf.algorithms import RewardConfig, SFTConfig

    return {"sft": SFTConfig, "reward": RewardConfig}[stage](steps=2, batch_size=8)


def test_compare_refuses_a_name_it_does_not_know(call, inputs, tmp_path, capsys):
    (inputs / "compare.toml").write_text("seeds = 1\n")
    with pytest.raises(SystemExit) as caught:
        call("compare", tmp_path, "--only", "grppo")
    assert caught.value.code == 2 and "no algorithm 'grppo'" in capsys.readouterr().err
