"""Rows of the files that a user names, with the JSON values that they came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minirlhf.data.columns import check_asked
from minirlhf.data.formats.convert import with_numbers
from minirlhf.data.formats.dataset import Dataset, read_rows, tables
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

    def rows(self, source: str, one_of_several: bool = False) -> Dataset:
        return read_rows(source, one_of_several=one_of_several, **self.options)

    def sources(self, sources: Sequence[str]) -> list[Dataset]:
        """The rows of each source.   Raises: InputError for a column that the options name and no source has."""
        datasets = [self.rows(source, len(sources) > 1) for source in sources]
        check_asked({dataset.path: dataset.asked for dataset in datasets})
        return datasets

    def values(self, dataset: Dataset) -> Iterator[Kept]:
        """The values that gave at least one row, with their rows. Numbers in the cells of a table become numbers."""
        by_value: dict[tuple[str | None, int], list[dict]] = {}
        for row in dataset.rows:
            by_value.setdefault((row.get("file"), row["line"]), []).append(row)
        several = any(file for file, _ in by_value)
        as_text = self.options.get("as_kind") == "text"  # as `read_rows` opens a source
        same = {name: self.options[name] for name in ("encoding", "documents") if name in self.options}
        values = open_values(dataset.path, as_text=as_text, **same)
        in_tables = tables(values)
        for source in values:
            if rows := by_value.get((source.file if several else None, source.number)):
                value = with_numbers(source.value) if source.file in in_tables else source.value
                yield Kept(value, source.file, source.number, rows)


def origin(dataset: Dataset, row: dict) -> tuple[str, int]:
    """The file and the line of a row."""
    return row.get("file", dataset.path), row["line"]
