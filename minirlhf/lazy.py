"""Names of a package that are loaded on first use, so that the core does not load leaves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy(package: str, leaves: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """-> `__getattr__` and `__dir__` of a package.   leaves: module -> its public names, separated by spaces."""
    home = {name: module for module, names in leaves.items() for name in names.split()}

    def load(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(home[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted([*vars(sys.modules[package]), *home])
