"""Entropy: the tokens with the highest entropy, and a bonus that adapts to a target."""

from __future__ import annotations

import math

from torch import Tensor

from minirlhf.losses.masking import check_mask


def high_entropy_mask(entropy: Tensor, mask: Tensor, fraction: float, threshold: Tensor | None = None) -> Tensor:
    """The `fraction` of the mask's tokens with the highest entropy -> [B, T] bool.

    Wang et al. 2025, arXiv:2506.01939: training on the 20% of tokens with the highest entropy is as good as training
    on all tokens.

    Args:
        entropy, mask: [B, T] nats and bool.   fraction: in (0, 1].
        threshold:     nats, the lowest entropy to keep: `entropy_threshold` of the whole batch, if ranks share the
                       batch; None computes it from the mask's tokens. An empty mask gives an empty mask.
    Tokens whose entropy equals the threshold are all kept.
    Raises: ValueError if the shapes differ, the mask is not bool or fraction is outside (0, 1].
    """
    check_mask("high_entropy_mask", mask, entropy=entropy)
    if threshold is None:
        threshold = entropy_threshold(entropy[mask], fraction)
    return mask & (entropy >= threshold)


def entropy_threshold(entropies: Tensor, fraction: float) -> Tensor:
    """The lowest entropy (nats, scalar) of the highest `fraction` of entropies [N]; 0 if N is 0.

    It is the k-th highest entropy, k = 1 + floor(fraction (N - 1)). These are the k entropies at or above the quantile
    1 - fraction. The threshold is an element of `entropies`, so rounding cannot move it between two elements.
    Raises: ValueError if fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"entropy_threshold: fraction must be in (0, 1], got {fraction}")
    if not len(entropies):
        return entropies.new_zeros(())
    n = len(entropies)
    k = 1 + math.floor(fraction * (n - 1) + 1e-6)  # 0.29 * 100 is 28.999999999999996
    return entropies.kthvalue(n - k + 1).values


class AdaptiveEntropyController:
    """A bonus that rises by `delta` per update while entropy <= target. Above it, the level falls and `coef` is 0.

    He et al. 2025, arXiv:2505.22312 (Skywork-OR1), 3.2.3.

    Args:   init: score units per nat, >= 0.   target: nats per token.   delta: score units per nat and update, > 0.
    Raises: ValueError if init < 0 or delta <= 0.
    """

    def __init__(self, init: float, target: float, delta: float) -> None:
        if init < 0 or not delta > 0:
            raise ValueError(f"AdaptiveEntropyController: needed init >= 0 and delta > 0, got {init} and {delta}")
        self.level, self.target, self.delta = float(init), target, delta
        self.low = True

    @property
    def coef(self) -> float:
        return self.level if self.low else 0.0

    def update(self, entropy: float) -> None:
        """Adapt to the mean entropy (nats per token) of one update."""
        self.low = entropy <= self.target
        self.level = max(0.0, self.level + (self.delta if self.low else -self.delta))

    def state_dict(self) -> dict[str, float]:
        return {"level": self.level, "low": float(self.low)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.level, self.low = state["level"], bool(state["low"])
