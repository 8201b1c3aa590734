"""The settings of DPO and its family: a paper is a row of LOSSES, a divergence is a row of LINKS. B pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from minirlhf import losses as L
from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.algorithms.unused import refuse_changed
from minirlhf.errors import InputError, check_range, shown


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of two numbers per pair, and the way to compute these numbers from log-probs."""

    function: Callable[..., Tensor]  # (chosen [B], rejected [B], *, beta, and the options) -> [B]
    reference: bool = True  # log-ratios to a reference; False: log-probs
    mean: bool = False  # mean over tokens; False: sum over tokens
    nll: float = 0.0  # weight that the paper gives to the chosen answers' nll
    options: tuple[str, ...] = ()  # further arguments of the function: settings, and `shift`, the mean reward
    sorts: bool = False  # the function sorts the batch, so no result belongs to a single pair


# To add a loss: write a function and add a row here.
LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(L.dpo_sigmoid_loss, options=("label_smoothing",)),  # DPO; cDPO with label_smoothing
    "robust": PreferenceLoss(L.robust_dpo_loss, options=("label_smoothing",)),
    "ipo": PreferenceLoss(L.ipo_loss),
    "hinge": PreferenceLoss(L.hinge_dpo_loss),
    "exo": PreferenceLoss(L.exo_loss, options=("label_smoothing",)),
    "nca": PreferenceLoss(L.nca_loss),
    "bco_pair": PreferenceLoss(L.bco_pair_loss, options=("shift",)),
    "sppo_hard": PreferenceLoss(L.sppo_hard_loss),
    "aot": PreferenceLoss(L.aot_paired_loss, options=("label_smoothing",), sorts=True),
    "aot_unpaired": PreferenceLoss(L.aot_unpaired_loss, options=("label_smoothing",), sorts=True),
    "apo_zero": PreferenceLoss(L.apo_zero_loss),
    "apo_down": PreferenceLoss(L.apo_down_loss),
    "discopop": PreferenceLoss(L.discopop_loss),
    "sigmoid_norm": PreferenceLoss(L.dpo_sigmoid_loss, mean=True, options=("label_smoothing",)),
    "orpo": PreferenceLoss(L.orpo_loss, reference=False, mean=True, nll=1.0),
    "cpo": PreferenceLoss(L.cpo_loss, reference=False, nll=1.0, options=("label_smoothing",)),
    "simpo": PreferenceLoss(L.simpo_loss, reference=False, mean=True, options=("gamma",)),
    "alphapo": PreferenceLoss(L.alphapo_loss, reference=False, mean=True, options=("gamma", "alpha")),
}
# A link is a function of the log-ratio. It selects the divergence that keeps the policy near the reference.
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda log_ratio: log_ratio,
    "forward_kl": L.forward_kl_link,
    "js": L.js_link,
    "alpha": L.alpha_link,
}


@dataclass(frozen=True)
class DPOConfig(OfflineConfig):
    loss: str = "sigmoid"  # [-] a row of LOSSES in algorithms/dpo_recipes.py; sigmoid is DPO
    beta: float = 0.1  # [score per nat] price of a nat of KL; a small beta lets the policy move far
    label_smoothing: float | None = None  # [share] of labels assumed wrong; none: the default of the loss
    gamma: float | None = None  # [-] margin of SimPO and AlphaPO; none: 0.5
    alphapo_alpha: float | None = None  # [-] curvature of AlphaPO; none: 0.25
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"  # [-] distance to the reference
    reference_free: bool = False  # [-] use log-probs as log-ratios, as if the reference were uniform
    length_alpha: float = 1.0  # [-] weight of tokens beyond the shorter answer's length (LD-DPO); 1 is DPO
    nll_coef: float | None = None  # [-] weight of the chosen answers' nll (RPO); none: 1 for orpo and cpo, else 0
    weighting: bool = False  # [-] WPO: a pair counts more if the policy is likely to write it
    ref_update_every: int = 0  # [steps] between moves of the reference towards the policy (TR-DPO); 0: never
    ref_update_mix: float = 0.6  # [share] how far the reference moves; 1 copies the policy
    precompute_ref_logps: bool = False  # [-] compute the reference's log-probs once, before training; kept on disk

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def one_process(self) -> str:
        """The reason that several processes are refused; "" if they are not."""
        sorts = LOSSES[self.loss].sorts
        return f"the loss {self.loss} sorts the whole batch, so one process must hold it" if sorts else ""

    @property
    def uses_reference(self) -> bool:
        return LOSSES[self.loss].reference and not self.reference_free


def check(config: DPOConfig) -> None:
    """Raise InputError for values out of range and for settings that the loss would ignore or contradict."""
    if config.loss not in LOSSES:
        raise InputError(f"DPOConfig: loss must be one of {', '.join(LOSSES)}, got {shown(config.loss)}")
    check_range(config, "beta", above=0)
    check_range(config, "label_smoothing", least=0, most=0.499)
    check_range(config, "length_alpha", "ref_update_mix", least=0, most=1)
    check_range(config, "ref_update_every", "nll_coef", least=0)
    check_range(config, "gamma", "alphapo_alpha", least=-1e6, most=1e6)
    if config.loss == "exo":
        check_range(config, "label_smoothing", above=0)
    if config.alphapo_alpha == 0:
        raise InputError("DPOConfig: alphapo_alpha must not be 0, got 0; take the loss simpo")
    row = LOSSES[config.loss]
    for setting, option in {"label_smoothing": "label_smoothing", "gamma": "gamma", "alphapo_alpha": "alpha"}.items():
        if getattr(config, setting) is not None and option not in row.options:
            raise InputError(f"DPOConfig: the loss {config.loss} does not use {setting}; leave it out")
    if config.weighting and row.sorts:
        raise InputError(f"DPOConfig: weighting needs a loss for each pair, but {config.loss} sorts the pairs")
    if not config.uses_reference and (config.divergence != "reverse_kl" or config.ref_update_every):
        raise InputError(f"DPOConfig: divergence and ref_update_every need a reference, {config.loss} has none")
    if config.precompute_ref_logps and (config.ref_update_every or not config.uses_reference):
        given = "ref_update_every moves it" if config.ref_update_every else f"{config.loss} has none here"
        raise InputError(f"DPOConfig: precompute_ref_logps needs a reference that stays, but {given}; leave it out")
    if row.mean and config.length_alpha < 1:
        raise InputError(f"DPOConfig: length_alpha needs a loss that sums over tokens, {config.loss} averages")
    if config.reference_free and not row.reference:
        raise InputError(f"DPOConfig: the loss {config.loss} has no reference anyway; leave reference_free out")
    if not config.ref_update_every:
        refuse_changed(config, "ref_update_mix", needed="ref_update_every above 0")
    if config.loss == "aot" and config.divergence != "reverse_kl":
        raise InputError("DPOConfig: aot compares margins of log-probs, so divergence must be reverse_kl")
