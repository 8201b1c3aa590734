"""Settings of a program: frozen dataclasses filled from their defaults, then a TOML file, then flags.

The dataclass is the only description: its fields give names, types and defaults. The comment beside a field is its help
text, so a reader of the source and a reader of `--help` see the same words:

    clip_eps: float = 0.2  # [ratio] half-width of the trust region; a longer comment
    #                        continues directly below. A blank line ends it. [-] means: no unit.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from minirlhf.errors import InputError, nearest

TOP = "job"  # the section whose fields are plain flags and the top-level keys of a TOML file
TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path", NoneType: "none"}
# the last line of a field, with its comment: it begins with the field's name or closes the brackets of a long default
FIELD_COMMENT = re.compile(r" {4}(?:\w+:|[)\]}]).*\s#\s*(\[.+)")


def parse_settings(
    sections: dict[str, type], argv: list[str] | None = None, *, description: str, epilogue: str = ""
) -> dict[str, Any]:
    """Build one instance per section. Flags override the TOML file of `--config`; the file overrides the defaults.

    Args:
        sections: name -> dataclass. A field of section "ppo" is the flag `--ppo.field` and a key of the table `[ppo]`.
                  A field of section "job" is a plain flag (`--seed`) and a top-level key of the file.
        argv:     the words after the program's name; None takes sys.argv.
        description, epilogue: the text of `--help` above and below its table.
    Raises: InputError for an unknown, repeated, missing or ill-typed setting, for a file that cannot be read, and with
        the text of any ValueError that a dataclass raises.   SystemExit(0) after `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        if os.environ.get("RANK", "0") == "0":  # under torchrun every process reads the same flags
            print(help_text(sections, description, epilogue))
        raise SystemExit(0)
    hints = {name: hint for section, cls in sections.items() for name, _, hint in _fields(section, cls)}
    flags = _read_flags(argv, {**hints, "config": str})
    values = _read_toml(flags.pop("config"), sections, hints) | flags if "config" in flags else flags
    built = {}
    for section, cls in sections.items():
        for name, field, hint in _fields(section, cls):
            if name not in values and _default(field) is dataclasses.MISSING:
                raise InputError(f"--{name}: needed {_needed(hint)}, got nothing; give a value, or see --help.")
        given = {field.name: values[name] for name, field, _ in _fields(section, cls) if name in values}
        try:
            built[section] = cls(**given)
        except ValueError as error:
            raise InputError(str(error)) from error
    return built


def settings_to_toml(settings: dict[str, Any]) -> str:
    """All settings as TOML text; `--config` on this text builds equal instances.

    TOML has no null. A None that is the default is left out; any other None becomes the string "none".
    Raises: InputError for a value that would not read back equal, such as the text "none" in a field that may be None.
    """
    blocks = []
    for section, instance in sorted(settings.items(), key=lambda item: item[0] != TOP):  # top-level keys come first
        lines = [f"[{section}]"] if section != TOP else []
        for name, field, hint in _fields(section, type(instance)):
            value, read_back = getattr(instance, field.name), ...
            if value is None and _default(field) is None:
                continue
            lines.append(f"{field.name} = {_as_toml(value)}")
            with suppress(ValueError, OverflowError):  # encode() refuses half a surrogate pair, as writing a file does
                read_back = _read(hint, tomllib.loads(lines[-1].encode().decode())[field.name], is_text=False)
            if read_back != value and repr(read_back) != repr(value):  # nan differs from itself, but its repr does not
                raise InputError(f"{name}: needed a value that TOML can give back, got {value!r}; choose another.")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def with_defaults(cls: type, **defaults: Any) -> type:
    """A frozen dataclass derived from `cls` in which the named fields have other defaults.

    Raises: InputError for a name that is no field of `cls`, or a value of another type.
    """
    fields = {name: hint for name, _, hint in _fields(TOP, cls)}
    for name in defaults:
        if name not in fields:
            raise InputError(f"{cls.__name__}: no field {name!r}; the nearest is {nearest(name, fields)}.")
    changed = []
    for name, value in defaults.items():
        value = list(value) if isinstance(value, tuple) else value  # TOML has no tuples
        value = _checked(f"{cls.__name__}: {name}", fields[name], value, is_text=False)
        changed.append((name, fields[name], dataclasses.field(default=value)))
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return dataclasses.make_dataclass(cls.__name__, changed, bases=(cls,), namespace=namespace, frozen=True)


def field_help(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> (unit, meaning), from the comments in the source of the class and its bases; unit "" means `[-]`.

    A field without a comment of the form `# [unit] meaning` is absent.
    """
    found: dict[str, tuple[str, str]] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        with suppress(OSError, TypeError):  # a class typed at a prompt has no source; --help then lacks the meanings
            for name, comment in _field_comments(textwrap.dedent(inspect.getsource(base))).items():
                if match := re.fullmatch(r"\[([^\]]+)\]\s+(.+)", comment):
                    found[name] = (match[1] if match[1] != "-" else "", match[2])
    return {field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}


def help_text(sections: dict[str, type], description: str, epilogue: str = "") -> str:
    """The text of `--help`: description, a table (flag, default, [unit], meaning) per section, epilogue."""
    tables = {TOP: [("--config", "none", "", "TOML file of settings; flags override it")]}
    for section, cls in sections.items():
        notes = field_help(cls)
        for name, field, hint in _fields(section, cls):
            unit, meaning = notes.get(field.name, ("", ""))
            meaning += f" ({_needed(hint)})" if "one of " in _needed(hint) else ""
            default = "required" if _default(field) is dataclasses.MISSING else _in_shell(_default(field))
            tables.setdefault(section, []).append((f"--{name}", default, f"[{unit}]" if unit else "", meaning))
    rows = [row for table in tables.values() for row in table]
    # A default of more than 20 letters shifts its own line only, so that all other meanings stay on the screen.
    widths = [max(len(row[i]) for row in rows if len(row[i]) <= limit) for i, limit in enumerate((99, 20, 20))]
    indent = " " * (sum(widths) + 8)
    width = max(shutil.get_terminal_size((120, 24)).columns, len(indent) + 36)
    lines = [description.strip()]
    for section, table in tables.items():
        lines += ["", f"[{section}]" if section != TOP else "common settings"]
        for *cells, meaning in table:
            left = "  ".join(["", *(cell.ljust(n) for cell, n in zip(cells, widths, strict=True)), ""])
            indents = {"initial_indent": left, "subsequent_indent": indent}
            lines.append(textwrap.fill(meaning, width, **indents, break_on_hyphens=False) or left.rstrip())
    return "\n".join(lines + ["", epilogue.strip()]).rstrip()


def _fields(section: str, cls: type) -> list[tuple[str, dataclasses.Field, Any]]:
    """(full name, field, resolved type) of every setting in a section."""
    hints, prefix = get_type_hints(cls), f"{section}." if section != TOP else ""
    return [(prefix + field.name, field, hints[field.name]) for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _read_flags(argv: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        flag, equals, text = (word := words.pop(0)).partition("=")
        name = flag.removeprefix("--").replace("-", "_")  # --stop-after means --stop_after
        if not flag.startswith("-"):
            raise InputError(f"command line: needed --name value, got {word!r} alone; see --help.")
        if name not in hints or not flag.startswith("--"):
            closest = nearest(name, hints)
            raise InputError(f"command line: no setting {flag!r}; the nearest is --{closest}; see --help.")
        if not equals:
            alone = not words or words[0].startswith("--")  # -1 is a value; a text such as --x needs the = form
            if alone and bool not in (hints[name], *get_args(hints[name])):
                raise InputError(f"{flag}: needed {_needed(hints[name])}, got no value; give a value, or see --help.")
            text = "true" if alone else words.pop(0)
        if name in values:
            raise InputError(f"{flag}: needed once, got a second time with {text!r}; keep one of the two.")
        values[name] = _checked(flag, hints[name], text, is_text=True)
    return values


def _read_toml(path: str, sections: dict[str, type], hints: dict[str, Any]) -> dict[str, Any]:
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: needed a TOML file, got: {error.strerror}; check the path.") from None
    except ValueError as error:  # not UTF-8, or broken TOML; the message of tomllib has the line
        raise InputError(f"--config {path}: needed valid TOML in UTF-8, got: {error}; correct the file.") from None
    tables = [section for section in sections if section != TOP]
    entries: dict[str, Any] = {}
    for key, value in document.items():
        inside = key in tables and isinstance(value, dict)
        entries |= {f"{key}.{name}": entry for name, entry in value.items()} if inside else {key: value}
    for name, value in entries.items():
        if name not in hints:
            is_table = tables and (isinstance(value, dict) or name in tables)
            closest = f"[{nearest(name, tables)}]" if is_table else nearest(name, hints)
            noun = "table" if isinstance(value, dict) else "setting"
            raise InputError(f"{path}: no {noun} {name!r}; the nearest is {closest}; see --help.")
    return {name: _checked(f"{path}: {name}", hints[name], value, is_text=False) for name, value in entries.items()}


def _checked(who: str, hint: Any, value: Any, is_text: bool) -> Any:
    try:
        return _read(hint, value, is_text)
    except (ValueError, OverflowError):
        raise InputError(f"{who}: needed {_needed(hint)}, got {_as_toml(value)}; see --help.") from None


def _read(hint: Any, value: Any, is_text: bool) -> Any:
    """Turn `value` into the type `hint`.   Raises: ValueError if it does not fit.

    is_text: `value` is text from the command line; otherwise it is a TOML value.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if NoneType in args and value == "none":
            return None
        for option in sorted(args, key=lambda option: option in (str, Path)):  # text fits everything, so it comes last
            with suppress(ValueError, OverflowError):
                return _read(option, value, is_text)
    elif origin is Literal:
        for choice in args:
            if _as_text(choice) == value if is_text else (type(choice), choice) == (type(value), value):
                return choice
    elif origin in (tuple, list):
        items = (value.split(",") if value else []) if is_text else value
        if isinstance(items, list):
            hints = args[:1] * len(items) if origin is list or args[-1] is ... else args
            return origin(_read(*pair, is_text) for pair in zip(hints, items, strict=True))
    elif is_text and hint is bool and value in ("true", "false"):
        return value == "true"
    elif (is_text and hint in (int, float)) or (hint, type(value)) in ((float, int), (Path, str)):
        return hint(value)
    elif type(value) is hint:  # not isinstance: a bool is an int to it
        return value
    raise ValueError


