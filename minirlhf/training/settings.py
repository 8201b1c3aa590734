"""Settings of a program: frozen dataclasses filled from their defaults, then a TOML file, then flags.

The dataclass is the only description: its fields give names, types and defaults, and the comment beside a field is its
help text; see `help.py`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tomllib
from contextlib import suppress
from typing import Any, get_args

from minirlhf.errors import InputError, shown
from minirlhf.training.fields import TOP, as_toml, checked, default_of, fields_of, read_value


def parse_settings(
    sections: dict[str, type], argv: list[str] | None = None, *, description: str, epilogue: str = ""
) -> dict[str, Any]:
    """Build one instance per section. Flags override the TOML file of `--config`; the file overrides the defaults.

    Args:
        sections: name -> dataclass. A field of section "ppo" is the flag `--ppo.field` and a key of the table `[ppo]`.
                  A field of section "job" is a plain flag (`--seed`) and a top-level key of the file.
        argv:     the words after the program's name; None takes sys.argv.
        description, epilogue: the text of `--help` above its table, and below all tables.
    Raises: InputError for an unknown, repeated, missing or ill-typed setting, and for a file that cannot be read. A
        ValueError of a dataclass becomes an InputError with the same text.   SystemExit(0) after `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] in ("--help", "-h") for word in argv):
        from minirlhf.training.help import answer

        text = answer(argv, sections, description, epilogue)
        if os.environ.get("RANK", "0") == "0":  # under torchrun every process reads the same flags
            print(text)
        raise SystemExit(0)
    hints = {name: hint for section, cls in sections.items() for name, _, hint in fields_of(section, cls)}
    flags = read_flags(argv, {**hints, "config": str})
    values = flags
    if "config" in flags:
        from minirlhf.training.config_file import read_settings

        values = read_settings(flags.pop("config"), sections, hints) | flags
    built = {}
    for section, cls in sections.items():
        for name, field, hint in fields_of(section, cls):
            if name not in values and default_of(field) is dataclasses.MISSING:
                from minirlhf.training.needed import needed

                raise InputError(f"--{name}: needed {needed(hint)}, got nothing; give a value, or see --help.")
        given = {field.name: values[name] for name, field, _ in fields_of(section, cls) if name in values}
        try:
            built[section] = cls(**given)
        except ValueError as error:
            raise InputError(str(error)) from error
    return built


def settings_to_toml(settings: dict[str, Any]) -> str:
    """All settings as TOML text; `--config` with this text builds equal instances.

    TOML has no null. A None that is the default is left out; any other None becomes the string "none".
    Raises: InputError for a value that TOML cannot give back, such as the text "none" in a field that may be None.
    """
    blocks = []
    for section, instance in sorted(settings.items(), key=lambda item: item[0] != TOP):  # top-level keys come first
        lines = [f"[{section}]"] if section != TOP else []
        for name, field, hint in fields_of(section, type(instance)):
            value, default, read_back = getattr(instance, field.name), default_of(field), ...
            if value is None and (default is None or field.name in getattr(instance, "later_stages_only", ())):
                continue
            lines.append(f"{(key := name.rpartition('.')[2])} = {as_toml(value)}")
            with suppress(ValueError, OverflowError):  # encode() refuses half a surrogate pair, as writing a file does
                read_back = read_value(hint, tomllib.loads(lines[-1].encode().decode())[key], is_text=False)
            if read_back != value:
                raise InputError(f"{name}: needed a value that TOML can give back, got {shown(value)}; choose another.")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def read_flags(argv: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        flag, equals, text = (word := words.pop(0)).partition("=")
        name = flag.removeprefix("--").replace("-", "_")  # --stop-after means --stop_after
        if not flag.startswith("-"):
            raise InputError(f"command line: needed --name value, got {shown(word)} alone; see --help.")
        if name not in hints or not flag.startswith("--"):
            from minirlhf.nearest import nearest  # here, so that the core loads no leaf

            raise InputError(f"command line: no setting {shown(flag)}{nearest(name, hints, '--{}')}; see --help.")
        if not equals:
            alone = not words or words[0].startswith("--")  # -1 is a value; a text such as --x needs the = form
            if alone and bool not in (hints[name], *get_args(hints[name])):
                from minirlhf.training.needed import needed

                raise InputError(f"{flag}: needed {needed(hints[name])}, got no value; give a value, or see --help.")
            text = "true" if alone else words.pop(0)
        if name in values:
            raise InputError(f"{flag}: needed once, got a second time with {shown(text)}; keep one of the two.")
        values[name] = checked(flag, hints[name], text, is_text=True)
    return values
