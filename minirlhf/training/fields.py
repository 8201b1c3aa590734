"""The fields of a settings dataclass: their full names and defaults, and values as text and as TOML."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from minirlhf.errors import InputError, shown

TOP = "job"  # the section whose fields are plain flags and the top-level keys of a TOML file


@lru_cache(maxsize=256)  # the hints of a class take long
def fields_of(section: str, cls: type) -> list[tuple[str, dataclasses.Field, Any]]:
    """(full name, field, resolved type) of every setting in a section."""
    hints, prefix = get_type_hints(cls), f"{section}." if section != TOP else ""
    named = [(prefix + field.name.rstrip("_"), field) for field in dataclasses.fields(cls) if field.init]  # as_ is --as
    return [(name, field, hints[field.name]) for name, field in named]


def default_of(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def checked(who: str, hint: Any, value: Any, is_text: bool) -> Any:
    """As `read_value`.   Raises: InputError if the value does not fit. `who` names the setting in the error."""
    from minirlhf.training.home import at_home  # here, so that the core loads no leaf
    from minirlhf.training.needed import needed

    try:
        return at_home(read_value(hint, value, is_text))
    except (ValueError, OverflowError):
        raise InputError(f"{who}: needed {needed(hint)}, got {shown(value)}; see --help.") from None


def read_value(hint: Any, value: Any, is_text: bool) -> Any:
    """Turn `value` into the type `hint`.   Raises: ValueError if it does not fit.

    is_text: `value` is text from the command line; otherwise it is a TOML value.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if NoneType in args and value == "none":
            return None
        for option in sorted(args, key=lambda option: option in (str, Path)):  # text fits everything, so it comes last
            with suppress(ValueError, OverflowError):
                return read_value(option, value, is_text)
    elif origin is Literal:
        for choice in args:
            if as_text(choice) == value if is_text else (type(choice), choice) == (type(value), value):
                return choice
    elif origin in (tuple, list):
        items = (value.split(",") if value else []) if is_text else [value] if type(value) in (int, float) else value
        if isinstance(items, list):
            hints = args[:1] * len(items) if origin is list or args[-1] is ... else args
            return origin(read_value(*pair, is_text) for pair in zip(hints, items, strict=True))
    elif is_text and hint is bool and value in ("true", "false"):
        return value == "true"
    else:
        converts = (is_text and hint in (int, float)) or (hint, type(value)) in ((float, int), (Path, str))
        found = hint(value) if converts else value
        # nothing can use nan, inf, a number beyond 64 bits, or text with a zero byte
        usable = (not isinstance(found, int | float) or abs(found) < 2**63) and "\0" not in str(found)
        if usable and (converts or type(value) is hint):  # not isinstance, because isinstance(True, int) is True
            return found
    raise ValueError


def as_text(value: Any) -> str:
    """The text that a flag reads as `value`."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def as_toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = "none" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids a plain DEL
