"""The types in the state of a trainer that was read from a checkpoint: a new trainer's state shows them."""

from __future__ import annotations

import math
from typing import Any

from minirlhf.errors import shown

LARGEST = 1e15  # no counter and no coefficient comes near


def check_state(found: Any, new: Any, name: str = "trainer") -> None:
    """Raise ValueError unless `found` has every entry of `new`, the state of a trainer before its first step.

    Further entries of `found` are not checked: a new optimizer has no moments yet.
    """
    if isinstance(new, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{name} must be an object, got {shown(found)}")
        for key, value in new.items():
            if key not in found:
                raise ValueError(f"{name}/{key} is missing")
            check_state(found[key], value, f"{name}/{key}")
    elif isinstance(new, int | float) and not isinstance(new, bool):
        kind, least = ("a whole number", 0) if isinstance(new, int) else ("a number", -LARGEST)  # whole numbers count
        is_number = type(found) is int or (type(found) is float and isinstance(new, float))
        if not (is_number and math.isfinite(found) and least <= found <= LARGEST):
            raise ValueError(f"{name} must be {kind} from {least:g} to {LARGEST:g}, got {shown(found)}")
    elif hasattr(new, "shape"):
        if getattr(found, "shape", None) is None or tuple(found.shape) != tuple(new.shape):
            raise ValueError(f"{name} must be a tensor of the shape {list(new.shape)}")
    elif new is not None and type(found) is not type(new):
        raise ValueError(f"{name} must be of type {type(new).__name__}, got {shown(found)}")
