"""Progress on stderr: the number of the stage, the time left of stage and job, few lines on a pipe."""

import io
import json

import pytest
from tqdm import tqdm

from minirlhf.columns import columns_of
from minirlhf.training import bar
from minirlhf.training.bar import BAR, Lines, Place, TerminalBar
from minirlhf.training.stage_plan import job_seconds_left, planned_stages


@pytest.fixture
def job(tmp_path):
    (tmp_path / "stages.json").write_text(json.dumps({"sft": 10.0, "reward": 20.0, "ppo": 70.0}))
    return tmp_path


def test_later_stages_take_as_long_as_their_rough_numbers_beside_the_present_stage(job):
    stages = planned_stages(job)
    # SFT takes 5 s in all, half of its rough number: reward takes 10 s and PPO 35 s
    assert job_seconds_left(stages, "sft", whole=5.0, left=2.0) == 2 + 10 + 35
    assert job_seconds_left(stages, "ppo", whole=70.0, left=3.0) == 3
    assert job_seconds_left({"sft": 10.0, "ppo": None}, "sft", 5.0, 2.0) is None
    assert job_seconds_left({}, "sft", 5.0, 2.0) == 2


@pytest.mark.parametrize("text", ["", "[1]", '"sft"', '{"sft": ', "[" * 10_000])
def test_a_broken_plan_is_no_plan(tmp_path, text):
    (tmp_path / "stages.json").write_text(text)
    assert planned_stages(tmp_path) == {}


def test_the_title_has_the_number_of_the_stage(job):
    assert [Place(job / name, 0, 9).title for name in ("reward", "other")] == ["2/3 reward", "other"]
    wide = Place(job / "如何学习强化学习", 0, 9).title
    assert columns_of(wide) == 12


def test_the_bar_has_the_time_left_of_stage_and_job(job, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with TerminalBar(Place(job / "sft", 10, 110)) as shown:
        assert shown.format_dict["job"] == ""  # no step yet
        shown.n, shown._time = 30, lambda: shown.start_t + 4.0
        # 0.2 s a step: 80 steps are 16 s, all 110 are 22 s, and the later stages 9 times as much
        assert shown.format_dict["job"] == "<03:34"
    postfix = "loss=-0.0123, accuracy=-0.0123"
    line = tqdm.format_meter(
        300, 800, 22.0, ncols=80, prefix="2/3 a-long-n", bar_format=BAR, job="<1:03:34", postfix=postfix
    )
    assert len(line) <= 80 and line.endswith(f"{postfix}]")


def test_a_pipe_gets_few_lines(job, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    with Lines(Place(job / "reward", 0, 100_000)) as shown:
        for step in range(1, 100_001):
            now[0] = float(step)
            shown.set_postfix({"loss": "0.5"}, refresh=False)
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    # 20 lines of 10 s up to 200 s, then each 5% later: ln(500) / 0.05 = 124 lines; more only by rounding up to a step
    assert 120 < len(lines) <= 144
    # a second a step: 99,990 s are 27:46:30; PPO takes 3.5 times as long as 100,000 s, which makes 449,990 s
    assert lines[0] == "2/3 reward: 10 of 100000 steps, 00:10, 27:46:30 left, job 124:59:50, loss=0.5"
