"""The lines that a program prints: `--log_level`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LEVELS = ("quiet", "normal", "debug")
_level = "normal"


def allows(level: str) -> bool:
    """True if lines of this level are printed."""
    return LEVELS.index(level) <= LEVELS.index(_level)


@contextlib.contextmanager
def log_level(level: str) -> Iterator[None]:
    """Inside this context lines above this level, one of LEVELS, are not printed."""
    global _level
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before
