"""A job that needs more memory than there is says so, with settings that fit, and its folder stays whole."""

import json
import re
import tomllib

import pytest
import torch

from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.cli import train
from minirlhf.errors import InputError
from minirlhf.jobs import footprint, out_of_memory

TINY = ["--model.hidden_size", "16", "--model.num_attention_heads", "2", "--model.num_key_value_heads", "1"]
TINY += ["--model.num_hidden_layers", "2", "--model.intermediate_size", "16", "--vocab_size", "300"]
TINY += ["--sft.steps", "4", "--sft.batch_size", "16", "--run.save_every", "1", "--run.eval_every", "0"]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "response": "yes " * 40}) + "\n" for n in range(40)))
    return str(path)


@pytest.fixture(autouse=True)
def no_kept_blocks(monkeypatch):
    """They would be most of the memory of a tiny model."""
    monkeypatch.setattr(footprint, "KEPT", 0)


def sft(tmp_path, rows, *flags):
    train.train("sft", ["--data", rows, "--output", str(tmp_path / "job"), *TINY, *flags])


def fails(monkeypatch, make_error, step=2):
    """The trainer's step number `step` raises an error."""
    steps, real = [], SFTTrainer.step

    def broken(trainer, batch):
        steps.append(1)
        if len(steps) == step:
            make_error()
        return real(trainer, batch)

    monkeypatch.setattr(SFTTrainer, "step", broken)


def too_large():
    torch.empty(2**58)  # the CPU's allocator refuses it


def test_an_error_of_the_allocator_ends_with_settings_that_fit_and_the_run_goes_on_with_them(
    tmp_path, rows, monkeypatch, capsys
):
    fails(monkeypatch, too_large)
    with pytest.raises(InputError) as stop:
        sft(tmp_path, rows)
    err = capsys.readouterr().err
    facts = r"out of memory: [\d.]+ .B were free on cpu at the start, and this process held up to [\d.]+ .B"
    assert re.search(facts, err)
    assert "by plan, sft needs in each process:\n\nsft, ddp " in err and "activations" in err and "optimizer" in err
    fitting, message = tmp_path / "job" / "fits.toml", str(stop.value)
    assert "needed memory that the device does not have, got: \"DefaultCPUAllocator: can't allocate memory" in message
    assert f"; go on with --config {fitting} --output {tmp_path / 'job'} --resume" in message
    assert "# sft, ddp  " in fitting.read_text()
    settings = tomllib.loads(fitting.read_text())
    changed = settings["sft"]["microbatch_tokens"] < 16_384 or settings["gradient_checkpointing"] != "none"
    assert changed and settings["data"] == rows
    assert (tmp_path / "job" / "sft" / "checkpoints" / "step-1").is_dir()
    monkeypatch.undo()
    train.train("sft", ["--config", str(fitting), "--output", str(tmp_path / "job"), "--resume"])
    lines = (tmp_path / "job" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    assert (tmp_path / "job" / "sft" / "model" / "config.json").exists()


def test_other_errors_stay_as_they_are(tmp_path, rows, monkeypatch):
    def broken():
        raise RuntimeError("a fault of ours")

    fails(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        sft(tmp_path, rows)
    assert not (tmp_path / "job" / "fits.toml").exists()


def test_a_plan_beyond_the_free_memory_is_told_before_the_first_step(tmp_path, rows, monkeypatch, capsys):
    monkeypatch.setattr(out_of_memory, "share_of_process", lambda device: 1000)
    sft(tmp_path, rows)
    out = capsys.readouterr().out
    assert "sft needs about " in out and "0.0 MB are free on cpu: the system may end the job; no settings fit" in out
    needed = 1e6 * float(re.search(r"sft needs about ([\d.]+) MB", out)[1])
    monkeypatch.setattr(out_of_memory, "share_of_process", lambda device: int(0.8 * needed))
    sft(tmp_path / "other", rows)
    out = capsys.readouterr().out
    assert re.search(r"are free on cpu: the system may end the job; --[\w.]+ \w+ .*would need [\d.]+ MB", out)
    monkeypatch.setattr(out_of_memory, "share_of_process", lambda device: int(1.2 * needed))
    sft(tmp_path / "third", rows)
    assert "the system may end" not in capsys.readouterr().out
