"""docs/pipeline.md from its first command to its last, in one folder, from its one file of settings."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from minirlhf.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
MODEL = """
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 32
max_position_embeddings = 128
[run]
eval_every = 0
save_every = 0
"""


def tiny(settings):
    """The settings of the page with few rows and steps, and a small model."""
    settings = re.sub(r"^steps = \d+", "steps = 1", settings, flags=re.MULTILINE)
    settings = re.sub(r"^rows = \d+", "rows = 60", settings, flags=re.MULTILINE)
    settings = re.sub(r"^max_rows = \d+", "max_rows = 4", settings, flags=re.MULTILINE)
    settings = re.sub(r"^max_tokens = \d+", "max_tokens = 4", settings, flags=re.MULTILINE)
    ppo = "steps = 1\nbatch_size = 8\nminibatch_size = 8\nmax_tokens = 6"
    return "vocab_size = 280\n" + settings.replace("[ppo]\nsteps = 1", f"[ppo]\n{ppo}") + MODEL


def travel(folder, settings, monkeypatch, capsys):
    """Run all commands -> command -> its output."""
    (folder / "journey.toml").write_text(settings)
    monkeypatch.chdir(folder)
    printed = {}
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()
        printed[command] = capsys.readouterr().out
    return printed


def test_the_whole_journey_from_one_file(tmp_path, monkeypatch, capsys):
    printed = travel(tmp_path, tiny(SETTINGS), monkeypatch, capsys)

    def said(part):
        return next(out for command, out in printed.items() if part in command)

    assert "no problems found" in said("check journey.toml")
    assert "sft: finished already" in said("--resume") and "stages: sft -> reward -> ppo" in said("--resume")
    assert "stages: dpo; results in runs/dpo-001" in said("train dpo")
    assert "stages: grpo; results in runs/grpo-001" in said("train grpo")
    evaluation = json.loads(next((tmp_path / "runs/eval-001").glob("*.json")).read_text())
    assert len(evaluation["models"]) == 4
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    test = {json.loads(line)["prompt"] for line in (tmp_path / "rows/reviews-pairs-test.jsonl").open()}
    train = {json.loads(line)["prompt"] for line in (tmp_path / "rows/reviews-pairs-train.jsonl").open()}
    assert test and train and not test & train


@pytest.mark.slow
def test_the_journey_as_the_page_has_it(tmp_path, monkeypatch, capsys):
    printed = travel(tmp_path, SETTINGS, monkeypatch, capsys)
    out = next(out for command, out in printed.items() if "--resume" in command)
    assert float(re.search(r"reward model accuracy: ([\d.]+)", out)[1]) > 0.6
