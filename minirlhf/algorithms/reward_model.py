"""Reward modelling: learn from pairs which completion people prefer (Bradley-Terry; Ouyang et al. 2022, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import check_range
from minirlhf.losses import bradley_terry_loss, reward_centering_loss
from minirlhf.model.policy import RewardModel
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class RewardConfig(OfflineConfig):
    steps: int = 800  # [steps] one batch each
    lr: float = 4e-3  # [per update] peak learning rate; large, because the model is small
    lr_final: float = 0.0  # [share of lr] where the cosine ends; at 0.1 the last pairs still move the ranking
    center_coef: float = 0.01  # [nats per score^2] pulls the mean score to 0; 0 leaves it free

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "center_coef", least=0)


class RewardTrainer:
    """A reward model, and the number of updates the run will make (the schedule's length)."""

    headline = ("loss", "accuracy", "eval/accuracy")
    best = ("eval/accuracy", "max")

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, config: RewardConfig, updates: int) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.models = {"reward": model}
        self.model = wrap(model)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = model.score.weight.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of pairs. A row's "margin", if it has one, is what the chosen score should win by."""
        rows = [draw.row for draw in batch]
        count = all_sum(torch.tensor(float(len(rows)), device=self.device))
        sums = {name: torch.zeros((), device=self.device) for name in ("loss", "accuracy", "margin")}
        groups = self._groups(rows)
        for group in groups:
            with gradient_sync(self.model, group is groups[-1]):
                chosen, rejected = self._score(self.model, group)
                margin = torch.tensor([float(row.source.get("margin", 0.0)) for row in group], device=self.device)
                losses = bradley_terry_loss(
                    chosen_scores=chosen, rejected_scores=rejected, margin=margin.to(chosen.dtype)
                )
                centring = reward_centering_loss(chosen_scores=chosen, rejected_scores=rejected)
                loss = (losses + self.config.center_coef * centring).sum() / count
                backward(loss)
            sums["loss"] += loss.detach()
            sums["accuracy"] += (chosen > rejected).sum() / count
            sums["margin"] += (chosen - rejected).detach().sum() / count
        return self.optimizer.step(sums)

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy, loss} on held-out pairs; the first four with their scores as samples."""
        right = loss = torch.zeros((), device=self.device)
        for group in self._groups(rows):
            chosen, rejected = self._score(self.models["reward"], group)
            right = right + (chosen > rejected).sum()
            loss = loss + bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected).sum()
        chosen, rejected = self._score(self.models["reward"], rows[:4])
        self.samples = [self._sample(*shown) for shown in zip(rows, chosen.tolist(), rejected.tolist(), strict=False)]
        return {"accuracy": right.item() / len(rows), "loss": loss.item() / len(rows)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])

    def _score(self, model: nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor]:
        """Chosen and rejected in one forward -> their scores, [B] each."""
        responses = [row.responses[side] for side in (0, 1) for row in rows]
        batch = pad_sequences([row.prompt for row in rows] * 2, responses, self.tokenizer.pad_id, self.device)
        return model(batch.input_ids, batch.attention_mask).chunk(2)

    def _sample(self, row: EncodedRow, chosen_score: float, rejected_score: float) -> dict[str, Any]:
        chosen, rejected = self.tokenizer.decode_completions(row.responses)
        scores = {"chosen_score": chosen_score, "rejected_score": rejected_score}
        return {"prompt": self.tokenizer.decode(row.prompt), "chosen": chosen, "rejected": rejected, **scores}

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
        return [[rows[i] for i in group] for group in microbatches(lengths, self.config.microbatch_tokens // 2)]
