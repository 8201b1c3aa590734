"""`--reward`: names, files, ensembles and time limits become one reward of the job."""

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from minirlhf.errors import InputError
from minirlhf.jobs.given_rewards import with_reward
from minirlhf.jobs.reward_flags import with_reward_flags
from minirlhf.jobs.settings import RLJobConfig

Flags = with_reward_flags(RLJobConfig)
ROWS = [{"prompt": "p", "shape": "integer"}, {"prompt": "q"}]


@dataclass(frozen=True)
class Job:
    common: Any
    config: Any = None
    task: Any = field(default_factory=lambda: SimpleNamespace(prompts=ROWS, held_out_prompts=ROWS))
    section: str = "ppo"
    given_reward: Any = None
    environment: Any = None


def reward_of(**flags):
    return with_reward(Job(Flags(**flags))).given_reward


ASKED = ["p", "q"], ["1", "a a a a"], ROWS


def test_named_rewards_are_added_or_are_an_ensemble():
    assert reward_of(reward="repetition")(ASKED[1]) == [0, -0.5]
    # json_shape judges the first row alone; repetition adds -0.5 to the second
    assert reward_of(reward="json_shape,repetition", reward_weights=(2.0, 1.0))(*ASKED) == [2, -0.5]
    assert reward_of(reward="repetition,tags", reward_ensemble="min")(*ASKED) == [0, -0.5]
    with pytest.raises(InputError, match="reward json_shape: needed a finite number for every completion, got None"):
        reward_of(reward="json_shape,tags", reward_ensemble="min")(*ASKED)


def test_a_reward_alone_needs_its_column_in_every_row():
    with pytest.raises(InputError, match="json_shape: 'q': needed a JSON shape"):
        reward_of(reward="json_shape")


def test_a_function_has_to_answer_in_time(tmp_path):
    (tmp_path / "my.py").write_text(
        "import time\n"
        "def slow(completions): time.sleep(60 * ('stop' in completions)); return [1.0] * len(completions)\n"
    )
    reward = reward_of(reward=f"{tmp_path}/my.py:slow", reward_timeout=0.2)
    assert list(reward(*ASKED)) == [1, 1]
    started = time.monotonic()
    with pytest.raises(InputError, match=r"my.py:slow: needed the scores of 1 completions within 0.2 s, got none"):
        reward(["p"], ["stop"], ROWS[:1])
    assert time.monotonic() - started < 30
