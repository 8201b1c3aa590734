"""The rewards of `--reward`: folders of reward models and functions of the user's own files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.jobs.environments import as_episode
from minirlhf.jobs.given_models import load_scorer
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.pipeline import check_no_pipeline
from minirlhf.jobs.reward_flags import reward_flags_of
from minirlhf.nearest import nearest
from minirlhf.pretrained.hub import is_model_name
from minirlhf.rewards.calling import Timed
from minirlhf.rewards.ensemble import Ensemble
from minirlhf.rewards.functions import FileReward, RewardSum
from minirlhf.rewards.named import NAMED, check_rows
from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions


def with_reward(job: Opened) -> Opened:
    """The job with the reward of `--reward`. Functions are tried on two prompts before anything is trained.

    An algorithm with weights of its own (GRPO) gets the weights as its setting `reward_weights`.
    """
    common, config = job.common, job.config
    own = getattr(config, "reward_weights", (1.0,))
    if common.reward_weights and own not in ((1.0,), common.reward_weights):
        raise InputError(f"--reward_weights: needed the weights once, got --{job.section}.reward_weights too; drop one")
    flags = reward_flags_of(common)
    if flags.reward_ensemble and own != (1.0,):
        raise InputError(
            f"--{job.section}.reward_weights: an ensemble weighs its members equally; drop one of the flags"
        )
    names, weights = named_rewards(common.reward, common.reward_weights or (own if own != (1.0,) else None))
    rewards = [reward_of(name, partial(scorer_of, job)) for name in names]
    optional = hasattr(config, "reward_weights")
    for reward in rewards:
        check_rows(reward, [*job.task.prompts, *job.task.held_out_prompts], alone=len(rewards) == 1)
    if seconds := flags.reward_timeout:
        rewards = [each if isinstance(each, RewardModelScorer) else Timed(each, seconds) for each in rewards]
    for reward in rewards:
        if isinstance(getattr(reward, "reward", reward), FileReward):
            try_reward(reward, job, optional=not flags.reward_ensemble and (optional or len(rewards) > 1))
    if flags.reward_ensemble:
        return replace(job, given_reward=Ensemble(rewards, flags.reward_ensemble))
    plain = len(rewards) == 1 and (optional or weights == (1.0,))
    if optional:
        job = replace(job, settings={**job.settings, job.section: replace(config, reward_weights=weights)})
    return replace(job, given_reward=rewards[0] if plain else RewardSum(rewards, weights))


def named_rewards(reward: str, weights: tuple[float, ...] | None) -> tuple[list[str], tuple[float, ...]]:
    """-> (the names in `--reward`, a weight for each). weights: of `--reward_weights`; None: 1 each."""
    names = [name.strip() for name in reward.split(",")]
    weights = weights or (1.0,) * len(names)
    if len(weights) != len(names):
        raise InputError(
            f"--reward_weights: needed a weight for each of the {len(names)} rewards {', '.join(names)}, got "
            f"{len(weights)}: {','.join(map(str, weights))}"
        )
    if not all(map(math.isfinite, weights)) or not all(weights):
        raise InputError(f"--reward_weights: needed finite weights other than 0, got {','.join(map(str, weights))}")
    if not all(names):
        raise InputError(f"--reward: needed a name before and after each comma, got {reward}; drop a comma")
    if len(names) != len(set(names)):
        raise InputError(f"--reward: needed each reward once, got {reward}; a weight of 2 counts twice")
    return names, weights


def reward_of(name: str, load: Callable[[str], Reward]) -> Reward:
    """The reward of FILE.py:FUNCTION, of a name in NAMED, or of a folder. `load` opens the folder's reward model."""
    if Path(name).is_dir() or (is_model_name(name) and not name.endswith(".py")):
        check_no_pipeline(Path(name))
        return load(name)
    if name.endswith(".py") or ":" in name:
        return FileReward(name)
    if name in NAMED:
        return NAMED[name]
    needed = "needed a reward model's folder or FILE.py:FUNCTION, found neither; check the path"
    raise InputError(f"{name}: {needed}, or choose {', '.join(NAMED)}{nearest(name, NAMED)}")


def scorer_of(job: Opened, folder: str) -> Reward:
    """The scores of a reward model's folder, on the job's device."""
    return load_scorer(job, resolve_model(folder), job.config.microbatch_tokens)


def gold_of(job: Opened, name: str) -> Gold:
    """The measure of `--gold`: the scores of a reward that no policy is trained on, as gold_reward."""
    reward = reward_of(name, partial(scorer_of, job))
    if isinstance(reward, FileReward):
        try_reward(reward, job, optional=False)
    check_rows(reward, job.task.held_out_prompts, alone=True)

    def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
        return {"gold_reward": score_completions(reward, prompts, completions, rows)}

    return gold


def try_reward(reward: Reward, job: Opened, optional: bool) -> None:
    """Call a reward function on two training prompts, with an empty completion and a short one."""
    rows, texts = list(islice([*job.task.prompts, *job.task.prompts], 2)), ["", "yes"]
    if job.environment:
        rows = [as_episode(row, text) for row, text in zip(rows, texts, strict=True)]
    score_completions(reward, [row["prompt"] for row in rows], texts, rows, optional=optional)
