"""Learning from pairs without a reward model: DPO (Rafailov et al. 2023, arXiv:2305.18290), its family, and the
losses that need no reference either. A paper is a row of LOSSES. B pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf import losses as L
from minirlhf.adapters.lora import adapter_names
from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.model.policy import Policy, check_reference, disable_dropout, move_towards
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, world_size, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of two numbers per pair, and what these numbers are."""

    function: Callable[..., Tensor]  # (chosen [B], rejected [B], *, beta, and the options) -> [B]
    reference: bool = True  # log-ratios to a reference; False: log-probs
    mean: bool = False  # per token; False: summed over tokens
    nll: float = 0.0  # weight of the chosen answer's likelihood that belongs to the paper
    options: tuple[str, ...] = ()  # settings that the function takes beside beta


# A new loss is a function and a row here.
LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(L.dpo_sigmoid_loss, options=("label_smoothing",)),  # DPO; with smoothing cDPO
    "robust": PreferenceLoss(L.robust_dpo_loss, options=("label_smoothing",)),
    "ipo": PreferenceLoss(L.ipo_loss),
    "hinge": PreferenceLoss(L.hinge_dpo_loss),
    "exo": PreferenceLoss(L.exo_loss, options=("label_smoothing",)),
    "nca": PreferenceLoss(L.nca_loss),
    "bco_pair": PreferenceLoss(L.bco_pair_loss, options=("shift",)),
    "sppo_hard": PreferenceLoss(L.sppo_hard_loss),
    "aot": PreferenceLoss(L.aot_paired_loss, options=("label_smoothing",)),
    "aot_unpaired": PreferenceLoss(L.aot_unpaired_loss, options=("label_smoothing",)),
    "apo_zero": PreferenceLoss(L.apo_zero_loss),
    "apo_down": PreferenceLoss(L.apo_down_loss),
    "discopop": PreferenceLoss(L.discopop_loss),
    "sigmoid_norm": PreferenceLoss(L.dpo_sigmoid_loss, mean=True, options=("label_smoothing",)),
    "orpo": PreferenceLoss(L.orpo_loss, reference=False, mean=True, nll=1.0),
    "cpo": PreferenceLoss(L.cpo_loss, reference=False, nll=1.0, options=("label_smoothing",)),
    "simpo": PreferenceLoss(L.simpo_loss, reference=False, mean=True, options=("gamma",)),
    "alphapo": PreferenceLoss(L.alphapo_loss, reference=False, mean=True, options=("gamma", "alpha")),
}
SORTED = ("aot", "aot_unpaired")  # their results belong to no pair
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda x: x,
    "forward_kl": L.forward_kl_link,
    "js": L.js_link,
    "alpha": L.alpha_link,
}


