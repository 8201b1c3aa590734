"""BCO's prompt weighting: a classifier of prompts whose answers are liked. N rows, D width of the embedding.

Jung et al. 2024, arXiv:2404.04656, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minirlhf.data.encoding import EncodedRow


class PromptClassifier:
    """Logistic regression on the mean embedding of a prompt, fitted to rows with source["desirable"]."""

    def __init__(self, embedding: nn.Embedding, rows: Sequence[EncodedRow]) -> None:
        self.embedding, self.device = embedding, embedding.weight.device
        desirable = torch.tensor([row.source["desirable"] for row in rows], device=self.device)
        self.weights = fit_logistic(self._features(rows), desirable)

    def logits(self, rows: Sequence[EncodedRow]) -> Tensor:
        """[N]: the sigmoid is the chance that an answer to the row's prompt is liked."""
        return self._features(rows) @ self.weights

    @torch.no_grad()
    def _features(self, rows: Sequence[EncodedRow]) -> Tensor:
        """[N, D + 1] fp32: the mean embedding of each prompt, and 1."""
        means = [self.embedding(torch.tensor(row.prompt, device=self.device)).mean(0) for row in rows]
        return nn.functional.pad(torch.stack(means).float(), (0, 1), value=1.0)


def fit_logistic(features: Tensor, positive: Tensor) -> Tensor:
    """Logistic regression with a small L2 penalty: features [N, D + 1], positive [N] bool -> weights [D + 1]."""
    weights = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")
    signs = torch.where(positive, 1.0, -1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        nll = -nn.functional.logsigmoid(signs * (features @ weights)).mean()
        loss = nll + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()
