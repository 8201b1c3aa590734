"""The reward and the judge of `minirlhf eval`: reward models, rules, and functions of the user's own files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from minirlhf.errors import InputError, shown
from minirlhf.evaluation.pairwise import RULES
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.pipeline import check_no_pipeline
from minirlhf.nearest import nearest
from minirlhf.pretrained.weights import load_reward_model
from minirlhf.rewards.functions import FileReward
from minirlhf.rewards.judges import Judge, judge_by, judge_pairs
from minirlhf.rewards.scoring import Reward, RewardModelScorer, score_completions
from minirlhf.text.tokenizer import Tokenizer


def open_reward(name: str, prompts: list[dict], device: torch.device, microbatch_tokens: int, wrap: str) -> Reward:
    """The reward of a reward model's folder, or of FILE.py:FUNCTION. A function is tried before any model samples."""
    reward = _open(name, device, microbatch_tokens, wrap)
    if isinstance(reward, FileReward):
        score_completions(reward, *_trial(prompts, ["", "yes"]), optional=True)
    return reward


def open_judge(name: str, prompts: list[dict], device: torch.device, microbatch_tokens: int, wrap: str) -> Judge:
    """A rule of `RULES`, or a judge made of a reward, or a function of pairs (prompts, firsts, seconds, rows)."""
    if name in RULES:
        return RULES[name]
    if not Path(name).exists() and not {":", "/"} & set(name):
        rules = ", ".join(RULES)
        raise InputError(
            f"--judge: needed {rules}, a reward model's folder or FILE.py:FUNCTION, got {shown(name)}"
            f"{nearest(name, RULES)}"
        )
    reward = _open(name, device, microbatch_tokens, wrap)
    if not isinstance(reward, FileReward):
        return judge_by(reward)

    def judge(prompts: list[str], firsts: list[str], seconds: list[str], rows: list[dict]) -> Sequence[float]:
        return reward.guarded(lambda: reward.function(prompts, firsts, seconds, rows))

    judge.__name__ = name
    found = judge if _takes_pairs(reward.function) else judge_by(reward)
    asked, texts, sources = _trial(prompts, ["", "yes"])
    judge_pairs(found, asked, texts, texts[::-1], sources)
    return found


def _open(name: str, device: torch.device, microbatch_tokens: int, wrap: str) -> Reward:
    if not Path(name).is_dir() and (name.endswith(".py") or ":" in name):
        return FileReward(name)
    if Path(name).is_dir():
        check_no_pipeline(Path(name))
    folder = resolve_model(name)
    model, tokenizer = load_reward_model(folder, torch.float32), Tokenizer.load(folder)
    check_vocabulary(model.config, tokenizer, folder)
    return RewardModelScorer(model.eval().to(device), tokenizer, microbatch_tokens, wrap)


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