@dataclass(frozen=True)
class DPOConfig(OfflineConfig):
    loss: str = "sigmoid"  # [-] a row of LOSSES in algorithms/dpo.py
    beta: float = 0.1  # [score per nat] what a nat of KL costs: small moves far
    label_smoothing: float | None = None  # [share] of labels taken to be flipped; none: as the loss's paper has it
    gamma: float | None = None  # [-] SimPO's and AlphaPO's margin; none: 0.5
    alpha: float | None = None  # [-] AlphaPO's curvature; none: 0.25
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"  # [-] from the reference
    reference_free: bool = False  # [-] take log-probs for log-ratios, as if the reference were uniform
    length_alpha: float = 1.0  # [-] weight of tokens beyond the shorter answer's length (LD-DPO); 1 is DPO
    nll_coef: float | None = None  # [-] weight of the chosen answer's likelihood (RPO); none: as in the loss's paper
    weighting: bool = False  # [-] WPO: pairs count by how likely the policy would write them
    ref_update_every: int = 0  # [steps] TR-DPO: move the reference to the policy so often; 0 never
    ref_update_mix: float = 0.6  # [share] how far it moves; 1 copies the policy

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise InputError(f"DPOConfig: loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        check_range(self, "beta", above=0)
        check_range(self, "label_smoothing", least=0, most=0.499)
        check_range(self, "length_alpha", "ref_update_mix", least=0, most=1)
        check_range(self, "ref_update_every", "nll_coef", least=0)
        if self.alpha == 0:
            raise InputError("DPOConfig: alpha must not be 0, got 0; take the loss simpo")
        row = LOSSES[self.loss]
        for name in ("label_smoothing", "gamma", "alpha"):
            if getattr(self, name) is not None and name not in row.options:
                raise InputError(f"DPOConfig: {name} has no part in the loss {self.loss}; leave it out")
        if self.weighting and self.loss in SORTED:
            raise InputError(f"DPOConfig: weighting needs a loss for each pair, got {self.loss}, which sorts them")
        if not self.uses_reference and (self.divergence != "reverse_kl" or self.ref_update_every):
            raise InputError(f"DPOConfig: divergence and ref_update_every need a reference, {self.loss} has none")
        if row.mean and self.length_alpha < 1:
            raise InputError(f"DPOConfig: length_alpha is for sums over tokens, got {self.loss}, which takes means")
        if self.loss == "aot" and self.divergence != "reverse_kl":
            raise InputError("DPOConfig: aot compares margins of log-probs, so divergence must be reverse_kl")

    @property
    def uses_reference(self) -> bool:
        return LOSSES[self.loss].reference and not self.reference_free


class DPOTrainer:
    """Policy, frozen reference (none for the losses without), pairs -> better policy.

    `updates` is how many the run will make: the schedule's length.
    Raises: InputError if a reference is missing, or shares weights with the policy.
    """

    headline = ("loss", "accuracy", "margin", "eval/gold_reward")
    best = ("eval/accuracy", "max")

    def __init__(
        self, policy: Policy, ref_policy: Policy | None, tokenizer: Tokenizer, config: DPOConfig, updates: int
    ) -> None:
        if policy.value_head is not None:
            raise InputError("DPOTrainer: needed a policy without value head, which no loss here would train")
        if config.uses_reference and ref_policy is None:
            raise InputError(f"DPOTrainer: the loss {config.loss} needs a reference, got none; pass copy_of(policy)")
        if ref_policy:
            check_reference("DPOTrainer", policy, ref_policy)
        if config.ref_update_every and config.ref_update_mix < 1 and adapter_names(policy):
            raise InputError(
                f"DPOTrainer: ref_update_mix must be 1 where adapters are trained, got {config.ref_update_mix}: "
                "mixing A and B apart does not mix their product"
            )
        if config.loss in SORTED and world_size() > 1:
            raise InputError(f"DPOTrainer: {config.loss} sorts the whole batch, which one process must hold; use one")
        self.config, self.tokenizer, self.row = config, tokenizer, LOSSES[config.loss]
        self.ref_policy = ref_policy.requires_grad_(False).eval() if config.uses_reference else None
        disable_dropout(policy)
        self.models = {"policy": policy}
        if config.ref_update_every:  # a reference that moves is part of what a resumed run needs
            self.models["reference"] = self.ref_policy
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = policy.transformer.device
        self.shift, self.steps_done = L.RunningMean(), 0  # the mean implicit reward, for bco_pair
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of pairs; the loss is the mean over all of them, however it is split."""
        rows = [draw.row for draw in batch]
        tokens = float(sum(len(row.responses[0]) for row in rows))
        counts = all_sum(torch.tensor([float(len(rows)), tokens], device=self.device))
        groups = self._groups(rows)
        sums: dict[str, Tensor] = {}
        for group in groups:
            with gradient_sync(self.policy, group is groups[-1]):
                losses, nll, terms = self.losses(self.policy, group)
                loss = losses.sum() / counts[0] + self.nll_coef * nll / counts[1]
                backward(loss)
            for name, term in {"loss": loss, **{key: x.sum() / counts[0] for key, x in terms.items()}}.items():
                sums[name] = sums.get(name, 0) + term.detach()
        metrics = self.optimizer.step(sums)
        pairs = len(rows) * world_size()  # `share` hands out equal parts
        self.shift.update((metrics["chosen_reward"] + metrics["rejected_reward"]) * pairs, 2 * pairs)
        self.steps_done += 1
        if self.config.ref_update_every and self.steps_done % self.config.ref_update_every == 0:
            move_towards(self.ref_policy, self.models["policy"], self.config.ref_update_mix)
        return metrics

    def losses(self, policy: torch.nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-> (loss of each pair [B], summed nll of the chosen answers, what to look at, [B] each)."""
        config, row = self.config, self.row
        batch = self._pad(rows)
        logps = policy(batch.input_ids, batch.attention_mask).logps
        chosen, rejected = self._per_answer(logps, batch)
        if self.ref_policy:
            with torch.no_grad():
                ref = self.ref_policy(batch.input_ids, batch.attention_mask).logps
            ref_chosen, ref_rejected = self._per_answer(ref, batch)
            ratios = chosen - ref_chosen, rejected - ref_rejected
        else:
            ref_chosen, ref_rejected = torch.zeros_like(chosen), torch.zeros_like(rejected)
            ratios = chosen, rejected
        options = {name: self.shift.mean if name == "shift" else getattr(config, name) for name in row.options}
        options = {name: value for name, value in options.items() if value is not None}
        if config.loss == "aot":
            four = {"chosen_logps": chosen, "rejected_logps": rejected}
            four |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
            losses = row.function(**four, beta=config.beta, **options)
        else:
            losses = row.function(*map(LINKS[config.divergence], ratios), beta=config.beta, **options)
        if config.weighting:
            losses = losses * self._weights(logps, batch)
        nll = L.masked_sum(-logps.chunk(2)[0], batch.completion_mask.chunk(2)[0])
        rewards = [config.beta * x.detach() for x in ratios]
        terms = {"accuracy": (rewards[0] > rewards[1]).to(losses.dtype), "margin": rewards[0] - rewards[1]}
        terms |= {
            "chosen_reward": rewards[0],
            "rejected_reward": rewards[1],
            "chosen_logps": chosen,
            "rejected_logps": rejected,
        }
        return losses, nll, terms

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{loss, accuracy, margin} on held-out pairs: accuracy is that of the implicit reward."""
        totals: dict[str, float] = {}
        for group in self._groups(rows):
            losses, _, terms = self.losses(self.models["policy"], group)
            for name, x in {"loss": losses, "accuracy": terms["accuracy"], "margin": terms["margin"]}.items():
                totals[name] = totals.get(name, 0.0) + x.sum().item()
        return {name: total / len(rows) for name, total in totals.items()}

    @property
    def nll_coef(self) -> float:
        return self.row.nll if self.config.nll_coef is None else self.config.nll_coef

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "shift": self.shift.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.shift.load_state_dict(state["shift"])
        self.steps_done = state["steps_done"]

    def _per_answer(self, logps: Tensor, batch: Sequences) -> tuple[Tensor, Tensor]:
        """[2B, T] -> one number for each chosen and each rejected answer."""
        (chosen, rejected), (mask, other) = logps.chunk(2), batch.completion_mask.chunk(2)
        if self.row.mean:
            return L.mean_logps(chosen, mask), L.mean_logps(rejected, other)
        per_answer = partial(L.desensitised_logps, alpha=self.config.length_alpha)
        return per_answer(chosen, mask, other_mask=other), per_answer(rejected, other, other_mask=mask)

    def _weights(self, logps: Tensor, batch: Sequences) -> Tensor:
        with torch.no_grad():
            expected = self.models["policy"](batch.input_ids, batch.attention_mask, head=L.linear_log_collision)
        named = {}
        for name, both in {"logps": logps, "expected": expected, "mask": batch.completion_mask}.items():
            named[f"chosen_{name}"], named[f"rejected_{name}"] = both.chunk(2)
        return L.wpo_weights(**named)

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        if self.config.loss in SORTED:  # the whole batch is one sample of two distributions
            return [rows]
        lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
        return [[rows[i] for i in group] for group in microbatches(lengths, self.config.microbatch_tokens // 2)]

    def _pad(self, rows: list[EncodedRow]) -> Sequences:
        responses = [row.responses[side] for side in (0, 1) for row in rows]
        return pad_sequences([row.prompt for row in rows] * 2, responses, self.tokenizer.pad_id, self.device)
