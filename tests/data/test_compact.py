"""Rows of ids in flat arrays are the same rows, in a tenth of the memory."""

import random
from dataclasses import replace

import numpy as np
import pytest

from minirlhf.data import Batches, EncodedRow, encode_rows
from minirlhf.data.batches import pad_rows
from minirlhf.data.compact import Builder, CompactRows, chunks
from minirlhf.errors import InputError
from minirlhf.text import Tokenizer


def random_rows(n, responses, gaps):
    rng, rows = random.Random(n), []
    for i in range(n):
        parts = [[rng.randrange(1 << 31) for _ in range(rng.randrange(9))] for _ in range(1 + responses)]
        masks = tuple([rng.random() < 0.5 for _ in part] for part in parts[1:])
        learned = masks if gaps and i % 2 and not all(map(all, masks)) else None
        rows.append(EncodedRow({"line": i}, parts[0], tuple(parts[1:]), learned))
    return rows


def compact(rows, responses):
    builder = Builder(responses)
    for i, row in enumerate(rows):
        builder.add(row, i)
    return CompactRows(builder.arrays(), [row.source for row in rows])


@pytest.mark.parametrize("responses", [0, 1, 2])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_rows_come_back_as_they_were(n, responses, gaps):
    rows = random_rows(n, responses, gaps)
    found = compact(rows, responses)
    assert len(found) == n and list(found) == rows and found == rows and found[3:9:2] == rows[3:9:2]
    assert found.arrays.ids.dtype == np.int32 and bool(len(found.arrays.learned)) == any(row.learned for row in rows)
    for i in range(-n, n):
        assert found[i] == rows[i] and found[i].source is rows[i].source
    for i in (n, -n - 1):
        with pytest.raises(IndexError):
            found[i]
    assert all(type(token) is int for row in found for token in row.prompt)


def test_an_id_takes_less_than_eight_bytes():
    tokenizer = Tokenizer.train(["ab"], 259)
    rows = [{"prompt": "a" * 20, "response": "b" * (20 + i % 60)} for i in range(500)]
    found = encode_rows(tokenizer, rows, ("response",), context=100).rows
    tokens = sum(len(row.prompt) + len(row.responses[0]) for row in found)
    assert sum(array.nbytes for array in found.arrays) <= 5 * tokens and len(found.arrays.ids) == tokens


def test_batches_read_them_like_a_list():
    rows = random_rows(12, 1, False)
    for a, b in zip(
        *(Batches(x, batch_size=5, steps=4, seed=1, stream="s") for x in (rows, compact(rows, 1))), strict=True
    ):
        assert a == b


def test_masks_with_gaps_become_the_completion_mask():
    rows = [EncodedRow({}, [1, 2], ([3, 4, 5], [6]), ([True, False, True], [True])), EncodedRow({}, [1], ([7], [8, 9]))]
    batch = pad_rows(rows, (0, 1), 0, "cpu")
    assert batch.completion_mask.int().tolist() == [
        [0, 0, 1, 0, 1],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0],
    ]
    whole = pad_rows([replace(row, learned=None) for row in rows], (0, 1), 0, "cpu")
    assert whole.input_ids.equal(batch.input_ids) and whole.completion_mask.sum() == batch.completion_mask.sum() + 1


def test_chunks_are_bounded_in_rows_and_characters():
    rows = [{"prompt": "x" * n, "response": ""} for n in (1, 1, 1, 50, 1, 1)]
    found = list(chunks(rows, ("prompt", "response"), most_rows=2, most_characters=20))
    assert [list(numbers) for numbers, _ in found] == [[0, 1], [2, 3], [4, 5]]
    assert [row for _, chunk in found for row in chunk] == rows
    rows[4] = {"prompt": "x"}
    with pytest.raises(InputError, match="encode_rows: row 4: needed text under 'response', got only prompt"):
        list(chunks(rows, ("prompt", "response")))


def test_the_size_of_chunks_changes_nothing(monkeypatch):
    tokenizer = Tokenizer.train(["ab ab abc"] * 9, 300)
    rows = [{"prompt": "ab" * (i % 7), "response": "abc " * (i % 11 + 1), "line": i} for i in range(50)]
    whole = encode_rows(tokenizer, rows, ("response",), context=14, max_refused=1)
    monkeypatch.setattr("minirlhf.data.compact.chunks.__defaults__", (3, 40))
    parts = encode_rows(tokenizer, rows, ("response",), context=14, max_refused=1)
    assert parts.rows == whole.rows and (parts.truncated, parts.refused) == (whole.truncated, whole.refused)
