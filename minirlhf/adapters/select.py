"""Choose modules and parameters by pattern: freeze some, count the trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from minirlhf.errors import InputError, shown
from minirlhf.model.names import core_of, name_in_family

ALL = "all-linear"
HEAD = "lm_head"  # ALL leaves it out
SCALAR_HEADS = ("score", "value_head")  # heads with one output: trained whole, so an adapter would add nothing


def freeze(model: nn.Module, patterns: Sequence[str], strict: bool = True) -> int:
    """Freeze a parameter if a pattern fits it or a module around it -> the count of frozen numbers.

    Raises: InputError if a pattern fits nothing and `strict` is set.
    """
    parameters, frozen = dict(model.named_parameters()), {}
    for pattern in patterns:
        found = {name: p for name, p in parameters.items() if fits(model, name, pattern)}
        if strict and not found:
            raise InputError(f"freeze: pattern {shown(pattern)} fits no parameter; names look like {min(parameters)}")
        frozen |= found
    for p in frozen.values():
        p.requires_grad_(False)
    return sum(p.numel() for p in frozen.values())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """-> (trained, all) numbers. A quantised weight counts with all its numbers; its codes are no numbers."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    quantised = sum(
        linear.in_features * linear.out_features for linear in linears if "weight" not in linear._parameters
    )
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes) + quantised


def fits(model: nn.Module, name: str, pattern: str) -> bool:
    """True if the pattern fits a module or parameter, or a module around it, by our name or the family's name."""
    names = (name, name_in_files(model, name.removeprefix("transformer.")))
    forms = (pattern, f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*")
    return any(fnmatchcase(x, form) for x in names for form in forms)


def name_in_files(model: nn.Module, name: str) -> str:
    """The name of a module in the files of the model's family."""
    return name_in_family(core_of(model).config.model_type, f"{name}.weight").removesuffix(".weight")
