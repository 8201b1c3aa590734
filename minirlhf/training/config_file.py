"""The TOML file of `--config`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.training.fields import TOP, checked


def read_toml(path: str, sections: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    """The values in the file by full name, such as "ppo.clip_eps". `hints` has the type of every setting.

    Raises: InputError for a file that cannot be read, and for an unknown or ill-typed setting.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"--config {path}: needed a TOML file, got: {error.strerror}; check the path.") from None
    except ValueError as error:  # not UTF-8, or broken TOML; the message of tomllib has the line
        raise InputError(f"--config {path}: needed valid TOML in UTF-8, got: {error}; correct the file.") from None
    except RecursionError:
        raise InputError(f"--config {path}: needed settings, got values that are nested too deep.") from None
    tables = [section for section in sections if section != TOP]
    entries: dict[str, Any] = {}
    for key, value in document.items():
        inside = key in tables and isinstance(value, dict)
        entries |= {f"{key}.{name}": entry for name, entry in value.items()} if inside else {key: value}
    for name, value in entries.items():
        if name not in hints or ("." in name and name in document):  # "ppo.lr" = 1 could contradict [ppo]
            is_table = tables and (isinstance(value, dict) or name in tables)
            closest = nearest(name, tables, "[{}]") if is_table else nearest(name, hints)
            noun = "table" if isinstance(value, dict) else "setting"
            raise InputError(f"{path}: no {noun} {shown(name)}{closest}; see --help.")
    return {name: checked(f"{path}: {name}", hints[name], value, is_text=False) for name, value in entries.items()}
