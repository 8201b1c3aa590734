"""LoRA: adapters, small trained matrices beside a frozen base. A base may have several adapters.

    W x + scale B A x      Hu et al. 2021, arXiv:2106.09685; rsLoRA: arXiv:2312.03732; DoRA: arXiv:2402.09353

A module has its name inside the transformer ("model.layers.0.self_attn.q_proj"), also in a policy or a reward model.
A pattern is a name, a part of a name ("q_proj", "layers.1", "self_attn") or either with wildcards ("*_proj"). It may
also use the names in the files of the model's family ("c_attn").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.adapters.select import ALL, HEAD, SCALAR_HEADS, fits
from minirlhf.errors import InputError, check_range, shown
from minirlhf.model.names import core_of
from minirlhf.model.policy import Policy, trainable


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    r: int = 16  # [numbers] rank: the width between A and B
    alpha: float = 32.0  # [-] the update is scaled by alpha / r
    dropout: float = 0.0  # [probability] that an input of A is 0, in SFT and reward training only
    target_modules: tuple[str, ...] = (ALL,)  # [patterns] Linears that get an adapter; all-linear: all but heads
    use_rslora: bool = False  # [-] scale by alpha / sqrt(r) instead, so that a large r learns as fast
    use_dora: bool = False  # [-] learn the length of each row of the weight separately from its direction

    def __post_init__(self) -> None:
        check_range(self, "r", least=1)
        check_range(self, "alpha", above=0)
        check_range(self, "dropout", least=0, most=0.999)
        if not self.target_modules or isinstance(self.target_modules, str):
            raise InputError(
                f"LoRAConfig: target_modules must be a list of patterns, got {shown(self.target_modules)}; "
                f"e.g. ({ALL!r},)"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class Adapter(nn.Module):
    """The update of a Linear, in fp32 even if the base is in half precision."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        weight = base.weight.detach()
        weight = gathered(weight) if config.use_dora else weight
        like = {"device": weight.device, "dtype": trainable(weight.dtype)}
        self.config = config
        self.A = nn.Parameter(torch.empty(config.r, base.in_features, **like))
        self.B = nn.Parameter(torch.zeros(base.out_features, config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(weight.to(like["dtype"]).norm(dim=1)) if config.use_dora else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, base: nn.Linear) -> Tensor:
        """x [..., in] -> base(x) plus the update, [..., out]."""
        out = base(x)
        # no dropout without gradient: sampling, scoring and evaluation compute the same function every time
        dropped = self.dropout(x) if torch.is_grad_enabled() else x
        update = self.config.scale * F.linear(F.linear(dropped.to(self.A.dtype), self.A), self.B)
        if self.magnitude is not None:
            product = out if dropped is x else base(dropped)  # W x without bias
            product = product if base.bias is None else product - base.bias
            gain = self.gain(base)
            update = (gain - 1) * product + gain * update
        return (out + update).to(out.dtype)

    def gain(self, base: nn.Linear) -> Tensor:
        """[out]: learned length / present length of each row. The present length is constant (DoRA, section 4.3)."""
        with torch.no_grad(), full_precision(self.B):
            length = (base.weight + self.config.scale * self.B @ self.A).norm(dim=1)
        return self.magnitude / length.clamp(min=1e-12)

    def delta(self, base: nn.Linear) -> Tensor:
        """[out, in]: the adapted weight minus the base's weight."""
        with full_precision(self.B):
            update = self.config.scale * self.B @ self.A
            return update if self.magnitude is None else self.gain(base)[:, None] * (base.weight + update) - base.weight

    def adapted(self, base: nn.Linear) -> Tensor:
        """[out, in]: the effective weight W + scale B A."""
        return (base.weight + self.delta(base)).to(base.weight.dtype)


class Adapted(nn.Module):
    """A frozen layer with named adapters. It computes with the adapter named `active`; `attach` sets the name."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.active = ""  # the model's newest adapter; a layer without this adapter computes the base alone

    @property
    def weight(self) -> Tensor:
        """The effective weight, computed at each access (losses need the head's weight)."""
        return self.adapters[self.active].adapted(self.base) if self.active in self.adapters else self.base.weight

    @torch.no_grad()
    def merged_weight(self, weights: dict[str, float]) -> Tensor:
        """W + sum of weights[name] * delta of each adapter, added up in fp32, in W's dtype."""
        W = self.base.weight
        deltas = [weight * self.adapters[n].delta(self.base) for n, weight in weights.items() if n in self.adapters]
        return (W + sum(deltas)).to(W.dtype)

    def plain(self, weight: Tensor) -> nn.Module:
        """The layer without adapters, frozen, over this weight."""
        raise NotImplementedError


class LoRALinear(Adapted):
    """A frozen Linear with named adapters."""

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters[self.active](x, self.base) if self.active in self.adapters else self.base(x)

    def plain(self, weight: Tensor) -> nn.Linear:
        return linear_of(weight, self.base.bias)


def apply_lora(model: nn.Module, config: LoRAConfig, name: str = "default") -> nn.Module:
    """Put a new adapter on the model, in place; the model computes with it from now on. B is 0, so no output changes.

    Everything is frozen except adapters and heads with one output. To compute with another adapter, or with none, use
    `adapter_view`. Raises: InputError if no Linear fits or the name is taken.
    """
    if name in adapter_names(model):
        raise InputError(f"apply_lora: the model has an adapter {shown(name)} already; choose another name")
    attach(model, dict.fromkeys(select_linears(model, config.target_modules), config), name)
    return model


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the model's adapters, oldest first."""
    return list(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.adapters))


def active_adapter(model: nn.Module) -> str | None:
    """Name of the adapter that the model computes with: a view's adapter, else the newest. None without adapters."""
    return next((layer.active for layer in adapted_layers(model).values()), None)


def adapter_view(model: nn.Module, name: str | None) -> nn.Module:
    """A second tree of modules over the same parameters, with the adapter `name` only (None: no adapter).

    So policy, value model, reward model and reference are views of one base. Each view lists, trains and freezes its
    own adapter only; no code switches adapters. Without an adapter, outputs equal the base's outputs bit for bit. The
    view does not see an adapter that is put on the model later.
    """
    check_names(model, [name] if name is not None else [])
    return _twin(model, name)


def reference_of(policy: Policy) -> Policy:
    """The policy without its adapter: a reference that needs no memory. Raises: InputError if the base is trained."""
    reference = adapter_view(policy, None).eval()
    reference.value_head = None
    if trained := [name for name, p in reference.named_parameters() if p.requires_grad]:
        raise InputError(
            f"reference_of: needed a policy with a frozen base, but {len(trained)} of its weights are trained, such as "
            f"{trained[0]}; apply LoRA first, or use copy_of"
        )
    return reference


def merge_lora(model: nn.Module, weights: dict[str, float] | None = None) -> nn.Module:
    """Replace every adapted layer, in place, by a plain layer with the weight W + sum of weights[name] * delta.

    `weights` None: the active adapter with weight 1. Merging a view leaves the original model unchanged.
    Raises: InputError if the model lacks an adapter named in `weights`, or has no adapter at all.
    """
    if weights is None:
        active = active_adapter(model)
        if active is None:
            raise InputError("merge_lora: needed a model with an adapter, got none; use apply_lora or load_adapter")
        weights = {active: 1.0}
    check_names(model, list(weights))
    for name, layer in adapted_layers(model).items():
        core_of(model).set_submodule(name, layer.plain(layer.merged_weight(weights)))
    return model


# Finding layers and putting adapters on them


def attach(model: nn.Module, configs: Mapping[str, LoRAConfig], adapter_name: str) -> None:
    """Freeze the base and put a new adapter on Linears; the model computes with it from now on.

    configs: name of a Linear -> the settings of its matrices.
    """
    check_new_name(adapter_name)
    for name, p in model.named_parameters():
        if ".adapters." not in name and not {*name.split(".")} & {*SCALAR_HEADS}:
            p.requires_grad_(False)
    linears = linears_of(model)
    for name, config in configs.items():
        layer = linears[name]
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer).train(layer.training)
            core_of(model).set_submodule(name, layer)
        layer.adapters[adapter_name] = Adapter(layer.base, config).train(layer.training)
    activate(model, adapter_name)


