"""The text of `--help`.

The comment beside a field is its help text, so a reader of the source and a reader of `--help` see the same words:

    clip_eps: float = 0.2  # [ratio] half-width of the trust region; a longer comment
    #                        continues directly below. A blank line ends it. [-] means: no unit.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import shutil
import textwrap
from contextlib import suppress
from typing import Any

from minirlhf.training.fields import TOP, as_text, default_of, fields_of, needed

# the last line of a field, with its comment: it begins with the field's name or closes the brackets of a long default
FIELD_COMMENT = re.compile(r" {4}(?:\w+:|[)\]}]).*\s#\s*(\[.+)")


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
        for name, field, hint in fields_of(section, cls):
            unit, meaning = notes.get(field.name, ("", ""))
            meaning += f" ({needed(hint)})" if "one of " in needed(hint) else ""
            default = "required" if default_of(field) is dataclasses.MISSING else _in_shell(default_of(field))
            tables.setdefault(section, []).append((f"--{name}", default, f"[{unit}]" if unit else "", meaning))
    rows = [row for table in tables.values() for row in table]
    # A default of more than 20 letters does not widen its column: it shifts the meaning of its own line only.
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


def _field_comments(source: str) -> dict[str, str]:
    """Name -> comment `[unit] meaning` of every field in the class that `source` defines."""
    comments: dict[str, str] = {}
    name, continues = "", False
    for line in source.splitlines():
        if statement := re.match(r" {4}(?:(\w+):|[\w@])", line):
            name = statement[1] or ""  # "" for a method
        if beside := FIELD_COMMENT.match(line):
            comments[name], continues = beside[1], True
        elif continues and (below := re.match(r"\s*#+\s*(.*)", line)):
            comments[name] += f" {below[1]}"
        else:
            continues = False
    return comments


def _in_shell(value: Any) -> str:
    """`value`, quoted for a shell."""
    text = as_text(value)
    escaped = text.encode("unicode_escape").decode().replace("'", "\\'")
    return shlex.quote(text) if text.isprintable() else f"$'{escaped}'"
