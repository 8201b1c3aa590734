"""Supervised fine-tuning: maximum likelihood of the responses, given their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.losses import cross_entropy, dft_loss, fused_linear_loss, load_balancing_loss, masked_mean
from minirlhf.model.experts import recorded_routing
from minirlhf.model.policy import Policy
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class SFTConfig(OfflineConfig):
    steps: int = 1800  # [steps] one batch each
    batch_size: int = 16  # [rows] per step, over all processes
    lr: float = 8e-3  # [per update] peak learning rate; large, because the model is small
    loss: Literal["nll", "dft"] = "nll"  # [-] dft weighs each token by its probability
    train_on: Literal["completion", "all"] = "completion"  # [-] all: the prompts' tokens are learned too
    router_loss_coef: float | None = None  # [-] weight of the router loss; none: what a mixture's config.json says
    fused: bool = False  # [-] take the gradient of head and loss together, chunk by chunk: faster, less in the open

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "router_loss_coef", least=0)


LOSSES = {"nll": cross_entropy, "dft": dft_loss}


class SFTTrainer:
    """A policy without value head, and the number of updates the run will make (the schedule's length).

    Raises: InputError if the policy has a value head, which no loss here would train, or a router loss but no router.
    """

    headline = ("loss", "eval/loss")
    best = ("eval/loss", "min")

    def __init__(self, policy: Policy, tokenizer: Tokenizer, config: SFTConfig, updates: int) -> None:
        if policy.value_head is not None:
            raise InputError("SFTTrainer: needed a policy without value head, which no loss here would train")
        shape, self.router_loss_coef = policy.transformer.config, config.router_loss_coef
        if self.router_loss_coef is None:
            self.router_loss_coef = shape.router_aux_loss_coef
        elif self.router_loss_coef > 0 and not shape.num_experts:
            raise InputError(
                f"SFTTrainer: router_loss_coef needs a mixture of experts, got {self.router_loss_coef} and a policy "
                "without; leave it out"
            )
        self.config, self.tokenizer = config, tokenizer
        self.models = {"policy": policy}
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows; the loss is the mean over all its learned tokens, however it is split.

        The router loss is no mean over tokens: each micro-batch has its own, weighed by its share of the tokens read.
        """
        rows = [draw.row for draw in batch]
        prompts = self.config.train_on == "all"
        tokens = sum(len(row.responses[0]) + prompts * (len(row.prompt) - 1) for row in rows)  # nobody predicts BOS
        read = sum(len(row.prompt) + len(row.responses[0]) for row in rows)
        counts = all_sum(torch.tensor([tokens, read], dtype=torch.float32, device=self.device))
        sums: dict[str, Tensor] = {}
        groups = self._groups(rows)
        for group in groups:
            with gradient_sync(self.policy, group is groups[-1]):
                parts = self.losses(self._pad(group), *counts)
                backward(parts["loss"])
            sums = {name: sums.get(name, 0) + part.detach() for name, part in parts.items()}
        return self.optimizer.step(sums)

    def losses(self, batch: Sequences, count: Tensor, read: Tensor) -> dict[str, Tensor]:
        """This micro-batch's share of the loss and of what it reports; `count` tokens are learned, `read` are real."""
        with recorded_routing(self.models["policy"]) as routed:
            loss, entropy = self._likelihood(batch, count)
        parts = {"loss": loss, "entropy": entropy}
        if routed:
            top_k = self.models["policy"].transformer.config.num_experts_per_tok
            balance = load_balancing_loss(torch.stack(routed), batch.attention_mask, top_k)
            parts["router_loss"] = balance * batch.attention_mask.sum() / read
            parts["loss"] = loss + self.router_loss_coef * parts["router_loss"]
        return parts

    def _likelihood(self, batch: Sequences, count: Tensor) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the mean loss and, detached, of the mean entropy."""
        mask, token_loss = batch.completion_mask, LOSSES[self.config.loss]
        if self.config.train_on == "all":
            mask = batch.attention_mask.clone()
            mask[:, 0] = False
        if self.config.fused:
            options = {"input_ids": batch.input_ids, "token_loss": token_loss, "mask": mask, "count": count}
            head = partial(fused_linear_loss, **options)
            loss, _, entropy = self.policy(batch.input_ids, batch.attention_mask, head=head)
            return loss, masked_mean(entropy, mask, count)
        now = self.policy(batch.input_ids, batch.attention_mask)
        return masked_mean(token_loss(now.logps), mask, count), masked_mean(now.entropy.detach(), mask, count)

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss}: mean nats per response token on held-out rows; and what it writes for the first four, as samples."""
        total = torch.zeros((), device=self.device)
        for group in self._groups(rows):
            batch = self._pad(group)
            logps = self.models["policy"](batch.input_ids, batch.attention_mask).logps
            total += masked_mean(cross_entropy(logps), batch.completion_mask, count=1)
        shown = rows[:4]
        longest = SamplingConfig(
            max_tokens=max(len(row.responses[0]) for row in shown), stop_ids=self.tokenizer.eos_ids
        )
        completions = generate(self.models["policy"].transformer, [row.prompt for row in shown], longest)
        texts = self.tokenizer.decode_completions([completion.ids for completion in completions])
        wanted = self.tokenizer.decode_completions([row.responses[0] for row in shown])
        self.samples = [
            {"prompt": self.tokenizer.decode(row.prompt), "completion": text, "reference": reference}
            for row, text, reference in zip(shown, texts, wanted, strict=True)
        ]
        return {"loss": total.item() / sum(len(row.responses[0]) for row in rows)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        lengths = [len(row.prompt) + len(row.responses[0]) for row in rows]
        return [[rows[i] for i in group] for group in microbatches(lengths, self.config.microbatch_tokens)]

    def _pad(self, rows: list[EncodedRow]) -> Sequences:
        return pad_sequences(
            [r.prompt for r in rows], [r.responses[0] for r in rows], self.tokenizer.pad_id, self.device
        )
