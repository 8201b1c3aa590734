"""What keeps a policy undecided: a bonus that adapts, and the tokens at which there is a decision at all."""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.losses.masking import check_mask


def high_entropy_mask(entropy: Tensor, mask: Tensor, share: float, threshold: Tensor | None = None) -> Tensor:
    """The `share` of the mask's tokens with the highest entropy -> [B, T] bool.

    Wang et al. 2025, arXiv:2506.01939: training on the fifth of the tokens that fork is as good as on all.

    Args:
        entropy, mask: [B, T] nats and bool.   share: in (0, 1].
        threshold:     nats, the entropy to reach where a batch is spread over ranks (`entropy_threshold` of all of it);
                       None takes that of this batch. An empty mask gives an empty mask.
    Raises: ValueError if the shapes differ, the mask is not bool or share is outside (0, 1].
    """
    check_mask("high_entropy_mask", mask, entropy=entropy)
    if threshold is None:
        threshold = entropy_threshold(entropy[mask], share)
    return mask & (entropy >= threshold)


def entropy_threshold(entropies: Tensor, share: float) -> Tensor:
    """The entropy (nats, scalar) that a `share` of [N] reaches.   Raises: ValueError if share is outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"entropy_threshold: share must be in (0, 1], got {share}")
    if not len(entropies):
        return entropies.new_zeros(())
    wide = torch.promote_types(entropies.dtype, torch.float32)  # quantile takes nothing smaller
    return torch.quantile(entropies.to(wide), 1 - share).to(entropies.dtype)


class AdaptiveEntropyController:
    """A bonus that rises by `delta` while the entropy is at or below `target`, and falls, and is not paid, above it.

    He et al. 2025, arXiv:2505.22312 (Skywork-OR1), 3.2.3.

    Args:   init: score units per nat, >= 0.   target: nats per token.   delta: score units per nat and update, > 0.
    Raises: ValueError if init < 0 or delta <= 0.
    """

    def __init__(self, init: float, target: float, delta: float) -> None:
        if init < 0 or not delta > 0:
            raise ValueError(f"AdaptiveEntropyController: needed init >= 0 and delta > 0, got {init} and {delta}")
        self.level, self.target, self.delta = init, target, delta
        self.low = True

    @property
    def coef(self) -> float:
        return self.level if self.low else 0.0

    def update(self, entropy: float) -> None:
        """Take in the mean entropy (nats per token) of one update."""
        self.low = entropy <= self.target
        self.level = max(0.0, self.level + (self.delta if self.low else -self.delta))

    def state_dict(self) -> dict[str, float]:
        return {"level": self.level, "low": float(self.low)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.level, self.low = state["level"], bool(state["low"])
