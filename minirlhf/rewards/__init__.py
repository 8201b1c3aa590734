"""Reward functions, reward models with the same signature, and judges."""

import importlib
from typing import Any

from minirlhf.rewards.scoring import Gold, Reward, RewardModelScorer, score_completions

# Names of leaves: their files are loaded on first use, so that the core does not need them.
LEAVES = {
    "minirlhf.rewards.judges": "Judge judge_by",
}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
