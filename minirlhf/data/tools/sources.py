"""Rows of the files that a user names, with the JSON values that they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from minirlhf.data.formats import Dataset, read_rows
from minirlhf.data.reading import open_values


class Kept(NamedTuple):
    """A value of a source."""

    value: object
    file: str
    line: int
    rows: list[dict]  # the rows that it gave


@dataclass(frozen=True)
class Reading:
    """How to read files."""

    options: dict[str, Any]  # of `read_rows`

    def rows(self, source: str) -> Dataset:
        return read_rows(source, **self.options)

    def values(self, dataset: Dataset) -> Iterator[Kept]:
        """The values that gave at least one row, unchanged, with their rows."""
        by_value: dict[tuple[str | None, int], list[dict]] = {}
        for row in dataset.rows:
            by_value.setdefault((row.get("file"), row["line"]), []).append(row)
        several = any(file for file, _ in by_value)
        values = open_values(dataset.path, encoding=self.options.get("encoding"), as_text=self.as_text)
        for source in values:
            if rows := by_value.get((source.file if several else None, source.number)):
                yield Kept(source.value, source.file, source.number, rows)

    @property
    def as_text(self) -> bool:
        """As `read_rows` reads a file that is not JSON."""
        return self.options.get("as_kind") == "text"


def origin(dataset: Dataset, row: dict) -> tuple[str, int]:
    """The file and the line of a row."""
    return row.get("file", dataset.path), row["line"]