def check_new_name(adapter_name: str) -> None:
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict, adapter_name):
        raise InputError(f"an adapter cannot be named {shown(adapter_name)}; choose a plain word such as 'policy'")


def activate(model: nn.Module, adapter_name: str) -> None:
    """Compute with this adapter from now on."""
    for layer in adapted_layers(model).values():
        layer.active = adapter_name


def linears_of(model: nn.Module) -> dict[str, nn.Linear | LoRALinear]:
    """Every Linear by name. A Linear with adapters appears once, as its LoRALinear."""
    modules = core_of(model).named_modules()
    found = {name: module for name, module in modules if isinstance(module, nn.Linear | LoRALinear)}
    bases = {f"{name}.base" for name, module in found.items() if isinstance(module, LoRALinear)}
    return {name: module for name, module in found.items() if name not in bases}


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """Every layer with adapters, by name."""
    return {name: module for name, module in core_of(model).named_modules() if isinstance(module, Adapted)}


def adapters_of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The parts of one named adapter, by the name of the layer that they adapt."""
    return {n: layer.adapters[name] for n, layer in adapted_layers(model).items() if name in layer.adapters}


def base_of(layer: nn.Linear | LoRALinear) -> nn.Linear:
    return layer.base if isinstance(layer, LoRALinear) else layer


def gathered(p: Tensor) -> Tensor:
    """All rows of a weight. All processes must call it for a weight in slices."""
    if not hasattr(p, "to_local"):
        return p.detach()
    from minirlhf.runtime.parallel.sharding import full

    return full(p)


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the tensor's device."""
    return torch.autocast(x.device.type, enabled=False)


