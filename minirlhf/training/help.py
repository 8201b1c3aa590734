"""The text of `--help`: the common settings on one screen, all settings, or a section.

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

from minirlhf.errors import InputError, shown
from minirlhf.training.fields import TOP, as_text, default_of, fields_of
from minirlhf.training.needed import needed

SCREEN = 24  # lines of the first screen
# The settings on the first screen: plain flags, then those of the program's own section. A program has some of them.
COMMON_TOP = "config", "data", "kind", "task", "policy", "reward", "train", "student_width", "output", "resume", "seed"
COMMON_OWN = (
    "algorithm",
    "loss",
    "surrogate",
    "steps",
    "batch_size",
    "lr",
    "kl_coef",
    "beta",
    "group_size",
    "max_tokens",
)

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


def answer(argv: list[str], sections: dict[str, type], description: str, epilogue: str = "") -> str:
    """The text that `--help`, `--help all` or `--help SECTION` asks for.

    Raises: InputError for an unknown section, with the names of all sections.
    """
    asked = next(i for i, word in enumerate(argv) if word.partition("=")[0] in ("--help", "-h"))
    _, equals, topic = argv[asked].partition("=")
    following = argv[asked + 1 : asked + 2]
    if not equals and following and not following[0].startswith("-"):
        topic = following[0]
    known = ["all", *sections, *(["metrics"] if epilogue else [])]
    if topic and topic not in known:
        raise InputError(f"--help: no section {shown(topic)}; the sections are {', '.join(known)}")
    if topic == "metrics":
        return help_text({}, "", epilogue)
    if topic not in ("", "all"):
        return help_text({topic: sections[topic]}, "")
    return help_text(sections, description, epilogue) if topic else short_help(sections, description, known)


def short_help(sections: dict[str, type], description: str, topics: list[str]) -> str:
    """One screen: the settings that most users want, a line each. All settings if they fit on the screen."""
    own = [name for name in sections if name != "run"][-1]
    rows = [row for table in _tables(sections).values() for row in table]
    room = SCREEN - description.strip().count("\n") - 5  # lines for settings
    if len(rows) > room:
        wanted = [f"--{name}" for name in COMMON_TOP] + [f"--{own}.{name}" for name in COMMON_OWN]
        rows = sorted((row for row in rows if row[0] in wanted), key=lambda row: wanted.index(row[0]))[:room]
    flags, defaults = (max(len(row[i]) for row in rows if len(row[i]) <= most) for i, most in enumerate((99, 12)))
    lines = [description.strip(), ""]
    for flag, default, unit, meaning in rows:
        clause = meaning.partition(";")[0]
        left = f"  {flag:<{flags}}  {default:<{defaults}}  "
        lines.append(left + textwrap.shorten(f"{unit} {clause}", 80 - len(left), placeholder=" ..."))
    return "\n".join(lines + ["", textwrap.fill(f"--help SECTION shows more: {', '.join(topics)}", 80)])


def help_text(sections: dict[str, type], description: str, epilogue: str = "") -> str:
    """All settings: description, a table (flag, default, [unit], meaning) per section, epilogue."""
    tables = _tables(sections)
    rows = [row for table in tables.values() for row in table] or [("", "", "")]
    # A default of more than 20 letters does not widen its column: it shifts the meaning of its own line only.
    widths = [max(len(row[i]) for row in rows if len(row[i]) <= limit) for i, limit in enumerate((99, 20, 20))]
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    indent, beside = sum(widths) + 8, True
    if width - indent < 36:  # on a narrow terminal the meaning stands below the flag
        indent, beside = 6, False
    lines = [description.strip(), ""] if description else []
    for section, table in tables.items():
        lines.append(f"[{section}]" if section != TOP else "common settings")
        for *cells, meaning in table:
            left = "  ".join(["", *(cell.ljust(n) for cell, n in zip(cells, widths, strict=True)), ""])
            if not beside:
                lines.append("  ".join(["", *filter(None, cells)]))
                left = " " * indent
            indents = {"initial_indent": left, "subsequent_indent": " " * indent}
            lines.append(textwrap.fill(meaning, width, **indents, break_on_hyphens=False) or left.rstrip())
        lines.append("")
    lines += [textwrap.fill(line, width, subsequent_indent=" " * 24) for line in epilogue.strip().split("\n")]
    return "\n".join(lines).rstrip()


def _tables(sections: dict[str, type]) -> dict[str, list[tuple[str, str, str, str]]]:
    """Section -> rows (flag, default, [unit], meaning)."""
    tables = {TOP: [("--config", "none", "", "TOML or YAML file; flags override it")]} if TOP in sections else {}
    for section, cls in sections.items():
        notes = field_help(cls)
        for name, field, hint in fields_of(section, cls):
            unit, meaning = notes.get(field.name, ("", ""))
            meaning += f" ({needed(hint)})" if "one of " in needed(hint) else ""
            default = "required" if default_of(field) is dataclasses.MISSING else _in_shell(default_of(field))
            tables.setdefault(section, []).append((f"--{name}", default, f"[{unit}]" if unit else "", meaning))
    return tables


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
