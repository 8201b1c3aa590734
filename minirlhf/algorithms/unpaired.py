"""Learning from single answers that people liked or not: KTO, BCO. B rows, T tokens.

KTO: Ethayarajh et al. 2024, arXiv:2402.01306. BCO: Jung et al. 2024, arXiv:2404.04656.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.algorithms.prompt_classifier import PromptClassifier
from minirlhf.algorithms.unused import refuse_changed
from minirlhf.data.batches import Draw, drawn, pad_rows, row_groups
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range, shown
from minirlhf.losses import RunningMean, apo_zero_unpaired_loss, bco_loss, density_ratio, kto_kl, kto_loss, sum_logps
from minirlhf.model.policy import Policy, check_policy, disable_dropout
from minirlhf.runtime.distributed import all_sum, backward, local_rows, wrap
from minirlhf.runtime.sharing import shared_groups, shared_sums
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of

ANSWER, OTHER_ANSWER = 0, 1  # responses of a row: the answer that was judged, and an answer to another prompt


@dataclass(frozen=True)
class UnpairedConfig(OfflineConfig):
    batch_size: int = 128  # [rows] per step, over all processes
    loss: Literal["kto", "apo_zero", "bco"] = "kto"  # [-] apo_zero: kto with KL fixed at 0; bco: a good/bad classifier
    beta: float = 0.1  # [score per nat] price of a nat of KL
    desirable_weight: float = 1.0  # [-] of liked answers in KTO
    undesirable_weight: float = 1.0  # [-] of disliked answers in KTO
    precompute_ref_logps: bool = False  # [-] compute the reference's log-probs once, before training; kept on disk
    prompt_weighting: bool = False  # [-] BCO: a disliked answer counts more if liked answers have similar prompts

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0)
        check_range(self, "desirable_weight", "undesirable_weight", least=0)
        if self.loss != "kto":
            refuse_changed(self, "desirable_weight", "undesirable_weight", needed="the loss kto")
        if self.prompt_weighting and self.loss != "bco":
            raise InputError(f"UnpairedConfig: prompt_weighting belongs to bco, got {self.loss}")


class UnpairedTrainer:
    """Policy, frozen reference, rows of `single_rows` -> better policy.

    updates: the number of updates of the whole run: the schedule's length.
    rows: all rows of the run; only `prompt_weighting` needs them.
    Raises: InputError if policy and reference share weights, or if `prompt_weighting` gets no rows.
    """

    headline = ("loss", "accuracy", "kl", "eval/gold_reward")
    best = ("eval/accuracy", "max")
    saved = ("optimizer", "shift")  # a checkpoint keeps these beside the weights of `models`

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
        check_policy("UnpairedTrainer", policy, ref_policy)
        if config.prompt_weighting and not rows:
            raise InputError("UnpairedTrainer: prompt_weighting learns from all rows, got none; pass rows=")
        self.config, self.tokenizer = config, tokenizer
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.prompt_classifier = None
        if config.prompt_weighting:
            labelled = [row.prompt for row in rows], desirable_of(rows)
            options = {"pad_id": tokenizer.pad_id, "microbatch_tokens": config.microbatch_tokens}
            self.prompt_classifier = PromptClassifier(self.ref_policy, *labelled, **options)
        self.ref_sides = (ANSWER, OTHER_ANSWER) if config.loss == "kto" else (ANSWER,)
        self.shift = RunningMean()  # the mean implicit reward, for bco
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows: the mean loss over all rows."""
        rows = drawn(batch, 1)
        groups = self._groups(rows)
        kl = self.estimate_kl(groups)
        own_count = torch.tensor(float(len(rows)), device=self.device)
        count = all_sum(own_count)
        sums = Sums()
        for group in micro_batches(groups, self.wrapped_policy):
            losses, rewards = self.losses(self.wrapped_policy, group, kl)
            backward(losses.sum() / count)
            correct = self._correct(rewards, group, kl)
            sums.add(count, loss=losses, accuracy=correct, reward_mean=rewards)
            if self.config.loss == "kto":  # no other loss has a KL
                sums.add(count, kl=kl * len(group))
        metrics = self.optimizer.step({**sums, "rows": own_count})
        n = metrics.pop("rows")
        self.shift.update(metrics["reward_mean"] * n, n)
        return metrics

    def losses(self, policy: torch.nn.Module, rows: list[EncodedRow], kl: Tensor) -> tuple[Tensor, Tensor]:
        """-> (losses [B], implicit rewards [B] without gradient: beta * log(policy / reference))."""
        config, desirable = self.config, self._desirable(rows)
        log_ratios = self.log_ratios(policy, rows, ANSWER)
        if config.loss == "kto":
            weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
            losses = kto_loss(log_ratios, desirable=desirable, kl=kl, beta=config.beta, **weights)
        elif config.loss == "apo_zero":
            losses = apo_zero_unpaired_loss(log_ratios, desirable=desirable, beta=config.beta)
        else:
            weights = 1.0
            if self.prompt_classifier:
                weights = density_ratio(self.prompt_classifier.logits(rows).sigmoid())
            options = {"shift": self.shift.mean, "beta": config.beta, "undesirable_weights": weights}
            losses = bco_loss(log_ratios, desirable=desirable, **options)
        return losses, config.beta * log_ratios.detach()

    def log_ratios(self, policy: torch.nn.Module, rows: list[EncodedRow], side: int) -> Tensor:
        """log(policy / reference) of one response of each row, summed over its tokens -> [B] nats."""
        batch = pad_rows(rows, (side,), self.tokenizer.pad_id, self.device)
        inputs, mask = (batch.input_ids, batch.attention_mask), batch.completion_mask
        with torch.no_grad():
            ref_logps = self.ref_policy(*inputs, wanted=mask, entropy=False).logps
        return sum_logps(policy(*inputs, wanted=mask, entropy=False).logps - ref_logps, mask)

    @torch.no_grad()
    def estimate_kl(self, groups: list[list[EncodedRow]]) -> Tensor:
        """KTO's zero point over the rows of all processes: max(0, mean log-ratio of answers to other prompts)."""
        if self.config.loss != "kto":
            return torch.zeros((), device=self.device)  # only kto has a KL
        shared = shared_groups(groups, self.policy, self.ref_policy)
        log_ratios = torch.cat([self.log_ratios(self.policy, group, OTHER_ANSWER) for group in shared])
        total, count = all_sum(torch.stack([log_ratios.sum(), log_ratios.new_tensor(len(log_ratios))]))
        return kto_kl(log_ratios, total=total, count=count)

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy}: share of held-out rows with the implicit reward on the right side of the zero point.

        {} without rows.
        """
        if not rows:
            return {}
        if self.prompt_classifier:
            self.prompt_classifier.logits(rows)  # reads new prompts: all processes make these forwards, or none does
        kl = self.estimate_kl(self._groups(local_rows(rows)))

        def correct(group: list[EncodedRow]) -> dict[str, Tensor]:
            return {"accuracy": self._correct(self.losses(self.policy, group, kl)[1], group, kl)}

        totals = shared_sums(rows, self._groups, correct, self.policy, self.ref_policy)
        return {"accuracy": totals["accuracy"] / len(rows)}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)

    def _correct(self, rewards: Tensor, rows: list[EncodedRow], kl: Tensor) -> Tensor:
        """[B] bool: rewards above the loss's zero point if liked, at or below it if disliked."""
        zero_point = self.shift.mean if self.config.loss == "bco" else self.config.beta * kl
        return (rewards > zero_point) == self._desirable(rows)

    def _desirable(self, rows: list[EncodedRow]) -> Tensor:
        return torch.tensor(desirable_of(rows), dtype=torch.bool, device=self.device)

    def _groups(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        return row_groups(rows, self.config.microbatch_tokens)


def desirable_of(rows: Sequence[EncodedRow]) -> list[bool]:
    """source["desirable"] of each row.   Raises: InputError, naming the row, unless it is true or false."""
    for row in rows:
        desirable = row.source.get("desirable")
        if not isinstance(desirable, bool):  # 1 may stand for liked, but also for the lowest of five marks
            where = f"line {row.source['line']}" if "line" in row.source else shown(row.source.get("prompt"), 40)
            raise InputError(f"{where}: desirable must be true or false, got {shown(desirable)}; convert it first")
    return [row.source["desirable"] for row in rows]


def single_rows(pairs: Sequence[EncodedRow], context: int) -> list[EncodedRow]:
    """Two rows of each pair: source["desirable"] is True for the chosen answer, False for the rejected answer. Or, if
    the rows have one answer each: a row of each, with source["label"] as "desirable".

    The responses of a row are its answer and, for KTO's KL, an answer to another prompt, cut to the context (tokens).
    The other answer is liked if the answer is liked. It depends on the data alone, not on the batch or the number of
    processes.
    """
    if len(pairs) and len(pairs[0].responses) == 1:
        return _labelled_rows(pairs, context)
    rows = []
    for pair, other_pair in zip(pairs, _pairs_before(pairs), strict=True):
        for side in (0, 1):
            source = {**pair.source, "desirable": side == 0}
            room = context - len(pair.prompt)
            answers = pair.responses[side], other_pair.responses[side][:room]
            gaps = pair.learned or other_pair.learned
            learned = (pair.mask(side), other_pair.mask(side)[:room]) if gaps else None
            rows.append(EncodedRow(source, pair.prompt, answers, learned))
    return rows


def _labelled_rows(rows: Sequence[EncodedRow], context: int) -> list[EncodedRow]:
    """The rows with their labels, each beside an answer to another prompt that has the same label."""
    found: list[EncodedRow | None] = [None] * len(rows)
    for label in (True, False):
        numbers = [i for i, row in enumerate(rows) if row.source["label"] is label]
        same = [rows[i] for i in numbers]
        for i, row, other in zip(numbers, same, _pairs_before(same) if same else [], strict=True):
            room = context - len(row.prompt)
            learned = (row.mask(), other.mask()[:room]) if row.learned or other.learned else None
            answers = row.responses[0], other.responses[0][:room]
            found[i] = EncodedRow({**row.source, "desirable": label}, row.prompt, answers, learned)
    return found


def _pairs_before(pairs: list[EncodedRow]) -> list[EncodedRow]:
    """For each pair, the nearest pair before it with another prompt. The last pair stands before pair 0.

    If all prompts are equal, take the pair before. Equal prompts side by side have the same nearest pair, so a single
    pass over the pairs is enough.
    """
    end = next((pair for pair in reversed(pairs) if pair.prompt != pairs[0].prompt), None)
    if end is None:
        return [pairs[i - 1] for i in range(len(pairs))]
    before = []
    for i, pair in enumerate(pairs):
        if i and pair.prompt != pairs[i - 1].prompt:
            end = pairs[i - 1]
        before.append(end)
    return before
