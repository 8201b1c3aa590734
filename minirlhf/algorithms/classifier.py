"""A reward model from single texts with a label: a classifier (Ziegler et al. 2019, arXiv:1909.08593, section 3.1.1).

The score at the last token of a text is the log-odds of the label "good".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirlhf.algorithms.process_reward import ProcessRewardTrainer
from minirlhf.data.batches import pad_rows
from minirlhf.data.encoding import EncodedRow
from minirlhf.losses import correctness_loss


class ClassifierTrainer(ProcessRewardTrainer):
    """Reward model, rows {prompt, response, label} as ids -> a model with positive scores for good texts.

    As `ProcessRewardTrainer`, with one label for each row. The model is a `RewardModel`, so its folder serves all
    programs as `--reward DIR`. `RewardConfig.center_coef` is not read, because the labels fix the zero of the scores.
    """

    def labels_of(self, row: EncodedRow) -> list[bool]:
        return [row.source["label"]]

    def losses(self, model: nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor, Tensor]:
        """-> (losses, 1 where the score has the label's sign, mask), [B, 1] each."""
        batch = pad_rows(rows, (0,), self.tokenizer.pad_id, self.device)
        scores = model(batch.input_ids, batch.attention_mask)[:, None]
        labels = torch.tensor([self.labels_of(row) for row in rows], device=self.device)
        correct = ((scores > 0) == labels).to(scores.dtype)
        return correctness_loss(scores, labels=labels), correct, torch.ones_like(labels)
