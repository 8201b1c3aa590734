"""Supervised fine-tuning: maximum likelihood of the responses, given their prompts. B rows, T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, Sequences, drawn, pad_rows, row_groups
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.losses import cross_entropy, dft_loss, masked_mean
from minirlhf.model.policy import Policy, check_policy
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class SFTConfig(OfflineConfig):
    steps: int = 1800  # [steps] one batch each
    batch_size: int = 16  # [rows] per step, over all processes
    lr: float = 8e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    loss: Literal["nll", "dft"] = "nll"  # [-] dft multiplies each token's nll by the token's probability
    router_loss_coef: float | None = None  # [-] weight of the router loss; none: the value in a mixture's config.json

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "router_loss_coef", least=0)


LOSSES = {"nll": cross_entropy, "dft": dft_loss}


class SFTTrainer:
    """Policy, rows {prompt, response} -> a policy that writes such responses.

    updates: the number of updates of the whole run: the schedule's length.
    Raises: InputError if the policy has a value head, or if a router loss is set for a policy without experts.
    """

    headline = ("loss", "eval/loss")
    best = ("eval/loss", "min")
    saved = ("optimizer",)  # a checkpoint keeps these beside the weights of `models`

    def __init__(self, policy: Policy, tokenizer: Tokenizer, config: SFTConfig, updates: int) -> None:
        check_policy("SFTTrainer", policy)
        if config.router_loss_coef and not policy.transformer.config.num_experts:
            raise InputError(
                f"SFTTrainer: router_loss_coef needs a mixture of experts, got {config.router_loss_coef} and a dense "
                "policy; leave it out"
            )
        self.config, self.tokenizer = config, tokenizer
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows: the mean loss over all tokens that the batch teaches."""
        rows = drawn(batch, 1)
        learned_tokens, all_tokens = self.count_tokens(rows)
        sums = Sums()
        for group in micro_batches(row_groups(rows, self.config.microbatch_tokens), self.wrapped_policy):
            sequences = self._pad(group)
            if self.policy.transformer.config.num_experts:
                from minirlhf.algorithms.sft_experts import losses_with_router  # here, so that the core loads no leaf

                terms = losses_with_router(self, sequences, learned_tokens, all_tokens)
            else:
                terms = self.losses(sequences, learned_tokens)
            backward(terms["loss"])
            sums.add(**terms)
        return self.optimizer.step(sums)

    def count_tokens(self, rows: list[EncodedRow]) -> Tensor:
        """-> (learned tokens, all tokens) in the rows of all processes."""
        counts = sum(sum(row.mask()) for row in rows), sum(len(row.prompt) + len(row.responses[0]) for row in rows)
        return all_sum(torch.tensor(counts, dtype=torch.float32, device=self.device))

    def losses(self, batch: Sequences, count: Tensor) -> dict[str, Tensor]:
        """{loss, entropy} of a micro-batch: sums over its learned tokens, divided by `count`."""
        from minirlhf.losses.fused import fused_linear_loss  # here, so that the core loads no leaf

        mask, token_loss = batch.completion_mask, LOSSES[self.config.loss]
        # masked_mean(token_loss(logps), mask, count), with its gradient taken while the logits exist
        head = partial(fused_linear_loss, input_ids=batch.input_ids, token_loss=token_loss, mask=mask, count=count)
        loss, _, entropy = self.wrapped_policy(batch.input_ids, batch.attention_mask, head=head, wanted=mask)
        return {"loss": loss, "entropy": masked_mean(entropy, mask, count)}

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss}: mean nats per learned token on held-out rows; {} without rows. The first four rows are samples."""
        from minirlhf.algorithms.sft_samples import written  # here, so that the core loads no leaf
        from minirlhf.runtime.sharing import shared_sums

        def losses(group: list[EncodedRow]) -> dict[str, Tensor]:
            batch = self._pad(group)
            inputs, mask = (batch.input_ids, batch.attention_mask), batch.completion_mask
            logps = self.policy(*inputs, wanted=mask, entropy=False).logps
            return {"loss": torch.where(mask, cross_entropy(logps), 0)}

        groups = partial(row_groups, max_tokens=self.config.microbatch_tokens)
        totals = shared_sums(rows, groups, losses, self.policy)
        self.samples, tokens = written(self, rows[:4]), sum(sum(row.mask()) for row in rows)
        return {name: total / tokens for name, total in totals.items() if tokens}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)

    def _pad(self, rows: list[EncodedRow]) -> Sequences:
        return pad_rows(rows, (0,), self.tokenizer.pad_id, self.device)
