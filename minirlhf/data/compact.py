"""Rows of ids in flat arrays: four bytes an id, instead of the eighty of a Python list."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from minirlhf.data.batches import EncodedRow
from minirlhf.data.rows import check_row


class Arrays(NamedTuple):
    """The ids of all rows one after another. Each row has a prompt and the same number of responses."""

    ids: np.ndarray  # int32
    ends: np.ndarray  # int64 [rows, 1 + responses]: where the prompt and each response end in `ids`
    sources: np.ndarray  # int64 [rows]: the number of the source row
    learned: np.ndarray  # uint8: for each id, whether it is learned; empty if all responses are learned


class CompactRows(Sequence):
    """`rows[i]` makes the EncodedRow i from the arrays and from the source rows."""

    def __init__(self, arrays: Arrays, sources: Sequence[dict]) -> None:
        self.arrays, self.sources = arrays, sources

    def __len__(self) -> int:
        return len(self.arrays.sources)

    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # an index from the end, and an IndexError beyond it
        ids, ends, sources, learned = self.arrays
        bounds = [int(ends[i - 1, -1]) if i else 0, *ends[i].tolist()]
        prompt, *responses = (ids[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False))
        masks = [learned[a:b].astype(bool).tolist() for a, b in zip(bounds[1:], bounds[2:], strict=False)]
        whole = not len(learned) or all(map(all, masks))
        return EncodedRow(self.sources[int(sources[i])], prompt, tuple(responses), None if whole else tuple(masks))

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Builder:
    """Takes rows one after another."""

    def __init__(self, responses: int) -> None:
        self.ids, self.ends, self.sources, self.learned = array("i"), array("q"), array("q"), array("B")
        self.responses, self.gaps = responses, False

    def add(self, row: EncodedRow, source: int) -> None:
        parts = [row.prompt, *row.responses]
        self.ends.extend(list(accumulate(map(len, parts), initial=len(self.ids)))[1:])
        self.sources.append(source)
        for part in parts:
            self.ids.extend(part)
        masks = row.learned or [[True] * len(ids) for ids in row.responses]
        for mask in [[False] * len(row.prompt), *masks]:
            self.learned.extend(mask)
        self.gaps = self.gaps or row.learned is not None

    def arrays(self) -> Arrays:
        ends = _of(self.ends, np.int64).reshape(-1, 1 + self.responses)
        learned = _of(self.learned, np.uint8) if self.gaps else np.empty(0, np.uint8)
        return Arrays(_of(self.ids, np.int32), ends, _of(self.sources, np.int64), learned)


def _of(values: array, dtype: type) -> np.ndarray:
    return np.frombuffer(values, dtype) if values else np.empty(0, dtype)


def chunks(
    rows: Sequence[dict], keys: Sequence[str], most_rows: int = 1000, most_characters: int = 1 << 20
) -> Iterator[tuple[range, list[dict]]]:
    """(numbers, rows) to tokenise together: a tokenizer needs about 100 bytes for each character."""
    chunk, characters = [], 0
    for i in range(len(rows)):
        row = rows[i]
        check_row("encode_rows", i, row, keys)
        chunk.append(row)
        characters += sum(len(row[key]) for key in keys)
        if len(chunk) == most_rows or characters >= most_characters or i + 1 == len(rows):
            yield range(i + 1 - len(chunk), i + 1), chunk
            chunk, characters = [], 0
