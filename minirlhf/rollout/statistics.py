"""Statistics of a rollout, over all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses import masked_moments, masked_sum, mean_and_var
from minirlhf.losses.masking import wide_dtype
from minirlhf.rollout.rollout import Rollout
from minirlhf.runtime.distributed import all_sum


def describe(rollout: Rollout) -> dict[str, float]:
    """Metrics of the samples, before any update: means over the completions of all processes; no mean of no scores."""
    mask = rollout.completion_mask
    wide = wide_dtype(mask)
    scores = rollout.scores.to(wide)
    sums = {
        "n": mask.any(-1).sum(),
        "judged": (~scores.isnan()).sum(),
        "score_mean": scores.nansum(),
        "score_sq": scores.square().nansum(),
        "kl": masked_sum((rollout.logps - rollout.ref_logps).to(wide), mask),
        "response_length": mask.sum(),
        "ended": rollout.ended.sum(),
        "mass_kept": rollout.mass_kept.sum(),
    }
    if rollout.sampler_logps is not None:
        sums["sampler_gap"] = masked_sum((rollout.logps - rollout.sampler_logps).abs().to(wide), mask)
    if rollout.turn_numbers is not None:
        sums["turns"] = rollout.turn_numbers.amax(-1).sum()
        sums["forced_tokens"] = (rollout.attention_mask & ~mask & (mask.cumsum(-1) > 0)).sum()
    totals = all_sum(torch.stack([value.to(wide) for value in sums.values()])).tolist()
    n, judged, total, total_sq, *rest = totals
    means = {name: value / n for name, value in zip(list(sums)[4:], rest, strict=True)}
    if "sampler_gap" in means:
        means["sampler_gap"] /= means["response_length"]  # a mean over tokens
    if not judged:
        return means
    mean = total / judged
    variance = max(total_sq / judged - mean**2, 0.0) * judged / max(judged - 1, 1)
    return {"score_mean": mean, "score_std": variance**0.5, **means}


def explained_variance(rollout: Rollout, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over all tokens of all processes."""
    mask = rollout.completion_mask
    residual, spread = moments_of_all(returns - rollout.values, mask), moments_of_all(returns, mask)
    return float(1 - mean_and_var(residual)[1] / mean_and_var(spread)[1].clamp(min=1e-8))


def moments_of_all(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_moments` over all processes."""
    return all_sum(torch.stack(masked_moments(x, mask))).unbind()
