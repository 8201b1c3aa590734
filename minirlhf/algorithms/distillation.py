"""Distillation: a student learns its teacher's whole distribution, on given or on own answers (GKD, MiniLLM).

GKD: Agarwal et al. 2023, arXiv:2306.13649. MiniLLM: Gu et al. 2023, arXiv:2306.08543. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.distillation_checks import common_ids
from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, Sequences, drawn, pad_rows, row_groups
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.losses import linear_distillation_loss, masked_mean, minillm_advantages, reinforce_policy_loss
from minirlhf.losses.logprobs import linear_token_logps
from minirlhf.model.policy import Policy, check_policy, disable_dropout
from minirlhf.model.vocabulary import FirstIds
from minirlhf.runtime.distributed import all_sum, backward, world_size, wrap
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.runtime.sharing import shared_sums
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class DistillationConfig(OfflineConfig):
    lr: float = 4e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    algorithm: Literal["gkd", "minillm"] = "gkd"  # [-] minillm adds the effect of a token on the tokens after it
    beta: float = 0.5  # [-] 0: forward KL(teacher || student), 1: reverse, between: generalised Jensen-Shannon
    on_policy: float = 0.5  # [share] of steps on the student's own answers; 0 is plain distillation
    temperature: float = 1.0  # [-] of both distributions, and of sampling
    max_tokens: int = 48  # [tokens] longest answer of the student, its EOS included

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_tokens", least=1)
        check_range(self, "temperature", above=0)
        check_range(self, "beta", "on_policy", least=0, most=1)
        if self.algorithm == "minillm" and (self.beta, self.on_policy) != (1.0, 1.0):
            raise InputError(
                "DistillationConfig: minillm needs the reverse KL (beta 1) on the student's answers (on_policy 1), got "
                f"beta {self.beta} and on_policy {self.on_policy}"
            )


class DistillationTrainer:
    """Student, frozen teacher with the same tokenizer, rows {prompt, response} -> better student.

    The two distributions are compared over the ids that the tokenizer gives. Rows beyond these ids, with which some
    models pad their vocabulary, are left out of both softmaxes and of sampling; so the two models may have different
    numbers of rows.

    updates: the number of updates of the whole run: the schedule's length.
    Raises: InputError if a model lacks ids of the tokenizer, or if the teacher is the student itself.
    """

    headline = ("loss", "on_policy", "eval/gold_reward")
    best = ("eval/loss", "min")
    saved = ("optimizer", "steps_done")  # a checkpoint keeps these beside the weights of `models`

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
        check_policy("DistillationTrainer", policy)
        self.ids = common_ids(policy, teacher, tokenizer)
        if teacher.transformer.model.embed_tokens is policy.transformer.model.embed_tokens:
            raise InputError("DistillationTrainer: the teacher must be another model, got the student itself")
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.teacher = teacher.requires_grad_(False).eval()
        disable_dropout(policy)
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.steps_done = 0
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update, on the answers of the rows or on answers that the student writes now.

        A hash of the step number makes the choice, so a resumed run makes the same choice.
        """
        on_policy = bool(keyed_uniforms(self.seed, "distillation", self.steps_done) < self.config.on_policy)
        rows = self.write(batch) if on_policy else drawn(batch, 1)
        count = all_sum(torch.tensor(float(sum(sum(row.mask()) for row in rows)), device=self.device))
        sums = Sums()
        for group in micro_batches(self._groups(rows), self.wrapped_policy):
            sequences = self._pad(group)
            losses = self.losses(self.wrapped_policy, sequences)
            loss = masked_mean(losses, sequences.completion_mask, count)
            backward(loss)
            sums.add(loss=loss)
        self.steps_done += 1
        return {**self.optimizer.step(sums), "on_policy": float(on_policy)}

    def losses(self, policy: torch.nn.Module, batch: Sequences) -> Tensor:
        """Loss of each token [B, T]. All that needs a gradient happens inside the policy's forward."""
        teacher = self._teacher_outputs(batch)
        divergence = self._divergence(batch, teacher)
        if self.config.algorithm == "gkd":
            return policy(batch.input_ids, batch.attention_mask, head=divergence)

        def minillm(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
            options = {"input_ids": batch.input_ids, "temperature": self.config.temperature}
            logps = linear_token_logps(hidden, weight[: self.ids], softcap=softcap, **options)
            teacher_hidden, teacher_weight, teacher_softcap = teacher
            teacher_logps = linear_token_logps(teacher_hidden, teacher_weight, softcap=teacher_softcap, **options)
            advantages = minillm_advantages(logps, teacher_logps=teacher_logps, mask=batch.completion_mask)
            return divergence(hidden, weight, softcap) + reinforce_policy_loss(logps, advantages=advantages)

        return policy(batch.input_ids, batch.attention_mask, head=minillm)

    def write(self, batch: list[Draw]) -> list[EncodedRow]:
        """The rows of the batch with answers that the student samples.

        An answer has at most `max_tokens` tokens, or the room that its prompt leaves in the context of both models.
        """
        config, student = self.config, self.policy.transformer
        if self.ids < student.config.vocab_size:
            student = FirstIds(student, self.ids)  # the answers are in common ids
        sampling = SamplingConfig(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stop_ids=self.tokenizer.eos_ids,
            microbatch_tokens=config.microbatch_tokens,
        )
        options = {"seed": self.seed, "stream": "rollout", "keys": [(draw.epoch, draw.index, 0) for draw in batch]}
        completions = generate(student, [draw.row.prompt for draw in batch], sampling, **options)
        context, rows = self.teacher.transformer.config.max_position_embeddings, []
        for row, completion in zip((draw.row for draw in batch), completions, strict=True):
            if (room := context - len(row.prompt)) < 1:
                raise InputError(
                    f"DistillationTrainer: the {len(row.prompt)} tokens of a prompt leave no room in the teacher's "
                    f"context of {context}; shorten it"
                )
            rows.append(EncodedRow(row.source, row.prompt, (completion.ids[:room],)))
        return rows

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss}: mean divergence per token from the teacher on held-out answers; {} without tokens."""

        def losses(group: list[EncodedRow]) -> dict[str, Tensor]:
            batch = self._pad(group)
            divergence = self._divergence(batch, self._teacher_outputs(batch))
            return {"loss": self.policy(batch.input_ids, batch.attention_mask, head=divergence)}

        if not (tokens := sum(sum(row.mask()) for row in rows)):
            return {}
        return {"loss": shared_sums(rows, self._groups, losses, self.policy, self.teacher)["loss"] / tokens}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)

    @torch.no_grad()
    def _teacher_outputs(self, batch: Sequences) -> tuple[Tensor, Tensor, float | None]:
        """The teacher's hidden states [B, T, D], the head's rows of the common ids [V, D], and the cap of its logits.

        Logits [B, T, V] would take too much memory.
        """
        return self.teacher(batch.input_ids, batch.attention_mask, head=self._teacher_head)

    def _teacher_head(
        self, hidden: Tensor, weight: Tensor, softcap: float | None
    ) -> tuple[Tensor, Tensor, float | None]:
        weight = weight[: self.ids]
        # a teacher in slices frees its gathered weights
        return hidden, weight.clone() if world_size() > 1 else weight, softcap

    def _divergence(self, batch: Sequences, teacher: tuple[Tensor, Tensor, float | None]) -> Callable[..., Tensor]:
        """A head for the policy's forward: (hidden, weight, softcap) -> divergence from the teacher [B, T]."""
        options = {"mask": batch.completion_mask, "beta": self.config.beta, "temperature": self.config.temperature}
        options |= zip(("teacher_hidden", "teacher_weight", "teacher_softcap"), teacher, strict=True)
        return lambda hidden, weight, softcap: linear_distillation_loss(
            hidden, weight[: self.ids], softcap=softcap, **options
        )

    def _groups(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        return row_groups(rows, self.config.microbatch_tokens)

    def _pad(self, rows: list[EncodedRow]) -> Sequences:
        return pad_rows(rows, (0,), self.tokenizer.pad_id, self.device)
