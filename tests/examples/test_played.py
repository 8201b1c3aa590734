"""examples/tools.py and examples/game.py, from their first line to their last, with sizes that take a second."""

import json
import sys
from dataclasses import replace

import pytest

from minirlhf.cli.main import main
from minirlhf.data import read_rows
from minirlhf.errors import InputError
from minirlhf.jobs import played, stage
from minirlhf.jobs.opened import Opened
from minirlhf.rewards.answers import exact_match
from minirlhf.tasks.guessing import guessing_task
from minirlhf.tasks.sums import sums_task
from minirlhf.text import Tokenizer

CHARACTERS = Tokenizer.train(["1+2=3"], 259)


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


def test_a_reward_beside_the_calculator_and_a_tool_that_is_switched_off():
    """`with_calculator` on the parts of a job that it reads."""
    job = Opened("grpo", {"job": played.ToolsJobConfig()}, None, sums_task(0, sft=2, prompts=2), CHARACTERS, None, 0.0)

    def loud(prompts, completions, rows):
        return [float(text.isupper()) for text in completions]

    found, reward = played.with_calculator(replace(job, given_reward=loud))
    assert reward is loud and found.environment.make().reward is None and "calculator" in found.environment.make().tools
    found, reward = played.with_calculator(job)
    assert reward is None and found.environment.make().reward("4 apples", {"answer": 4}) == 1.0
    off = replace(job, settings={"job": played.ToolsJobConfig(tool=False)})
    assert played.with_calculator(off)[1] is exact_match and played.with_calculator(off)[0].environment is None
    with pytest.raises(InputError, match="--tool: false means no environment"):
        played.with_calculator(replace(off, environment=found.environment))


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
