"""Learning from pairs without a reward model: DPO (Rafailov et al. 2023, arXiv:2305.18290) and its family.

`DPOTrainer.losses` shows the paper's Eq. 7. For every other paper, a row of the table LOSSES in
dpo_recipes.py replaces Eq. 7. B pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minirlhf.adapters.lora import adapter_names
from minirlhf.algorithms.dpo_recipes import LINKS, LOSSES, DPOConfig
from minirlhf.data.batches import Draw, Sequences, drawn, pad_rows, row_groups
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.losses import (
    RunningMean,
    desensitised_logps,
    dpo_loss,
    linear_log_collision,
    masked_sum,
    mean_logps,
    wpo_weights,
)
from minirlhf.model.mixture import move_towards
from minirlhf.model.policy import Policy, check_policy, disable_dropout
from minirlhf.runtime.distributed import all_sum, backward, world_size, wrap
from minirlhf.runtime.sharing import shared_sums
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


class DPOTrainer:
    """Policy, frozen reference (None for a loss without reference), pairs -> better policy.

    updates: the number of updates of the whole run: the schedule's length.
    Raises: InputError if the reference is missing or shares weights with the policy; see `check_models`.
    """

    headline = ("loss", "accuracy", "margin", "eval/gold_reward")
    best = ("eval/accuracy", "max")
    ref_sides = (0, 1)  # responses of a row that the reference reads
    saved = ("optimizer", "shift", "steps_done")  # a checkpoint keeps these beside the weights of `models`

    def __init__(
        self, policy: Policy, ref_policy: Policy | None, tokenizer: Tokenizer, config: DPOConfig, updates: int
    ) -> None:
        check_models(policy, ref_policy, config)
        self.config, self.tokenizer, self.row = config, tokenizer, LOSSES[config.loss]
        self.ref_policy = ref_policy.requires_grad_(False).eval() if config.uses_reference else None
        disable_dropout(policy)
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        if config.ref_update_every:  # a resumed run needs the moved reference
            self.models["reference"] = self.ref_policy
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.shift, self.steps_done = RunningMean(), 0  # bco_pair's shift: the mean of all implicit rewards
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of pairs: the mean loss over all pairs."""
        rows = drawn(batch, 2)
        sizes = [float(len(rows)), float(sum(sum(row.mask()) for row in rows))]
        own = torch.tensor(sizes, device=self.device)
        pairs, chosen_tokens = all_sum(own)
        sums = Sums()
        for group in micro_batches(self._groups(rows), self.wrapped_policy):
            losses, nll, terms = self.losses(self.wrapped_policy, group)
            loss = losses.sum() / pairs + self.nll_coef * nll / chosen_tokens
            backward(loss)
            sums.add(loss=loss)
            sums.add(pairs, **terms)
        metrics = self.optimizer.step({**sums, "pairs": own[0]})
        n = metrics.pop("pairs")
        self.shift.update((metrics["chosen_reward"] + metrics["rejected_reward"]) * n, 2 * n)
        self.steps_done += 1
        if self.config.ref_update_every and self.steps_done % self.config.ref_update_every == 0:
            move_towards(self.ref_policy, self.policy, self.config.ref_update_mix)
        return metrics

    def losses(self, policy: torch.nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-> (loss of each pair [B], sum of the chosen answers' nll, terms to report [B])."""
        config = self.config
        chosen, rejected, ref_chosen, ref_rejected, weights, nll = self._numbers_of(policy, rows)
        pairs = {"chosen_logps": chosen, "rejected_logps": rejected}
        pairs |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
        if config.loss == "sigmoid" and config.divergence == "reverse_kl":
            # Eq. 7: -log sigmoid(beta * margin),  margin = (chosen - ref_chosen) - (rejected - ref_rejected)
            losses = dpo_loss(**pairs, beta=config.beta, label_smoothing=config.label_smoothing or 0.0)
        else:
            losses = self._loss_of_table(**pairs)
        # DPO's implicit reward: beta * log(policy / reference)
        chosen_reward = config.beta * (chosen - ref_chosen).detach()
        rejected_reward = config.beta * (rejected - ref_rejected).detach()
        terms = {
            "accuracy": (chosen_reward > rejected_reward).to(losses.dtype),
            "margin": chosen_reward - rejected_reward,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
            "chosen_logps": chosen,
            "rejected_logps": rejected,
        }
        return losses * weights, nll.sum(), terms

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss, accuracy, margin}: means over held-out pairs; {} without pairs.

        Accuracy and margin compare implicit rewards.
        """
        if not rows:
            return {}

        def measures(group: list[EncodedRow]) -> dict[str, Tensor]:
            losses, _, terms = self.losses(self.policy, group)
            return {"loss": losses, "accuracy": terms["accuracy"], "margin": terms["margin"]}

        models = [model for model in (self.policy, self.ref_policy) if model is not None]
        totals = shared_sums(rows, self._groups, measures, *models)
        return {name: total / len(rows) for name, total in totals.items()}

    @property
    def nll_coef(self) -> float:
        return self.row.nll if self.config.nll_coef is None else self.config.nll_coef

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)

    def _numbers_of(self, policy: torch.nn.Module, rows: list[EncodedRow]) -> Sequence[Tensor]:
        """`_numbers` of the rows. A loss that sorts needs the whole batch, and the batch may exceed a micro-batch. Then
        the forwards run by micro-batch, and again in the backward pass, with the memory of one micro-batch.
        """
        groups = row_groups(rows, self.config.microbatch_tokens, sides=2) if self.row.sorts else [rows]
        if len(groups) == 1:
            return self._numbers(policy, rows)
        parts = [checkpoint(self._numbers, policy, group, use_reentrant=False) for group in groups]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _numbers(self, policy: torch.nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, ...]:
        """-> log-probs of both answers by the policy and by the reference, and the weight of each pair, [B] each; the
        sum of the chosen answers' nll [1].
        """
        batch = pad_rows(rows, (0, 1), self.tokenizer.pad_id, self.device)
        logps = policy(batch.input_ids, batch.attention_mask, wanted=batch.completion_mask, entropy=False).logps
        chosen, rejected = self._per_answer(logps, batch)
        references = self._per_answer(self._ref_logps(batch), batch)
        weights = self._weights(logps, batch) if self.config.weighting else torch.ones_like(chosen)
        nll = masked_sum(-logps.chunk(2)[0], batch.completion_mask.chunk(2)[0])
        return chosen, rejected, *references, weights, nll[None]

    def _loss_of_table(self, **pairs: Tensor) -> Tensor:
        """The loss [B] by the function in LOSSES. It takes two log-ratios; aot alone takes the four log-probs."""
        config = self.config
        settings = {"label_smoothing": config.label_smoothing, "gamma": config.gamma, "alpha": config.alphapo_alpha}
        settings["shift"] = self.shift.mean
        options = {name: settings[name] for name in self.row.options if settings[name] is not None}
        if config.loss == "aot":
            return self.row.function(**pairs, beta=config.beta, **options)
        log_ratios = (pairs[f"{side}_logps"] - pairs[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
        return self.row.function(*map(LINKS[config.divergence], log_ratios), beta=config.beta, **options)

    def _per_answer(self, logps: Tensor, batch: Sequences) -> tuple[Tensor, Tensor]:
        """[2B, T] -> ([B] for the chosen answers, [B] for the rejected answers): one number per answer."""
        (chosen, rejected), (mask, other_mask) = logps.chunk(2), batch.completion_mask.chunk(2)
        if self.row.mean:
            return mean_logps(chosen, mask), mean_logps(rejected, other_mask)
        per_answer = partial(desensitised_logps, alpha=self.config.length_alpha)
        return per_answer(chosen, mask, other_mask=other_mask), per_answer(rejected, other_mask, other_mask=mask)

    @torch.no_grad()
    def _ref_logps(self, batch: Sequences) -> Tensor:
        """The reference's log-probs [2B, T]. Without a reference they are 0, so a log-ratio is a log-prob."""
        if self.ref_policy is None:
            return torch.zeros(batch.input_ids.shape, device=self.device)
        wanted = batch.completion_mask
        return self.ref_policy(batch.input_ids, batch.attention_mask, wanted=wanted, entropy=False).logps

    def _weights(self, logps: Tensor, batch: Sequences) -> Tensor:
        """WPO's weight of each pair [B], without gradient."""
        with torch.no_grad():
            expected = self.policy(batch.input_ids, batch.attention_mask, head=linear_log_collision)
        named = {}
        for name, both in {"logps": logps, "expected": expected, "mask": batch.completion_mask}.items():
            named[f"chosen_{name}"], named[f"rejected_{name}"] = both.chunk(2)
        return wpo_weights(**named)

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        """The rows of each loss: a micro-batch, or the whole batch for a loss that sorts."""
        return [rows] if self.row.sorts else row_groups(rows, self.config.microbatch_tokens, sides=2)


def check_models(policy: Policy, ref_policy: Policy | None, config: DPOConfig) -> None:
    """Raise InputError for models and processes that the settings cannot train."""
    check_policy("DPOTrainer", policy, ref_policy)
    if config.uses_reference and ref_policy is None:
        raise InputError(f"DPOTrainer: the loss {config.loss} needs a reference, got none; pass copy_of(policy)")
    if config.ref_update_every and config.ref_update_mix < 1 and adapter_names(policy):
        raise InputError(
            f"DPOTrainer: ref_update_mix must be 1 if adapters are trained, got {config.ref_update_mix}: "
            "mixing the matrices A and B does not mix their product"
        )
    if config.one_process and (world := world_size()) > 1:
        raise InputError(f"DPOTrainer: {config.one_process}: got {world} processes; start it without torchrun")
