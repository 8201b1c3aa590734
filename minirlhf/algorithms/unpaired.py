"""Learning from single answers that people liked or not: KTO, BCO. B rows, T tokens.

KTO: Ethayarajh et al. 2024, arXiv:2402.01306. BCO: Jung et al. 2024, arXiv:2404.04656.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.losses import (
    RunningMean,
    apo_zero_unpaired_loss,
    bco_loss,
    density_ratio,
    kto_kl,
    kto_loss,
    sum_logps,
)
from minirlhf.model.policy import Policy, check_reference, disable_dropout
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, world_size, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class UnpairedConfig(OfflineConfig):
    loss: Literal["kto", "apo_zero", "bco"] = "kto"  # [-] a utility, that with a KL of 0, or a classifier
    beta: float = 0.1  # [score per nat] what a nat of KL costs
    batch_size: int = 128  # [rows] per step, over all processes
    desirable_weight: float = 1.0  # [-] of liked answers in KTO
    undesirable_weight: float = 1.0  # [-] of disliked ones
    prompt_weighting: bool = False  # [-] BCO: weigh disliked answers whose prompts look like the liked ones' up

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0)
        check_range(self, "desirable_weight", "undesirable_weight", least=0)
        if self.prompt_weighting and self.loss != "bco":
            raise InputError(f"UnpairedConfig: prompt_weighting belongs to bco, got {self.loss}")


def single_rows(pairs: list[EncodedRow], context: int) -> list[EncodedRow]:
    """Each pair as two rows: source["desirable"] says which, and the second response is another prompt's, for KTO's KL.

    The partner is a function of the data alone, so that neither batch nor process changes it; it is cut where the
    context (tokens) ends.
    """
    rows = [
        EncodedRow({**row.source, "desirable": side == 0}, row.prompt, (row.responses[side],))
        for row in pairs
        for side in (0, 1)
    ]
    strangers = (_stranger(rows, i).responses[0][: context - len(row.prompt)] for i, row in enumerate(rows))
    return [replace(row, responses=(*row.responses, other)) for row, other in zip(rows, strangers, strict=True)]


def _stranger(rows: list[EncodedRow], i: int) -> EncodedRow:
    """The nearest row before row i, of its own side, that has another prompt; its neighbour if all have the same."""
    others = (rows[i - back] for back in range(2, len(rows) + 1, 2))
    return next((row for row in others if row.prompt != rows[i].prompt), rows[i - 2])


class UnpairedTrainer:
    """Policy, frozen reference, single answers -> better policy.   Raises: InputError if the two share weights."""

    headline = ("loss", "accuracy", "kl", "eval/gold_reward")
    best = ("eval/accuracy", "max")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy,
        tokenizer: Tokenizer,
        config: UnpairedConfig,
        updates: int,
        *,
        rows: list[EncodedRow] = (),
    ) -> None:
        """`rows`: all rows, which `prompt_weighting` learns from."""
        check_reference("UnpairedTrainer", policy, ref_policy)
        if policy.value_head is not None:
            raise InputError("UnpairedTrainer: needed a policy without value head, which no loss here would train")
        self.config, self.tokenizer = config, tokenizer
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.models = {"policy": policy}
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        if config.prompt_weighting and not rows:
            raise InputError("UnpairedTrainer: prompt_weighting learns from all rows, got none; pass rows=")
        self.classifier = fit_prompts(self._features(rows), self._desirable(rows)) if config.prompt_weighting else None
        self.shift = RunningMean()
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows."""
        rows = [draw.row for draw in batch]
        groups = self._groups(rows)
        kl = self._kl(groups) if self.config.loss == "kto" else torch.zeros((), device=self.device)
        count = all_sum(torch.tensor(float(len(rows)), device=self.device))
        sums: dict[str, Tensor] = {}
        for group in groups:
            with gradient_sync(self.policy, group is groups[-1]):
                losses, rewards = self.losses(self.policy, group, kl)
                loss = losses.sum() / count
                backward(loss)
            right = (rewards > self._threshold(kl)) == self._desirable(group)
            terms = {"loss": loss.detach(), "accuracy": right.sum() / count, "reward_mean": rewards.sum() / count}
            for name, term in {**terms, "kl": kl * len(group) / count}.items():
                sums[name] = sums.get(name, 0) + term
        metrics = self.optimizer.step(sums)
        n = len(rows) * world_size()  # `share` hands out equal parts
        self.shift.update(metrics["reward_mean"] * n, n)
        return metrics

    def losses(self, policy: torch.nn.Module, rows: list[EncodedRow], kl: Tensor) -> tuple[Tensor, Tensor]:
        """-> (losses [B], implicit rewards [B], detached)."""
        config, desirable = self.config, self._desirable(rows)
        ratios = self._logratios(policy, self._pad(rows, own=True))
        if config.loss == "kto":
            weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
            losses = kto_loss(ratios, desirable=desirable, kl=kl, beta=config.beta, **weights)
        elif config.loss == "apo_zero":
            losses = apo_zero_unpaired_loss(ratios, desirable=desirable, beta=config.beta)
        else:
            weights = (
                density_ratio((self._features(rows) @ self.classifier).sigmoid()) if config.prompt_weighting else 1.0
            )
            options = {"shift": self.shift.mean, "beta": config.beta, "undesirable_weights": weights}
            losses = bco_loss(ratios, desirable=desirable, **options)
        return losses, config.beta * ratios.detach()

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy}: held-out rows whose implicit reward lies on the right side of the loss's zero point."""
        groups = self._groups(rows)
        kl = self._kl(groups) if self.config.loss == "kto" else torch.zeros((), device=self.device)
        right = 0.0
        for group in groups:
            _, rewards = self.losses(self.models["policy"], group, kl)
            right += ((rewards > self._threshold(kl)) == self._desirable(group)).sum().item()
        return {"accuracy": right / len(rows)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "shift": self.shift.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.shift.load_state_dict(state["shift"])

    def _threshold(self, kl: Tensor) -> Tensor | float:
        return self.shift.mean if self.config.loss == "bco" else self.config.beta * kl

    def _logratios(self, policy: torch.nn.Module, batch: Sequences) -> Tensor:
        ids, mask = batch.input_ids, batch.attention_mask
        with torch.no_grad():
            ref = self.ref_policy(ids, mask).logps
        return sum_logps(policy(ids, mask).logps - ref, batch.completion_mask)

    @torch.no_grad()
    def _kl(self, groups: list[list[EncodedRow]]) -> Tensor:
        """KTO's zero point, over all processes: what the policy makes of answers that belong to other prompts."""
        ratios = torch.cat([self._logratios(self.models["policy"], self._pad(group, own=False)) for group in groups])
        total, count = all_sum(torch.stack([ratios.sum(), ratios.new_tensor(len(ratios))]))
        return kto_kl(ratios, total=total, count=count)

    @torch.no_grad()
    def _features(self, rows: list[EncodedRow]) -> Tensor:
        """[B, D + 1]: the mean embedding of each prompt by the reference, and 1."""
        embed = self.ref_policy.transformer.model.embed_tokens
        means = [embed(torch.tensor(row.prompt, device=self.device)).mean(0) for row in rows]
        return torch.nn.functional.pad(torch.stack(means).float(), (0, 1), value=1.0)

    def _desirable(self, rows: list[EncodedRow]) -> Tensor:
        return torch.tensor([row.source["desirable"] for row in rows], device=self.device)

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
        return [[rows[i] for i in group] for group in microbatches(lengths, self.config.microbatch_tokens)]

    def _pad(self, rows: list[EncodedRow], own: bool) -> Sequences:
        responses = [row.responses[0 if own else 1] for row in rows]
        return pad_sequences([row.prompt for row in rows], responses, self.tokenizer.pad_id, self.device)


def fit_prompts(features: Tensor, desirable: Tensor) -> Tensor:
    """Logistic regression [N, D + 1], [N] bool -> weights [D + 1]: which prompts have liked answers."""
    weights = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")
    signs = torch.where(desirable, 1.0, -1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = -torch.nn.functional.logsigmoid(signs * (features @ weights)).mean()
        loss = fit + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()
