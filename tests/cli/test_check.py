"""`minirlhf check` names all that would stop a job, and writes nothing."""

import json
import sys

import pytest

from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.cli import check
from minirlhf.cli.main import main
from minirlhf.cli.train import PROGRAMS
from minirlhf.jobs import opened
from minirlhf.runtime import memory

from ..examples.conftest import STAGES, inputs, make_pairs  # noqa: F401
from .test_train import FLAGS, smaller_task


@pytest.fixture
def checked(monkeypatch, capsys, tmp_path):
    """checked(*words): -> (exit code, the findings, the whole output) of `minirlhf check`, run in an empty folder."""
    monkeypatch.setattr(opened, "embedded_task", smaller_task)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def checked(*words):
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["minirlhf", "check", *map(str, words)])
        before = everything(tmp_path)
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr().out
        assert everything(tmp_path) == before  # nothing is written
        _, _, end = out.partition(" found\n")
        return code, [line.partition(". ")[2] for line in end.splitlines()], out

    return checked


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_alone_it_tells_of_the_machine(checked):
    code, findings, out = checked()
    assert code == 0 and findings == [] and "no problems found" in out
    for word in ("torch 2.", "CPUs", "GPUs", "computes in", "compiler", "disk"):
        assert word in out


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_takes_a_step_of_each_stage_and_writes_nothing(name, checked, inputs):  # noqa: F811
    code, findings, out = checked(name, "--config", inputs / f"{name}.toml", *FLAGS.get(name, []))
    assert (code, findings) == (0, [])
    section = PROGRAMS[name].options.get("section", name)
    own = {"reward_model": "reward"}.get(section, section)
    assert f"\n{own}: a step on " in out and "no problems found" in out
    after = PROGRAMS[name].options.get("after", ())
    assert ("\nsft: a step on" in out) == ("sft" in after or name == "sft")


def test_all_findings_are_listed_not_the_first_alone(checked, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs()))
    (tmp_path / "job.toml").write_text("""
program = "ppo"
dataa = "pairs.jsonl"
task = 7
[sft]
steps = 4
lr = "fast"
batch_size = 0
[ppo]
clip = 0.1
max_tokens = 8
[dpo]
betta = 1
loss = "dpo"
data = "others.jsonl"
[split]
ratio = "most"
[nonsense]
""")
    code, findings, _ = checked(tmp_path / "job.toml", "--seed", "x", "--policy", "nowhere", "--sft.stepz", "4")
    assert code == 2
    for part in (
        "--seed: needed",
        "no setting '--sft.stepz'; the nearest is --sft.steps",
        "no setting 'dataa'; the nearest is data",
        "task: needed",
        "sft.lr: needed",
        "batch_size must be at least 1, got 0",
        "no setting 'ppo.clip'; the nearest is ppo.clip_eps",
        "no setting 'dpo.betta'; the nearest is dpo.beta",
        "loss must be one of",
        "[split]: ratio: needed a list",
        "no table 'nonsense'",
        "nowhere: ",
    ):
        assert sum(part in finding for finding in findings) == 1, (part, findings)
    assert len(findings) == len(set(findings)) == 12


def test_files_beside_rows_that_cannot_be_read_are_tried_too(checked):
    files = ["--data", "rows.jsonl", "--reward", "mine.py:score", "--validation", "a=a.jsonl,b=b.jsonl"]
    code, findings, _ = checked("ppo", *files)
    assert code == 2 and len(findings) == 4
    for name in ("rows.jsonl", "mine.py", "a.jsonl", "b.jsonl"):
        assert sum(name in finding for finding in findings) == 1, findings


def test_each_of_several_broken_files_and_models_is_listed(checked, tmp_path):
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 2)
    (tmp_path / "half.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt"\n')
    files = f"{tmp_path}/half.jsonl,gone.jsonl,{tmp_path}/good.jsonl"
    flags = ["--vocab_size", "100", "--reward", "no_reward", "--value", "no_value", "--sft.data", "stage.jsonl"]
    code, findings, out = checked("ppo", "--data", files, *flags)
    for part in ("half.jsonl: ", "gone.jsonl: ", "stage.jsonl: ", "vocab_size must", "no_reward: ", "no_value: "):
        assert sum(part in finding for finding in findings) == 1, (part, findings)
    assert code == 2 and len(findings) == 6 and "good.jsonl" not in out


def test_rows_rewards_and_folders_are_tried(checked, inputs, tmp_path):  # noqa: F811
    rows = [{"prompt": row["prompt"] * 60, "chosen": "a", "rejected": "b"} for row in make_pairs()]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.py").write_text(
        "def late(prompts, completions):\n    return [1 / len(text) for text in completions]\n"
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.toml").write_text("")
    flags = ["--data", tmp_path / "long.jsonl", "--reward", f"{tmp_path}/my.py:late", "--output", tmp_path / "taken"]
    code, findings, _ = checked("ppo", "--config", inputs / "ppo.toml", *flags)
    assert code == 2
    assert any("holds a run already" in finding for finding in findings)
    assert any("division by zero" in finding and "my.py" in finding for finding in findings)
    assert any("rows cannot be used" in finding for finding in findings)


def test_models_beyond_the_memory_are_told_and_not_tried(checked, inputs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(check, "share_of_process", lambda device: 1000)
    monkeypatch.setattr(check, "free_disk", lambda folder: 1000)
    code, findings, out = checked("ppo", "--config", inputs / "ppo.toml")
    assert code == 2 and len(findings) == 2 and "a step on" not in out
    assert "for checkpoints and models, got 0.0 MB" in findings[0] and "of memory by plan, got 0.0 MB" in findings[1]


def test_a_loss_that_is_no_number_is_found(checked, inputs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(SFTTrainer, "step", lambda trainer, batch: {"loss": float("nan"), "grad_norm": 1.0})
    code, findings, _ = checked("sft", "--config", inputs / "sft.toml")
    assert code == 2 and findings == ["sft: needed a finite loss, got nan; look at the longest rows"]


def test_an_error_of_ours_does_not_hide_the_findings(checked, inputs, monkeypatch, capsys):  # noqa: F811
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(check, "rehearse", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        checked("sft", "--config", inputs / "sft.toml", "--sft.stepz", "3")
    assert "1 problem found\n1. command line: no setting '--sft.stepz'" in capsys.readouterr().out


def test_a_program_without_a_name_is_asked_for(checked, tmp_path):
    (tmp_path / "job.toml").write_text("seed = 1\n")
    assert checked(tmp_path / "job.toml")[0] == 2
    assert checked("pppo")[0] == 2


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "memory.max"),))
    assert memory.free_memory(memory.torch.device("cpu")) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(memory.torch.device("cpu")) > 10**6
