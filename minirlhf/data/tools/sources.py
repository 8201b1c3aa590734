"""Rows of the files that a user names, with the JSON values that they came from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from minirlhf.data.formats import Dataset, read_rows
from minirlhf.data.reading import read_values


@dataclass(frozen=True)
class Reading:
    """How to read a file; the arguments of `read_rows`."""

    options: dict[str, Any]

    def rows(self, source: str) -> Dataset:
        return read_rows(source, **self.options)

    def values(self, dataset: Dataset) -> Iterator[Kept]:
        """Each source value that gave at least one row, unchanged, with its rows."""
        by_value: dict[tuple[str, int], list[dict]] = {}
        for row in dataset.rows:
            by_value.setdefault(origin(dataset, row), []).append(row)
        for _, number, value in read_values(os.fspath(dataset.path)):
            if rows := by_value.get((dataset.path, number)):
                yield Kept(value, dataset.path, number, rows)


class Kept(NamedTuple):
    value: object
    file: str
    line: int
    rows: list[dict]


def origin(dataset: Dataset, row: dict) -> tuple[str, int]:
    """The file and the line of a row."""
    return row.get("file", dataset.path), row["line"]
