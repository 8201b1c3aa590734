"""Rows dealt to processes: each row once, counts as asked, tokens balanced; completions dealt anew for the updates."""

import random

import pytest

from minirlhf.data import dealing
from minirlhf.data.batches import Batches
from minirlhf.data.dealing import deal, dealt, even_counts
from minirlhf.data.encoding import EncodedRow
from minirlhf.rollout import exchange


def drawn(rng, rows):
    return [min(int(rng.lognormvariate(4, 1)) + 1, 4000) for _ in range(rows)]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 7, 64, 65])
def test_each_row_is_dealt_once_and_tokens_are_balanced(rows, processes):
    rng, counts = random.Random(rows), even_counts(rows, processes)
    assert sum(counts) == rows and max(counts) - min(counts) <= 1
    for _ in range(20):
        lengths = drawn(rng, rows)
        hands = deal(lengths, counts)
        assert [len(hand) for hand in hands] == counts and hands == [sorted(hand) for hand in hands]
        assert sorted(row for hand in hands for row in hand) == [*range(rows)]
        tokens = [sum(lengths[row] for row in hand) for hand in hands]
        if rows and rows % processes == 0:
            assert max(tokens) - min(tokens) <= max(lengths) - min(lengths)
        assert deal(lengths, counts) == hands


def test_rows_of_one_length_are_dealt_in_turn():
    assert deal([5] * 7, even_counts(7, 3)) == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_deal_worked_by_hand():
    # rounds of the longest rows: 9, 8 | 7 to the process with 8, 4 to the one with 9 | 3 to the one with 13, 1
    assert deal([1, 9, 3, 8, 4, 7], [3, 3]) == [[1, 2, 4], [0, 3, 5]]


def test_counts_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(ValueError, match=r"^deal: needed counts that sum to 3 rows, got \[1, 1\]$"):
        deal([1, 2, 3], [1, 1])


class Minibatches:
    minibatch_size = 6


def dealt_to_all(monkeypatch, batch, processes):
    monkeypatch.setattr(dealing, "world_size", lambda: processes)
    parts = []
    for number in range(processes):
        monkeypatch.setattr(dealing, "rank", lambda number=number: number)
        parts.append(dealt(batch, Minibatches()))
    return parts


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_minibatch_has_the_same_rows_with_any_number_of_processes(monkeypatch, processes):
    rng = random.Random(0)
    rows = [EncodedRow({}, [1] * rng.randint(1, 50), ([2] * rng.randint(1, 200),)) for _ in range(30)]
    batch = Batches(rows, batch_size=12, steps=1, seed=0, stream="test")[0]
    assert [draw.place for draw in batch] == [*range(12)]
    parts = dealt_to_all(monkeypatch, batch, processes)
    for k in range(2):
        share = [part[k * len(part) // 2 : (k + 1) * len(part) // 2] for part in parts]
        assert sorted(draw.place for own in share for draw in own) == [*range(6 * k, 6 * k + 6)]


def test_rows_that_are_no_rows_of_ids_are_dealt_in_turn(monkeypatch):
    assert dealt_to_all(monkeypatch, [*range(12)], 2) == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]


def test_completions_change_processes_within_their_minibatch(monkeypatch):
    rng = random.Random(1)
    lengths = [drawn(rng, 16) for _ in range(4)]  # of four processes, in two minibatches
    flat, places = [n for part in lengths for n in part], []
    for number in range(4):
        monkeypatch.setattr(exchange, "rank", lambda number=number: number)
        places.append(exchange._places(lengths, 2, 1))
    assert sorted(place for own in places for place in own) == [*range(64)]
    for k in range(2):
        share = [own[8 * k : 8 * k + 8] for own in places]
        assert all(place % 16 // 8 == k for own in share for place in own)
        tokens = [sum(flat[place] for place in own) for own in share]
        before = [sum(part[8 * k : 8 * k + 8]) for part in lengths]
        assert max(tokens) < max(before) and max(tokens) - min(tokens) < max(flat)


def test_completions_of_a_prompt_travel_together(monkeypatch):
    rng = random.Random(2)
    lengths = [drawn(rng, 16) for _ in range(2)]  # of two processes, in two minibatches: four groups of four
    places = []
    for number in range(2):
        monkeypatch.setattr(exchange, "rank", lambda number=number: number)
        places.append(exchange._places(lengths, 2, 4))
    assert sorted(place for own in places for place in own) == [*range(32)]
    for own in places:
        for start in range(0, 16, 4):
            first = own[start]
            assert first % 4 == 0 and own[start : start + 4] == [*range(first, first + 4)]
        assert [place % 16 // 8 for place in own] == [0] * 8 + [1] * 8
