"""The flags of every `minirlhf data` command that reads rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from minirlhf.data.tools.sources import Reading
from minirlhf.errors import InputError
from minirlhf.jobs.data_flags import Documents, Kind, read_options
from minirlhf.training.settings import parse_settings

Config = TypeVar("Config")


@dataclass(frozen=True)
class ReadFlags:
    map: tuple[str, ...] = ()  # [-] known names for your own columns: prompt=ask,response=answer
    as_: Kind | None = None  # [-] read the rows as this kind, if they fit several
    encoding: str | None = None  # [-] of your files, such as gb18030; none: UTF-8 or UTF-16, recognised
    documents: Documents = "line"  # [-] of plain text: each line is a row, each part up to a blank line, or each file
    ignore_columns: tuple[str, ...] = ()  # [-] columns to leave unused, although they have a meaning
    max_refused: float = 0.01  # [share] of the rows that may be unusable
    max_rows: int | None = None  # [rows] of each file, from its beginning

    @property
    def reading(self) -> Reading:
        return Reading(read_options(self))


def parsed(
    config: type[Config], argv: list[str], command: Callable, words: str, least: int = 1
) -> tuple[list[str], Config]:
    """-> (the words before the first flag, the settings).

    command: its docstring is the top of `--help`.   words: names the words, for messages.   least: words needed.
    """
    count = next((i for i, word in enumerate(argv) if word.startswith("-") and word != "-"), len(argv))
    description = inspect.cleandoc(command.__doc__)
    settings: Any = parse_settings({"job": config}, argv[count:], description=description)["job"]
    if count < least:
        raise InputError(
            f"minirlhf data {command.__name__}: needed {words} first, got {count or 'nothing'}; see --help"
        )
    return argv[:count], settings
