"""The environment of a job: of `--environment`, or of an embedded task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice
from typing import Any

from minirlhf.environments.episodes import POLICY, Episodes, row_of
from minirlhf.errors import InputError, check_range
from minirlhf.jobs.environment_flags import EnvironmentFlags
from minirlhf.jobs.opened import Opened
from minirlhf.model.config import ModelConfig
from minirlhf.rewards.functions import FileReward


class FileEnvironment(FileReward):
    """A class of a user's file, or a function that makes an environment. name: FILE.py:CLASS."""

    kind, needed = "environment", "class"

    def __call__(self) -> Any:
        return self.guarded(self.function)


def with_environment(job: Opened, shape_of: Callable[[Opened], ModelConfig]) -> Opened:
    """The job with its environment. An environment of the user plays two episodes first, so that its faults show early.

    shape_of: job -> the shape of the policy that it trains.
    Raises: InputError if the file has no such class, the environment fails, or its flags have no environment.
    """
    flags = job.common if isinstance(job.common, EnvironmentFlags) else EnvironmentFlags()
    if not flags.environment:
        changed = [f.name for f in fields(EnvironmentFlags) if getattr(flags, f.name) != f.default]
        if changed:
            raise InputError(
                f"--{changed[0]}: needs an environment; give --environment FILE.py:CLASS, or drop the flag"
            )
        return replace(job, environment=job.task.environment(job.tokenizer)) if job.task.environment else job
    if job.section == "online_dpo" and job.common.reward:  # a judge made of it would decide alone
        raise InputError("--reward: in online_dpo the rewards of the environment decide; drop one of the flags")
    check_range(flags, "max_turns", "max_tool_tokens", least=1)
    check_range(flags, "step_timeout", above=0)
    limits = {"max_turns": flags.max_turns, "max_tool_tokens": flags.max_tool_tokens, "timeout": flags.step_timeout}
    episodes = Episodes(FileEnvironment(flags.environment), job.tokenizer, **limits)
    rows = list(islice([*job.task.prompts, *job.task.prompts], 2))
    episodes.rehearse(rows, ["", "yes"][: len(rows)], shape_of(job).max_position_embeddings)
    return replace(job, environment=episodes)


def as_episode(row: dict, text: str) -> dict:
    """A row as a reward function gets it after an episode of one turn."""
    return row_of(row, [{"by": POLICY, "text": text}], 0.0)
