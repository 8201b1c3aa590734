"""Learning from a teacher's whole distribution: on given answers, on the student's own (GKD), or as a policy (MiniLLM).

GKD: Agarwal et al. 2023, arXiv:2306.13649. MiniLLM: Gu et al. 2023, arXiv:2306.08543. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
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
from minirlhf.losses import linear_distillation_loss, masked_mean, minillm_advantages, reinforce_policy_loss
from minirlhf.losses.logprobs import linear_token_logps
from minirlhf.model.policy import Policy
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class DistillationConfig(OfflineConfig):
    algorithm: Literal["gkd", "minillm"] = "gkd"  # [-] minillm adds what a token does to the tokens after it
    beta: float = 0.5  # [-] 0: forward KL(teacher || student), 1: reverse, between: generalised Jensen-Shannon
    on_policy: float = 0.5  # [share] of steps on the student's own answers; 0 is plain distillation
    lr: float = 4e-3  # [per update] peak learning rate; large, because the model is small
    temperature: float = 1.0  # [-] of both distributions, and of sampling
    max_tokens: int = 48  # [tokens] longest answer of the student, its EOS included

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_tokens", least=1)
        check_range(self, "temperature", above=0)
        check_range(self, "beta", "on_policy", least=0, most=1)
        if self.algorithm == "minillm" and (self.beta, self.on_policy) != (1.0, 1.0):
            raise InputError(
                f"DistillationConfig: minillm is the reverse KL on its own samples: beta and on_policy must be 1, got "
                f"{self.beta} and {self.on_policy}"
            )


class DistillationTrainer:
    """Student, frozen teacher with the same tokenizer, rows {prompt, response} -> better student."""

    headline = ("loss", "on_policy", "eval/gold_reward")
    best = ("eval/loss", "min")

    def __init__(
        self,
        policy: Policy,
        teacher: Policy,
        tokenizer: Tokenizer,
        config: DistillationConfig,
        updates: int,
        *,
        seed: int = 0,
    ) -> None:
        sizes = policy.transformer.config.vocab_size, teacher.transformer.config.vocab_size
        if sizes[0] != sizes[1]:
            raise InputError(
                f"DistillationTrainer: needed one vocabulary for both, got {sizes[0]} (student) and {sizes[1]} tokens"
            )
        if policy.value_head is not None:
            raise InputError("DistillationTrainer: needed a policy without value head, which no loss here would train")
        if teacher.transformer.model.embed_tokens is policy.transformer.model.embed_tokens:
            raise InputError("DistillationTrainer: the teacher must be another model, got the student itself")
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.teacher = teacher.requires_grad_(False).eval()
        self.models = {"policy": policy}
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.steps_done = 0
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update, on the rows' answers or on the student's own; the steps' coin is keyed, not drawn."""
        own = bool(keyed_uniforms(self.seed, "distillation", self.steps_done) < self.config.on_policy)
        prompts = [draw.row.prompt for draw in batch]
        answers = self._write(batch) if own else [draw.row.responses[0] for draw in batch]
        count = all_sum(torch.tensor(float(sum(map(len, answers))), device=self.device))
        groups = microbatches(
            [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], self.config.microbatch_tokens
        )
        sums: dict[str, Tensor] = {}
        for group in groups:
            rows = [prompts[i] for i in group], [answers[i] for i in group]
            part = pad_sequences(*rows, self.tokenizer.pad_id, self.device)
            with gradient_sync(self.policy, group is groups[-1]):
                losses = self.losses(self.policy, part)
                loss = masked_mean(losses, part.completion_mask, count)
                backward(loss)
            sums["loss"] = sums.get("loss", 0) + loss.detach()
        self.steps_done += 1
        return {**self.optimizer.step(sums), "on_policy": float(own)}

    def losses(self, policy: torch.nn.Module, batch: Sequences) -> Tensor:
        """Per token [B, T]; everything with gradient happens inside the policy's forward."""
        config, teacher = self.config, self._teacher(batch)
        divergence = self._divergence(batch, teacher)
        if config.algorithm == "gkd":
            return policy(batch.input_ids, batch.attention_mask, head=divergence)

        def minillm(hidden: Tensor, weight: Tensor) -> Tensor:
            logps = linear_token_logps(hidden, weight, batch.input_ids, config.temperature)
            theirs = linear_token_logps(*teacher, batch.input_ids, config.temperature)
            A = minillm_advantages(logps, teacher_logps=theirs, mask=batch.completion_mask)
            return divergence(hidden, weight) + reinforce_policy_loss(logps, advantages=A)

        return policy(batch.input_ids, batch.attention_mask, head=minillm)

    @torch.no_grad()
    def _teacher(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Its hidden states and its head's weight: the logits themselves would be [B, T, V]."""
        transformer = self.teacher.transformer
        return transformer.model(batch.input_ids, batch.attention_mask), transformer.head_weight

    def _divergence(self, batch: Sequences, teacher: tuple[Tensor, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        options = {"mask": batch.completion_mask, "beta": self.config.beta, "temperature": self.config.temperature}
        return partial(linear_distillation_loss, teacher_hidden=teacher[0], teacher_weight=teacher[1], **options)

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss}: mean divergence per token from the teacher on held-out answers."""
        total = 0.0
        lengths = [len(row.prompt) + len(row.responses[0]) for row in rows]
        for group in microbatches(lengths, self.config.microbatch_tokens):
            part = [rows[i] for i in group]
            ids = [row.prompt for row in part], [row.responses[0] for row in part]
            batch = pad_sequences(*ids, self.tokenizer.pad_id, self.device)
            divergence = self._divergence(batch, self._teacher(batch))
            total += self.models["policy"](batch.input_ids, batch.attention_mask, head=divergence).sum().item()
        return {"loss": total / sum(len(row.responses[0]) for row in rows)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]

    def _write(self, batch: list[Draw]) -> list[list[int]]:
        config = self.config
        sampling = SamplingConfig(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stop_ids=self.tokenizer.eos_ids,
            microbatch_tokens=config.microbatch_tokens,
        )
        keys = [(draw.epoch, draw.index, 0) for draw in batch]
        prompts = [draw.row.prompt for draw in batch]
        written = generate(
            self.models["policy"].transformer, prompts, sampling, seed=self.seed, stream="rollout", keys=keys
        )
        return [completion.ids for completion in written]