def linear_of(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A frozen Linear over existing tensors, without a copy."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
    return linear


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise InputError if the model lacks an adapter of one of these names."""
    present = adapter_names(model)
    for name in names:
        if name not in present:
            raise InputError(f"adapter {shown(name)} is not on the model; its adapters: {', '.join(present) or 'none'}")


def _twin(module: nn.Module, name: str | None) -> nn.Module:
    """A copy of the module that shares parameters and buffers; its child modules are copies too."""
    if isinstance(module, Adapted) and name not in module.adapters:
        return _twin(module.base, name)
    cls = type(module)
    # a class in slices is [FSDP class, FSDPModule, class]; the hooks of FSDP gather the weights for both models
    in_slices = hasattr(cls, "unshard")
    twin = object.__new__(cls.__mro__[2] if in_slices else cls)
    twin.__dict__ = dict(vars(module))
    twin._modules = {key: child if child is None else _twin(child, name) for key, child in module._modules.items()}
    if isinstance(twin, Adapted):
        twin.adapters, twin.active = nn.ModuleDict({name: twin.adapters[name]}), name
    return twin


def select_linears(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Name -> Linear for each Linear that a pattern fits, adapted or not. "all-linear" fits all Linears except heads.

    Raises: InputError if a pattern fits no Linear, or fits a head with one output.
    """
    linears = {name: base_of(layer) for name, layer in linears_of(model).items()}
    heads = {n for n, linear in linears.items() if n.split(".")[-1] in SCALAR_HEADS or linear.out_features == 1}
    chosen = set()
    for pattern in patterns:
        if pattern == ALL:
            found = linears.keys() - heads - {HEAD}
        else:
            found = {name for name in linears if fits(model, name, pattern)}
        if not found:
            ends = sorted({name.split(".")[-1] for name in linears.keys() - heads})
            raise InputError(f"pattern {shown(pattern)} fits no Linear of the model; its Linears are {', '.join(ends)}")
        if fitting_heads := found & heads:
            raise InputError(
                f"pattern {shown(pattern)} fits the head {min(fitting_heads)}: this head is trained whole; leave it out"
            )
        chosen |= found
    return {name: linear for name, linear in linears.items() if name in chosen}
