"""The reward and the judge of `minirlhf eval`: reward models, rules, and functions of the user's own files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError, shown
from minirlhf.evaluation.pairwise import RULES
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.given_rewards import named_rewards, reward_of
from minirlhf.jobs.models import resolve_model
from minirlhf.nearest import nearest
from minirlhf.pretrained.weights import load_reward_model
from minirlhf.rewards.calling import awaited
from minirlhf.rewards.functions import FileReward, RewardSum
from minirlhf.rewards.judges import Judge, judge_by, judge_pairs
from minirlhf.rewards.scoring import Reward, RewardModelScorer, score_completions
from minirlhf.text.tokenizer import Tokenizer


def open_reward(config: Any, prompts: list[dict], device: torch.device) -> Reward:
    """The rewards of `--reward`; several are summed. A function is tried before any model samples.

    config: an `EvalConfig`.
    """
    names, weights = named_rewards(config.reward, config.reward_weights)
    rewards = [reward_of(name, partial(scores_of, config=config, device=device)) for name in names]
    for reward in rewards:
        if isinstance(reward, FileReward):
            score_completions(reward, *_trial(prompts, ["", "yes"]), optional=True)
    return rewards[0] if weights == (1.0,) else RewardSum(rewards, weights)


def open_judge(config: Any, prompts: list[dict], device: torch.device) -> Judge:
    """A rule of `RULES`, or a judge made of a reward, or a function of pairs (prompts, firsts, seconds, rows)."""
    name = config.judge
    if name in RULES:
        return RULES[name]
    if "," in name and not Path(name).exists():
        raise InputError(f"--judge: needed one judge, got several: {shown(name)}; run minirlhf eval once for each")
    if not Path(name).exists() and not {":", "/"} & set(name):
        rules = ", ".join(RULES)
        raise InputError(
            f"--judge: needed {rules}, a reward model's folder or FILE.py:FUNCTION, got {shown(name)}"
            f"{nearest(name, RULES)}"
        )
    reward = reward_of(name, partial(scores_of, config=config, device=device))
    if not isinstance(reward, FileReward):
        return judge_by(reward)

    def judge(prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]) -> Sequence[float]:
        return reward.guarded(lambda: awaited(reward.function(prompts, firsts, seconds, rows)))

    judge.__name__ = name
    found = judge if _takes_pairs(reward.function) else judge_by(reward)
    asked, texts, sources = _trial(prompts, ["", "yes"])
    judge_pairs(found, asked, texts, texts[::-1], sources)
    return found


def scores_of(name: str, config: Any, device: torch.device) -> Reward:
    """The scores of a reward model's folder."""
    folder = resolve_model(name)
    model, tokenizer = load_reward_model(folder, torch.float32), Tokenizer.load(folder)
    check_vocabulary(model.config, tokenizer, folder)
    scorer = RewardModelScorer(model.eval().to(device), tokenizer, config.microbatch_tokens, config.wrap)
    scorer.__name__ = name
    return scorer


def _trial(prompts: list[dict], texts: list[str]) -> tuple[list[str], list[str], list[dict]]:
    """The first two prompts with these texts; a single prompt with the first text."""
    sources = prompts[: len(texts)]
    return [row["prompt"] for row in sources], texts[: len(sources)], sources


def _takes_pairs(function: Callable) -> bool:
    """True for a function of four arguments: prompts, first answers, second answers, rows. A reward has completions."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.kind in places and p.default is p.empty]
    return len(needed) == 4 and "completions" not in needed
