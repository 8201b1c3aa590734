"""Scores of samples, checked before anything learns from them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minirlhf.errors import InputError, shown

ImageReward = Callable[[Tensor, Tensor], Tensor]  # (samples [B, ...], labels [B]) -> scores [B]


def scored(reward: ImageReward, samples: Tensor, label: Tensor) -> Tensor:
    """reward(samples, label), checked -> [B].   Raises: InputError for any other type or shape, and for NaN."""
    name, scores = getattr(reward, "__name__", type(reward).__name__), reward(samples, label)
    if not isinstance(scores, Tensor) or scores.shape != samples.shape[:1]:
        found = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise InputError(f"reward {name}: needed a tensor [{len(samples)}], a score for each sample, got {found}")
    if bad := (~scores.detach().isfinite()).nonzero().flatten().tolist():
        raise InputError(
            f"reward {name}: needed finite scores, got {scores[bad[0]].item()} for sample {bad[0]} (and "
            f"{len(bad) - 1} more); nothing was learned from this batch"
        )
    return scores
