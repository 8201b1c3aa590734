"""Reward modelling: pairs of completions teach the preferences of people (Bradley-Terry; Ouyang et al. 2022, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, drawn, pad_rows, row_groups
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import check_range
from minirlhf.losses import bradley_terry_loss, reward_centering_loss
from minirlhf.model.policy import RewardModel
from minirlhf.runtime.distributed import all_sum, backward, local_rows, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class RewardConfig(OfflineConfig):
    steps: int = 3600  # [steps] one batch each
    batch_size: int = 16  # [pairs] per step, over all processes
    lr: float = 2e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    lr_final: float = 0.0  # [share of lr] where the cosine ends; at 0.1 the last pairs still move the ranking
    weight_decay: float = 0.3  # [per lr] at 0 the model ranks held-out pairs worse
    center_coef: float = 0.01  # [nats per score^2] pulls the mean score to 0; 0 leaves it free

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "center_coef", least=0)


class RewardTrainer:
    """Reward model, pairs -> a model that scores chosen completions higher.

    updates: the number of updates of the whole run: the schedule's length.
    """

    headline = ("loss", "accuracy", "eval/accuracy")
    best = ("eval/accuracy", "max")
    saved = ("optimizer",)  # a checkpoint keeps these beside the weights of `models`

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, config: RewardConfig, updates: int) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.model, self.wrapped_model = model, wrap(model)
        self.models = {"reward": model}
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = model.score.weight.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of pairs. A row may hold a "margin": how much higher the chosen score should be."""
        from minirlhf.algorithms.margins import margins_of  # here, so that the core loads no leaf

        rows = drawn(batch, 2)
        count = all_sum(torch.tensor(float(len(rows)), device=self.device))
        sums = Sums()
        for group in micro_batches(self._groups(rows), self.wrapped_model):
            chosen, rejected = self.score(self.wrapped_model, group)
            margin = torch.tensor(margins_of(group), device=self.device)
            losses = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected, margin=margin.to(chosen.dtype))
            centring = reward_centering_loss(chosen_scores=chosen, rejected_scores=rejected)
            losses = losses + self.config.center_coef * centring
            backward(losses.sum() / count)
            sums.add(count, loss=losses, accuracy=chosen > rejected, margin=chosen - rejected)
        return self.optimizer.step(sums)

    def score(self, model: nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor]:
        """Scores [B] of the chosen and of the rejected completions, from one forward."""
        batch = pad_rows(rows, (0, 1), self.tokenizer.pad_id, self.device)
        return model(batch.input_ids, batch.attention_mask).chunk(2)

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy, loss} on held-out pairs; {} without pairs. The first four pairs with scores become samples."""
        if not rows:
            return {}
        from minirlhf.runtime.sharing import in_order, shared_sums  # here, so that the core loads no leaf

        def measures(group: list[EncodedRow]) -> dict[str, Tensor]:
            chosen, rejected = self.score(self.model, group)
            loss = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)
            return {"accuracy": chosen > rejected, "loss": loss}

        totals = shared_sums(rows, self._groups, measures, self.model)
        scores = in_order(torch.stack(self.score(self.model, local_rows(rows[:4])), dim=-1).tolist())
        self.samples = [self._sample(row, *pair) for row, pair in zip(rows, scores, strict=False)]
        return {name: total / len(rows) for name, total in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)

    def _sample(self, row: EncodedRow, chosen_score: float, rejected_score: float) -> dict[str, Any]:
        chosen, rejected = self.tokenizer.decode_completions(row.responses)
        scores = {"chosen_score": chosen_score, "rejected_score": rejected_score}
        return {"prompt": self.tokenizer.decode(row.prompt), "chosen": chosen, "rejected": rejected, **scores}

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        return row_groups(rows, self.config.microbatch_tokens, sides=2)
