"""Other defaults for the settings of a program."""

from __future__ import annotations

import dataclasses
from typing import Any

from minirlhf.errors import InputError
from minirlhf.nearest import nearest
from minirlhf.training.fields import TOP, checked, fields_of


def with_defaults(cls: type, **defaults: Any) -> type:
    """A frozen dataclass derived from `cls` in which the named fields have other defaults.

    Raises: InputError for a name that is no field of `cls`, or a value of another type.
    """
    fields = {name: hint for name, _, hint in fields_of(TOP, cls)}
    for name in defaults:
        if name not in fields:
            raise InputError(f"{cls.__name__}: no field {name!r}{nearest(name, fields)}.")
    changed = []
    for name, value in defaults.items():
        value = list(value) if isinstance(value, tuple) else value  # TOML has no tuples
        value = checked(f"{cls.__name__}: {name}", fields[name], value, is_text=False)
        changed.append((name, fields[name], dataclasses.field(default=value)))
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return dataclasses.make_dataclass(cls.__name__, changed, bases=(cls,), namespace=namespace, frozen=True)
