"""LoRA: a frozen base and a few small matrices beside it, many sets of them on one base.

    W x + scale B A x      Hu et al. 2021, arXiv:2106.09685; rsLoRA: arXiv:2312.03732; DoRA: arXiv:2402.09353

Names of modules are those inside the transformer ("model.layers.0.self_attn.q_proj"), whether a policy or a reward
model is around it; a Linear may also be called as its family's files do ("c_attn"). A pattern is a name, a part of one
("q_proj", "layers.1", "self_attn") or either with wildcards ("*_proj").
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.adapters.select import ALL, HEAD, NUMBERS, core_of, fits_within, name_in_files
from minirlhf.errors import InputError, check_range
from minirlhf.model.policy import Policy, trainable


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    r: int = 16  # [numbers] rank: the width between A and B
    alpha: float = 32.0  # [-] the update is scaled by alpha / r
    dropout: float = 0.0  # [probability] of an input of A to be 0 in SFT and reward training; no other has any
    target_modules: tuple[str, ...] = (ALL,)  # [patterns] which Linears; all-linear is every one except heads
    use_rslora: bool = False  # [-] scale by alpha / sqrt(r) instead, so that a large r learns as fast
    use_dora: bool = False  # [-] learn the length of each row of the weight apart from its direction

    def __post_init__(self) -> None:
        check_range(self, "r", least=1)
        check_range(self, "alpha", above=0)
        check_range(self, "dropout", least=0, most=0.999)
        if not self.target_modules or isinstance(self.target_modules, str):
            raise InputError(
                f"LoRAConfig: target_modules must be a list of patterns, got {self.target_modules!r}; see {ALL}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class Adapter(nn.Module):
    """One update of one Linear, in fp32 even under a base in half precision."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        weight = base.weight.detach()
        like = {"device": weight.device, "dtype": trainable(weight.dtype)}
        self.config = config
        self.A = nn.Parameter(torch.empty(config.r, base.in_features, **like))
        self.B = nn.Parameter(torch.zeros(base.out_features, config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(weight.to(like["dtype"]).norm(dim=1)) if config.use_dora else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, base: nn.Linear) -> Tensor:
        # where no gradient is wanted, a policy samples, is scored or evaluated: the same function every time
        out, kept = base(x), self.dropout(x) if torch.is_grad_enabled() else x
        update = self.config.scale * F.linear(F.linear(kept.to(self.A.dtype), self.A), self.B)
        if self.magnitude is not None:
            plain = out if kept is x else base(kept)
            plain = plain if base.bias is None else plain - base.bias
            gain = self.gain(base)
            update = (gain - 1) * plain + gain * update
        return (out + update).to(out.dtype)

    def gain(self, base: nn.Linear) -> Tensor:
        """[out] learned length of each row / its length, a constant to the gradient (DoRA, section 4.3)."""
        with torch.no_grad(), full_precision(self.B):
            length = (base.weight + self.config.scale * self.B @ self.A).norm(dim=1)
        return self.magnitude / length.clamp(min=1e-12)

    def delta(self, base: nn.Linear) -> Tensor:
        """What the adapter adds to the weight, [out, in]."""
        with full_precision(self.B):
            update = self.config.scale * self.B @ self.A
            return update if self.magnitude is None else self.gain(base)[:, None] * (base.weight + update) - base.weight


class LoRALinear(nn.Module):
    """A Linear with named adapters of which one, or none, is active. The base is never written to."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.active: str | None = None
        self.register_buffer("merged", None, persistent=False)  # the sum, beside the base: dropped, the base is back
        self.merged_as: str | None = None  # the adapter that was active then

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None:
            return self.base(x)
        if self.merged is not None:
            return F.linear(x, self.weight.to(x.dtype), self.base.bias)
        return self.adapters[self.active](x, self.base) if self.active in self.adapters else self.base(x)

    @property
    def weight(self) -> Tensor:
        """[out, in], made anew: what the layer computes with, but for dropout. Losses read the head so."""
        if self.active is not None and self.merged is not None:
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.adapters.parameters()):
                raise ValueError("LoRALinear: a merged adapter learns nothing; unmerge before training, or use no_grad")
            return self.merged
        weight = self.base.weight
        if self.active is None or self.active not in self.adapters:
            return weight
        return (weight + self.adapters[self.active].delta(self.base)).to(weight.dtype)

    @torch.no_grad()
    def merged_weight(self, weights: dict[str, float]) -> Tensor:
        """W + sum of weights[name] * delta of each adapter, added up in fp32, in W's type."""
        weight = self.base.weight
        present = [(share, self.adapters[name]) for name, share in weights.items() if name in self.adapters]
        return (weight + sum(share * one.delta(self.base) for share, one in present)).to(weight.dtype)


def apply_lora(model: nn.Module, config: LoRAConfig, name: str = "default") -> nn.Module:
    """Put a fresh adapter on the model, in place, and make it the active one. It changes no output yet: B is 0.

    All else is frozen but heads of one number and adapters that were there. Raises: InputError if no Linear fits or the
    name is taken.
    """
    if name in adapter_names(model):
        raise InputError(f"apply_lora: the model has an adapter {name!r} already; choose another name")
    attach(model, list(select_linears(model, config.target_modules)), config, name)
    return model


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters there are, in the order they came."""
    return list(dict.fromkeys(name for layer in lora_layers(model) for name in layer.adapters))


def active_adapter(model: nn.Module) -> str | None:
    """The adapter that the model computes with, if any."""
    return next((layer.active for layer in lora_layers(model) if layer.active), None)


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Make one adapter the active one, or none. Raises: InputError if there is none of that name."""
    check_names(model, [name] if name is not None else [])
    for layer in lora_layers(model):
        if layer.merged is not None and name not in (None, layer.merged_as):
            raise InputError(f"use_adapter: adapters are merged; unmerge before switching to {name!r}")
        layer.active = name


@contextmanager
def adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within, this adapter is the active one (None: the base alone).

    For forwards without gradient: gradient checkpointing runs blocks again in the backward pass, after the end of this.
    `adapter_view` has no such trap.
    """
    before = [(layer, layer.active) for layer in lora_layers(model)]
    use_adapter(model, name)
    try:
        yield
    finally:
        for layer, active in before:
            layer.active = active


def disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Within, the base alone: its outputs bit for bit."""
    return adapter(model, None)


def adapter_view(model: nn.Module, name: str | None) -> nn.Module:
    """A second tree of modules over the same parameters, in which only the adapter `name` exists, or none.

    So policy, value and reward models, and the reference, are views of one base: each lists, trains and freezes its
    own adapter only, and nobody has to switch. Adapters that come later are not seen.
    """
    check_names(model, [name] if name is not None else [])
    return _twin(model, name)


def reference_of(policy: Policy) -> Policy:
    """The policy with its adapter off: a reference that costs no memory. Raises: InputError if the base is trained."""
    reference = adapter_view(policy, None).eval()
    reference.value_head = None
    if trained := [name for name, p in reference.named_parameters() if p.requires_grad]:
        raise InputError(
            f"reference_of: needed a policy with a frozen base, but {len(trained)} of its weights are trained, such as "
            f"{trained[0]}; apply LoRA first, or use copy_of"
        )
    return reference


def merge(model: nn.Module, weights: dict[str, float] | None = None) -> None:
    """Compute with one weight a layer, W + sum of weights[name] * delta: faster, and untrainable until `unmerge`.

    `weights` None takes the active adapter. Costs a copy of each weight; the base keeps its own.
    """
    weights = _shares(model, weights)
    if active_adapter(model) is None:  # of none, there would be nothing to see
        use_adapter(model, next(iter(weights)))
    for layer in lora_layers(model):
        layer.merged, layer.merged_as = layer.merged_weight(weights), layer.active


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, exactly: the base was never touched."""
    for layer in lora_layers(model):
        layer.merged = None


def merge_lora(model: nn.Module, weights: dict[str, float] | None = None) -> nn.Module:
    """Make every layer a plain Linear again, in place, with the adapters in its weight: a model like any other."""
    weights = _shares(model, weights)
    for name, layer in linears_of(model).items():
        if isinstance(layer, LoRALinear):
            core_of(model).set_submodule(name, linear_of(layer.merged_weight(weights), layer.base.bias))
    return model


# Finding and placing


def attach(model: nn.Module, names: Sequence[str], config: LoRAConfig, adapter_name: str) -> None:
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict, adapter_name):
        raise InputError(f"an adapter cannot be named {adapter_name!r}; choose a plain word such as 'policy'")
    for name, p in model.named_parameters():
        if ".adapters." not in name and not set(name.split(".")) & {"score", "value_head"}:
            p.requires_grad_(False)
    linears = linears_of(model)
    for name in names:
        layer = linears[name]
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer).train(layer.training)
            core_of(model).set_submodule(name, layer)
        layer.adapters[adapter_name] = Adapter(layer.base, config).train(layer.training)
    use_adapter(model, adapter_name)


def linears_of(model: nn.Module) -> dict[str, nn.Linear | LoRALinear]:
    """Every Linear by name; one with adapters once, as what it is now."""
    modules = core_of(model).named_modules()
    found = {name: module for name, module in modules if isinstance(module, nn.Linear | LoRALinear)}
    inside = {f"{name}.base" for name, module in found.items() if isinstance(module, LoRALinear)}
    return {name: module for name, module in found.items() if name not in inside}


def lora_layers(model: nn.Module) -> list[LoRALinear]:
    return [layer for layer in linears_of(model).values() if isinstance(layer, LoRALinear)]


def adapters_of(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The parts of one adapter, by the name of the Linear they are on."""
    layers = {n: layer for n, layer in linears_of(model).items() if isinstance(layer, LoRALinear)}
    return {n: layer.adapters[name] for n, layer in layers.items() if name in layer.adapters}


def base_of(layer: nn.Linear | LoRALinear) -> nn.Linear:
    return layer.base if isinstance(layer, LoRALinear) else layer


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Within, autocast is off."""
    return torch.autocast(x.device.type, enabled=False)


def linear_of(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A frozen Linear of tensors that are there already."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
    return linear


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    there = adapter_names(model)
    for name in names:
        if name not in there:
            raise InputError(f"adapter {name!r} is not on the model; there are: {', '.join(there) or 'none'}")


def _shares(model: nn.Module, weights: dict[str, float] | None) -> dict[str, float]:
    if weights is None:
        active = active_adapter(model)
        if active is None:
            raise InputError("merge: needed an active adapter or weights by name, got neither; see use_adapter")
        weights = {active: 1.0}
    check_names(model, list(weights))
    return weights


def _twin(module: nn.Module, name: str | None) -> nn.Module:
    """`module` again, its parameters and buffers shared, its children twins."""
    if isinstance(module, LoRALinear) and name not in module.adapters:
        return _twin(module.base, name)
    twin = copy.copy(module)
    twin._modules = {key: child if child is None else _twin(child, name) for key, child in module._modules.items()}
    if isinstance(twin, LoRALinear):
        twin.adapters, twin.active = nn.ModuleDict({name: twin.adapters[name]}), name
        twin._buffers = {"merged": None}  # merged here is not merged there
    return twin


def select_linears(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Name -> Linear that one of the patterns fits, with or without adapters on it; "all-linear" is all but heads.

    Raises: InputError if a pattern fits none, or a head of one number.
    """
    linears = {name: base_of(layer) for name, layer in linears_of(model).items()}
    numbers = {name for name, one in linears.items() if name.split(".")[-1] in NUMBERS or one.out_features == 1}
    asked = [pattern for pattern in patterns if pattern != ALL]
    names = {
        pattern: [n for n in linears if fits_within(n, pattern) or fits_within(name_in_files(model, n), pattern)]
        for pattern in asked
    }
    names |= {ALL: [name for name in linears if name not in numbers | {HEAD}]} if ALL in patterns else {}
    for pattern, found in names.items():
        if not found:
            leaves = sorted({name.split(".")[-1] for name in linears.keys() - numbers})
            raise InputError(f"pattern {pattern!r} fits no Linear of the model; there are {', '.join(leaves)}")
        if found_heads := numbers.intersection(found):
            raise InputError(
                f"pattern {pattern!r} fits the head {min(found_heads)}, which is trained whole; leave it out"
            )
    chosen = {name for found in names.values() for name in found}
    return {name: one for name, one in linears.items() if name in chosen}
