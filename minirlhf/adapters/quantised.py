"""Frozen weights in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).

A block is 64 numbers, and its scale is its largest absolute value. Each number is stored as one of 16 levels (4 bits)
times the scale. A group is 256 blocks. Each scale is stored as one of 256 steps (8 bits) from the least to the largest
scale of its group. The least scale and the step of a group are stored as fp32. Bytes per number: 1/2 + 1/64 + 8 /
(64 * 256) = 0.516, 0.129 of fp32 (for sizes that fill their blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.adapters.lora import (
    active_adapter,
    adapted_layers,
    adapter_view,
    gathered,
    linear_of,
    linears_of,
    select_linears,
)
from minirlhf.adapters.select import ALL, HEAD
from minirlhf.errors import InputError
from minirlhf.model.names import core_of

BLOCK, GROUP = 64, 256  # numbers per scale; scales per range
PARTS = ("codes", "scales", "ranges")  # the tensors of a weight in 4 bits
# quantiles of the normal distribution, scaled to [-1, 1], with 0 as a level (appendix E)
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
NF4 += (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634)
NF4 += (0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> codes [blocks * 32] uint8, two per byte; scales [blocks] uint8; ranges [groups, 2]: least scale and step.

    The ranges are fp32 numbers stored as int32, so that `model.to(bfloat16)` cannot round them. The paper stores each
    scale as an 8-bit float around the mean scale. Even steps between least and largest take as many bytes and have a
    smaller error.
    """
    table = torch.tensor(NF4, device=weight.device)
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)
    # fill the last group with copies of the last scale: that does not widen its range
    groups = torch.cat((largest, largest[-1:].expand(-len(largest) % GROUP))).view(-1, GROUP)
    least = groups.amin(dim=1)
    ranges = torch.stack((least, (groups.amax(dim=1) - least) / 255), dim=1)
    steps = (groups - ranges[:, :1]) / ranges[:, 1:].clamp(min=torch.finfo(torch.float32).tiny)
    scales = steps.round().flatten()[: len(blocks)].to(torch.uint8)
    ranges = ranges.contiguous().view(torch.int32)
    # divide by the rounded scale: choosing the nearest level then corrects part of the scale's rounding error
    scaled = blocks / _read_scales(scales, ranges).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2, out_int32=True).view(-1, 2)
    return (codes[:, 0] * 16 + codes[:, 1]).to(torch.uint8), scales, ranges


def dequantise(
    codes: Tensor, scales: Tensor, ranges: Tensor, shape: tuple[int, int], pairs: Tensor | None = None
) -> Tensor:
    """Codes, scales and ranges from `quantise` -> the weight, fp32. `pairs`: the table of `levels`, made if None."""
    pairs = levels(codes.device) if pairs is None else pairs
    blocks = F.embedding(codes.int(), pairs).view(-1, BLOCK) * _read_scales(scales, ranges)[:, None]
    return blocks.flatten()[: shape[0] * shape[1]].view(shape)


def levels(device: torch.device) -> Tensor:
    """[256, 2]: the two numbers that each byte stands for, so that one look-up reads both."""
    return _make_levels(device) if torch.compiler.is_compiling() else _cached_levels(device)


def _make_levels(device: torch.device) -> Tensor:
    table = torch.tensor(NF4, device=device)
    return torch.cartesian_prod(table, table)


