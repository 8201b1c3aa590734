"""Choosing modules and parameters by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from minirlhf.errors import InputError
from minirlhf.model.names import name_in_family
from minirlhf.model.policy import Policy

ALL = "all-linear"
HEAD = "lm_head"  # not one of ALL
NUMBERS = ("score", "value_head")  # heads of one number: trained whole, so an adapter there would do nothing


def freeze(model: nn.Module, patterns: Sequence[str], strict: bool = True) -> int:
    """Stop training the parameters that, or whose modules, fit a pattern, by our name or the family's -> how many
    numbers that are.

    Raises: InputError if a pattern fits nothing and `strict` is set.
    """
    parameters, kind = dict(model.named_parameters()), core_of(model).config.model_type
    there = {n: name_in_family(kind, n.removeprefix("transformer.")) for n in parameters}
    frozen = {}
    for pattern in patterns:
        found = {n: p for n, p in parameters.items() if fits_within(n, pattern) or fits_within(there[n], pattern)}
        if strict and not found:
            raise InputError(f"freeze: pattern {pattern!r} fits no parameter; they are named like {min(parameters)}")
        frozen |= found
    for p in frozen.values():
        p.requires_grad_(False)
    return sum(p.numel() for p in frozen.values())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """-> (trained, all) numbers; those of a quantised weight, which is no parameter, too."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    quantised = sum(one.in_features * one.out_features for one in linears if "weight" not in one._parameters)
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes) + quantised


def core_of(model: nn.Module) -> nn.Module:
    """The part whose module names are those of a checkpoint."""
    return model.transformer if isinstance(model, Policy) else model


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def fits_within(name: str, pattern: str) -> bool:
    """Does the pattern fit, or the module that this one is in?"""
    return _fits(name, pattern) or _fits(name, f"{pattern}.*")


def name_in_files(model: nn.Module, module: str) -> str:
    """The module's name in the files of its family."""
    return name_in_family(core_of(model).config.model_type, f"{module}.weight").removesuffix(".weight")
