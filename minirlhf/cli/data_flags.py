"""The flags of every `minirlhf data` command that reads rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from minirlhf.data.tools.sources import Reading
from minirlhf.errors import InputError
from minirlhf.training.settings import parse_settings

Config = TypeVar("Config")


@dataclass(frozen=True)
class ReadFlags:
    map: str | None = None  # [-] columns by their meaning: prompt=ask,response=answer
    as_kind: Literal["sft", "preference", "unpaired", "prompts", "steps", "text"] | None = None  # [-] --as: read the
    #                            rows as this kind
    encoding: str | None = None  # [-] of a text file that is not UTF-8, such as gb18030
    ignore_columns: tuple[str, ...] = ()  # [-] columns to leave unused, although they have a meaning
    max_refused: float = 0.01  # [share] of the rows that may be unusable
    max_rows: int | None = None  # [rows] read only the first rows

    @property
    def reading(self) -> Reading:
        given = {
            "max_refused": self.max_refused,
            "ignore_columns": self.ignore_columns,
            "columns_map": self.map,
            "as_kind": self.as_kind,
            "encoding": self.encoding,
            "max_rows": self.max_rows,
        }
        return Reading({name: value for name, value in given.items() if value is not None})


def parsed(config: type[Config], argv: list[str], description: str, words: str, least: int = 1) -> tuple[Any, Config]:
    """-> (the words before the first flag, the settings).

    words: names the words, for messages.   least: how many words are needed.
    """
    count = next((i for i, word in enumerate(argv) if word.startswith("-") and word != "-"), len(argv))
    flags = ["--as_kind" + word[4:] if word.partition("=")[0] == "--as" else word for word in argv[count:]]
    settings = parse_settings({"job": config}, flags, description=description)["job"]
    if count < least:
        raise InputError(f"minirlhf data: needed {words} first, got {count or 'nothing'}; see --help")
    return argv[:count], settings