@lru_cache(maxsize=8)
def _cached_levels(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached table must work in training too
        return _make_levels(device)


def _read_scales(scales: Tensor, ranges: Tensor) -> Tensor:
    ranges = ranges.view(torch.float32).repeat_interleave(GROUP, dim=0)[: len(scales)]
    return ranges[:, 0] + ranges[:, 1] * scales


class QuantisedProduct(torch.autograd.Function):
    """x W^T with a gradient for x only. It saves the codes for the backward pass, not the weight."""

    @staticmethod
    def forward(
        ctx, x: Tensor, codes: Tensor, scales: Tensor, ranges: Tensor, shape: tuple[int, int], pairs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(codes, scales, ranges, pairs)
        ctx.shape = shape
        return F.linear(x, dequantise(codes, scales, ranges, shape, pairs).to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *quantised, pairs = ctx.saved_tensors
        return grad @ dequantise(*quantised, ctx.shape, pairs).to(grad.dtype), *[None] * 5


class QuantisedLinear(nn.Linear):
    """A frozen Linear whose weight is stored in 4 bits and restored for each product. LoRA may adapt it.

    The tensors of the weight are frozen parameters, so that FSDP cuts them into slices and gathers them.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name, tensor in zip(PARTS, quantise(linear.weight), strict=True):
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.register_parameter("bias", linear.bias if linear.bias is None else linear.bias.requires_grad_(False))

    @property
    def weight(self) -> Tensor:
        """[out, in], fp32, computed at each access; not a parameter. In slices, all processes must read it."""
        return dequantise(*(gathered(getattr(self, part)) for part in PARTS), (self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        table = levels(x.device)  # not inside the autograd function: torch.compile cannot make the table there
        product = QuantisedProduct.apply(x, self.codes, self.scales, self.ranges, shape, table)
        return product if self.bias is None else product + self.bias


def quantise_linears(model: nn.Module, patterns: Sequence[str] = (ALL,)) -> nn.Module:
    """Quantise the Linears that a pattern fits, in place, with or without adapters on them; see `select_linears`.

    Raises: InputError as `select_linears`; for lm_head, because the losses read its whole weight; and for a model in
    slices, see `quantised_slices`.
    """
    found = select_linears(model, patterns)
    if any(hasattr(linear.weight, "to_local") for linear in found.values()):
        raise InputError(
            "quantise_linears: needed a whole model, got slices, whose shapes cannot change; use the copy "
            "that quantised_slices(model) makes"
        )
    if HEAD in found:
        raise InputError(
            f"quantise_linears: {HEAD} must stay unquantised, because the losses read its weight; leave it out"
        )
    chosen = {id(linear) for linear in found.values()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in chosen and not isinstance(child, QuantisedLinear):
                setattr(parent, name, QuantisedLinear(child))
    return model


@torch.no_grad()
def quantised_slices(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in slices of a model in slices, with its Linears in 4 bits. All processes must call it.

    Each weight is gathered, quantised and cut into slices in its turn, so no process holds two whole weights, and a
    slice has the bits of `quantise_linears` on the whole model. dtype: of the other weights; None keeps it.
    """
    from minirlhf.runtime.parallel.copies import copied
    from minirlhf.runtime.parallel.sharding import fill

    twin = copied(model, lambda empty: quantise_linears(empty).to(dtype=dtype))
    for name, layer in twin.named_modules():
        if isinstance(layer, QuantisedLinear):
            weight = gathered(model.get_parameter(f"{name}.weight"))
            for part, values in zip(PARTS, quantise(weight), strict=True):
                fill(getattr(layer, part), values)
    return twin


def plain(model: nn.Module) -> nn.Module:
    """A model of plain Linears that computes the same, for saving: the adapter is merged, 4-bit weights are restored.

    Changed weights get the embedding's dtype and are moved to the CPU layer by layer. All other weights are shared
    with `model`, and `model` does not change.
    """
    active = active_adapter(model)
    view = adapter_view(model, active)
    dtype = core_of(view).model.embed_tokens.weight.dtype
    for name, layer in adapted_layers(view).items():
        core_of(view).set_submodule(name, layer.plain(layer.merged_weight({active: 1.0}).to(dtype).cpu()))
    for name, layer in linears_of(view).items():
        if isinstance(layer, QuantisedLinear):
            core_of(view).set_submodule(name, linear_of(layer.weight.to(dtype).cpu(), layer.bias))
    return view


def memory_report(model: nn.Module) -> dict[str, int | float]:
    """Bytes of quantised, trained and frozen weights, and the quantised bytes as a fraction of their size in fp32.

    A tensor that several modules share counts once.
    """
    layers = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    quantised = sum(getattr(layer, part).nbytes for layer in layers for part in PARTS)
    as_fp32 = sum(4 * layer.in_features * layer.out_features for layer in layers)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    return {
        "quantised_bytes": quantised,
        "trained_bytes": sum(p.nbytes for p in parameters if p.requires_grad),
        "frozen_bytes": sum(p.nbytes for p in parameters if not p.requires_grad),
        "quantised_share_of_fp32": quantised / as_fp32 if as_fp32 else 0.0,
    }
