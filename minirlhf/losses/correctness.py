"""The loss of reward models that learn from right and wrong answers, or from right and wrong steps of an answer.

Unlike a loss of pairs, it fixes the zero point of the scores. B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.losses.masking import check_mask


def correctness_loss(scores: Tensor, *, labels: Tensor) -> Tensor:
    """-log sigmoid(score) where right, -log sigmoid(-score) where wrong -> nats, in the shape of scores.

    At the last token of an answer, it trains an outcome reward model (Cobbe et al. 2021, arXiv:2110.14168). At the
    last token of each step, it trains a process reward model (Lightman et al. 2023, arXiv:2305.20050). sigmoid(score)
    is the probability of "right". Scores are read at their token, unshifted.

    Args:   scores: [B] or [B, T] nats (log-odds).   labels: the same shape, bool.
    Raises: ValueError if labels are not bool.
    """
    check_mask("correctness_loss", labels, scores=scores)
    return -F.logsigmoid(torch.where(labels, scores, -scores))
