"""examples/tools.py and examples/game.py, from their first line to their last, with sizes that take a second."""

import json
import sys

import pytest

from minirlhf.cli.main import main
from minirlhf.data import read_rows
from minirlhf.jobs import played, stage
from minirlhf.tasks.guessing import guessing_task
from minirlhf.tasks.sums import sums_task


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(played, "sums_task", lambda seed, tool: sums_task(seed, sft=200, prompts=200, tool=tool))
    monkeypatch.setattr(played, "guessing_task", lambda seed: guessing_task(seed, sft=200))
    monkeypatch.setattr(stage, "EVALUATION_PROMPTS", 16)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def samples(folder):
    return [json.loads(line) for line in (folder / "grpo" / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tool", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tools_reports_the_share_of_calls(call, inputs, tmp_path, tool):
    argv = ["--output", tmp_path / "job", "--tool", str(tool).lower()]
    call("tools", tmp_path, *argv)
    found = summary(tmp_path / "job")
    assert 0 <= found["after"]["gold_reward"] <= 1
    assert (found["calls_after"] is None) == (not tool)
    assert all(("turns" in sample) == tool for sample in samples(tmp_path / "job"))
    call("tools", tmp_path, *argv, "--resume")
    assert {**summary(tmp_path / "job"), "seconds": 0} == {**found, "seconds": 0}


def test_a_policy_trains_with_the_calculator_on_rows_of_your_own(call, inputs, finished, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} plus 2 =", "answer": n + 2}) + "\n" for n in range(40)))
    argv = ["--policy", finished / "sft", "--data", rows, "--output", tmp_path / "job"]
    call("tools", tmp_path, *argv)
    assert summary(tmp_path / "job")["calls_after"] is not None and "turns" in samples(tmp_path / "job")[0]


def test_rows_without_answers_are_refused(call, inputs, finished, tmp_path, capsys):
    argv = ["--policy", finished / "sft", "--data", inputs / "pairs.jsonl", "--output", tmp_path / "job"]
    with pytest.raises(SystemExit) as caught:
        call("tools", tmp_path, *argv)
    assert caught.value.code == 2 and 'needed text or a number under "answer"' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("tools", tmp_path, "--task", "reviews")
    assert "--task: this program has the task sums, got 'reviews'" in capsys.readouterr().err


def test_game_by_the_command_and_its_samples_are_shown_and_rows_to_train_on(
    call, inputs, tmp_path, monkeypatch, capsys
):
    argv = ["train", "game", "--config", inputs / "game.toml", "--output", tmp_path / "job"]
    monkeypatch.setattr(sys, "argv", ["minirlhf", *map(str, argv)])
    main()
    assert -12 <= summary(tmp_path / "job")["after"]["gold_reward"] <= -1
    assert samples(tmp_path / "job")[0]["turns"][0]["by"] == "policy"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["minirlhf", "run", "samples", str(tmp_path / "job")])
    main()
    assert "[+" in capsys.readouterr().out
    dataset = read_rows(str(tmp_path / "job" / "grpo" / "samples.jsonl"))
    parts = dataset.rows[0]["response_parts"]
    assert dataset.kind == "sft" and parts == samples(tmp_path / "job")[0]["turns"][: len(parts)]
