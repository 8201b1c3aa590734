"""Flags about rewards, for every program that takes `--reward`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from minirlhf.errors import InputError, check_range
from minirlhf.training.recorded import CHOSEN


@dataclass(frozen=True)
class RewardFlags:
    """Plain flags. `with_data_flags` adds them to the flags of a program."""

    reward_ensemble: Literal["mean", "min", "mean_minus_std"] | None = None  # [-] the rewards are members of an
    #                             ensemble: their mean, their least, or their mean minus their standard deviation
    reward_timeout: float | None = None  # [seconds] in which a function must score a batch; none: no limit
    save_rollouts: bool = False  # [-] write each rollout: ids, log-probs, values, scores and texts
    replay: str | None = None  # [folder] of rollouts that save_rollouts wrote: train on them instead of sampling
    replay_scores: Literal["recorded", "new"] = "recorded"  # [-] of a replay: as recorded, so that each update is the
    #                             recorded one bit for bit, or of the reward of this job on the recorded texts


def with_reward_flags(cls: type) -> type:
    """The dataclass of plain flags with the fields of RewardFlags, if it has `reward`. Earlier stages ignore them."""
    if "reward" not in {field.name for field in dataclasses.fields(cls)} or issubclass(cls, RewardFlags):
        return cls
    later = (*cls.later_stages_only, *(field.name for field in dataclasses.fields(RewardFlags)))
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "later_stages_only": later}
    return dataclasses.make_dataclass(cls.__name__, [], bases=(cls, RewardFlags), namespace=namespace, frozen=True)


def reward_flags_of(job: object) -> RewardFlags:
    """The flags of a program; their defaults for a plain JobConfig that a caller has made."""
    return job if isinstance(job, RewardFlags) else RewardFlags()


def check_reward_flags(job: RewardFlags, settings: dict[str, Any]) -> None:
    """Refuse flags that would have no effect.   job: the plain flags of a program with `reward`, of these settings."""
    for name in ("save_rollouts", "replay"):
        if getattr(job, name) and "online_dpo" in settings:
            raise InputError(f"--{name}: online_dpo compares pairs, which are not recorded; drop the flag")
    if job.save_rollouts and job.replay:
        raise InputError("--save_rollouts: a replay samples nothing; drop --save_rollouts or --replay")
    if job.replay_scores == "new" and not job.replay:
        raise InputError("--replay_scores: needs recorded rollouts; give --replay DIR")
    if job.replay_scores == "new" and "grpo" in settings and settings["grpo"].recipe.resample:
        raise InputError(f"--replay_scores new: {CHOSEN}; set --grpo.resample 0")
    check_range(job, "reward_timeout", above=0)
    if job.reward_ensemble and job.reward_weights:
        raise InputError("--reward_weights: an ensemble weighs its members equally; drop one of the two flags")
    for name in ("reward_ensemble", "reward_timeout"):
        if getattr(job, name) is not None and not job.reward:
            raise InputError(f"--{name}: needs rewards; give --reward")
