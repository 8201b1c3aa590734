"""The model of process rewards: a score for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import linear_at_full_precision, trainable
from minirlhf.model.transformer import Transformer


class ProcessRewardModel(nn.Module):
    """A score per token, read at the token itself (unshifted): ids [B, T], mask [B, T] bool -> scores [B, T]."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = transformer.model
        like = {"device": transformer.device, "dtype": trainable(transformer.dtype)}
        self.score = nn.Linear(transformer.config.hidden_size, 1, **like)
        nn.init.normal_(self.score.weight, std=(transformer.config.hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.score.bias)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores = linear_at_full_precision(self.score, self.model(input_ids, attention_mask)).squeeze(-1)
        return torch.where(attention_mask, scores, 0)
