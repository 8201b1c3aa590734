"""Settings that an algorithm would ignore are refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from minirlhf.errors import InputError


def refuse_changed(config: Any, *names: str, needed: str) -> None:
    """Raise InputError if a field of these names differs from its default. needed: the choice that reads the fields."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            who = type(config).__name__
            raise InputError(f"{who}: {field.name} {value} would have no effect, it needs {needed}; leave it out")
