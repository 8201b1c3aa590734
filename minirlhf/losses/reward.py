"""Losses of reward models that learn from B pairs. Every function raises ValueError if the shapes differ."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.masking import check_same_shape


def bradley_terry_loss(*, chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) -> [B] nats.

    Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, Eq. 1. The margin is from Touvron et al. 2023,
    arXiv:2307.09288, Eq. 2.

    Args:
        chosen_scores, rejected_scores: [B] score units.
        margin: [B] score units by which the chosen answer should win, larger for clearer pairs; None means 0.
    """
    check_same_shape("bradley_terry_loss", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    difference = chosen_scores - rejected_scores
    if margin is not None:
        check_same_shape("bradley_terry_loss", chosen_scores=chosen_scores, margin=margin)
        difference = difference - margin
    return -F.logsigmoid(difference)


def reward_centering_loss(*, chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """(chosen + rejected)^2 -> [B] squared score units: moves the mean score to 0; Bradley-Terry does not fix it.

    Eisenstein et al. 2023, arXiv:2312.09244, section 2; use it with a small coefficient (0.01).
    """
    check_same_shape("reward_centering_loss", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (chosen_scores + rejected_scores).square()