def _needed(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_needed, args))
    if origin is Literal:
        return "one of " + ", ".join(map(_as_text, args))
    if origin is list or (origin is tuple and args[-1] is ...):
        return f"a list (each {_needed(args[0])})"
    return f"a list of {len(args)} ({', '.join(map(_needed, args))})" if origin is tuple else TYPES[hint]


def _as_text(value: Any) -> str:
    """The text that a flag reads as `value`."""
    if isinstance(value, tuple | list):
        return ",".join(map(_as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _in_shell(value: Any) -> str:
    """`value`, quoted for a shell."""
    text = _as_text(value)
    escaped = text.encode("unicode_escape").decode().replace("'", "\\'")
    return shlex.quote(text) if text.isprintable() else f"$'{escaped}'"


def _as_toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    if isinstance(value, dict):
        return "a table"  # for error messages; no field is a table
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = "none" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids a plain DEL


def _field_comments(source: str) -> dict[str, str]:
    """Name -> comment `[unit] meaning` of every field in the class that `source` defines."""
    comments: dict[str, str] = {}
    name, continues = "", False
    for line in source.splitlines():
        if statement := re.match(r" {4}(?:(\w+):|[\w@])", line):
            name = statement[1] or ""  # a method has no name here
        if beside := FIELD_COMMENT.match(line):
            comments[name], continues = beside[1], True
        elif continues and (below := re.match(r"\s*#+\s*(.*)", line)):
            comments[name] += f" {below[1]}"
        else:
            continues = False
    return comments
