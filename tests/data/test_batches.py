"""The order of rows, their padding, and micro-batches that fit the memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.data import Batches, EncodedRow, microbatches, pad_sequences
from minirlhf.data.batches import pad_rows, row_groups
from minirlhf.errors import InputError

ROWS = [f"row {i}" for i in range(10)]


def batches(rows=ROWS, batch_size=4, steps=10, seed=0, stream="sft"):
    return Batches(rows, batch_size=batch_size, steps=steps, seed=seed, stream=stream)


def test_batch_k_is_a_pure_function_of_rows_seed_and_k():
    run = list(batches())
    assert len(run) == len(batches()) == 10
    for k in (9, 0, 5, 5, 3):  # in any order, and twice
        assert batches()[k] == run[k]
    used = batches()
    assert [used[k] for k in reversed(range(10))] == run[::-1]
    assert batches(steps=3)[2] == run[2]


def test_every_row_is_drawn_once_per_epoch_even_if_an_epoch_ends_inside_a_batch():
    draws = [draw for batch in batches() for draw in batch]  # 40 draws: 4 epochs of 10
    for epoch in range(4):
        part = draws[epoch * 10 : epoch * 10 + 10]
        assert {draw.epoch for draw in part} == {epoch}
        assert sorted(draw.index for draw in part) == list(range(10))
    assert all(draw.row == ROWS[draw.index] for draw in draws)


def test_epochs_seeds_and_streams_shuffle_differently():
    def order(epoch=0, **changes):
        return tuple(draw.index for draw in batches(batch_size=10, **changes)[epoch])

    orders = [order(), order(1), order(2), order(seed=1), order(stream="ppo")]
    assert len(set(orders)) == 5 and tuple(range(10)) not in orders


def test_a_batch_larger_than_the_data_draws_a_row_again_as_another_epoch():
    draws = batches(rows=["a", "b"], batch_size=5, steps=2)[1]  # draws 5 to 9
    assert [draw.epoch for draw in draws] == [2, 3, 3, 4, 4]
    assert len({(draw.index, draw.epoch) for draw in draws}) == 5


@pytest.mark.parametrize("k", [-1, 10])
def test_steps_outside_the_run_are_refused(k):
    with pytest.raises(IndexError, match=f"^Batches: step {k} of 10$"):
        batches()[k]


@pytest.mark.parametrize("stream", ["sft", "ppo"])
def test_no_rows_are_refused(stream):
    with pytest.raises(InputError, match=f"^{stream}: needed at least one row to train on, got none$"):
        batches(rows=[], stream=stream)


def test_padding_and_masks_by_hand():
    batch = pad_sequences([[5, 6], [7], [5]], [[8], [8, 9, 2], []], pad_id=4)
    assert batch.input_ids.tolist() == [[5, 6, 8, 4], [7, 8, 9, 2], [5, 4, 4, 4]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert [x.dtype for x in batch] == [torch.int64, torch.bool, torch.bool]


def test_a_real_token_with_the_pad_id_is_real():
    batch = pad_sequences([[0]], [[0, 0]], pad_id=0)
    assert batch.attention_mask.all() and batch.completion_mask.tolist() == [[False, True, True]]


def test_a_prompt_without_a_response_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        pad_sequences([[1], [2]], [[3]], pad_id=0)


def test_microbatches_by_hand():
    # longest first: 9; then 5 5 (2 * 5 <= 10); then 2 2 2 2 1 (5 * 2 <= 10)
    assert microbatches([2, 5, 1, 9, 2, 5, 2, 2], 10) == [[3], [1, 5], [0, 4, 6, 7, 2]]


def test_a_row_longer_than_the_bound_is_alone_in_its_group():
    assert microbatches([3, 20, 30], 10) == [[2], [1], [0]]
    assert microbatches([], 10) == []


def test_rows_of_one_unit_stay_together_where_they_fit():
    lengths, units = [9, 2, 3, 8, 4, 1], [0, 0, 1, 1, 2, 2]
    assert microbatches(lengths, 18, units) == [[0, 1], [3, 2], [4, 5]]
    assert microbatches(lengths, 36, units) == [[0, 1, 3, 2], [4, 5]]
    assert microbatches(lengths, 9, units) == [[0], [1], [3], [2], [4, 5]]  # rows that do not fit come apart
    # the group of the short row 1 does not take the longer row 2: callers read the width from the first row
    assert microbatches([9, 2, 8], 9, [0, 0, 1]) == [[0], [1], [2]]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), max_size=40), st.integers(1, 120))
def test_units_change_no_bound_and_lose_no_row(rows, bound):
    lengths, units = [n for n, _ in rows], [unit for _, unit in rows]
    groups = microbatches(lengths, bound, units)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        assert lengths[group[0]] == max(lengths[row] for row in group)
        assert len(group) == 1 or lengths[group[0]] * len(group) <= bound
    for unit in set(units):
        members = [i for i in range(len(rows)) if units[i] == unit]
        if len(members) * max(lengths[i] for i in members) <= bound:
            assert sum(any(units[i] == unit for i in group) for group in groups) == 1


@settings(max_examples=100)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_microbatches_hold_every_row_once_within_the_bound(lengths, bound):
    groups = microbatches(lengths, bound)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert lengths[group[0]] == longest  # callers read a group's width from its first row
        assert len(group) == 1 or longest * len(group) <= bound
    flat = [lengths[row] for group in groups for row in group]
    assert flat == sorted(flat, reverse=True)
    assert all(  # no group could have taken the next row too
        (len(a) + 1) * lengths[a[0]] > bound for a in groups[:-1]
    )


def row(prompt, *responses):
    return EncodedRow({}, prompt, responses)


def test_row_groups_by_hand():
    # lengths 3, 5, 2, 4; longest first: 5 + 4 (2 * 5 <= 10), then 3 + 2 (2 * 3 <= 10)
    rows = [row([1], [2, 3]), row([1, 2, 3], [4, 5]), row([1], [2]), row([1, 2, 3], [4])]
    assert row_groups(rows, 10) == [[rows[1], rows[3]], [rows[0], rows[2]]]
    assert row_groups(rows, 9) == [[rows[1]], [rows[3], rows[0]], [rows[2]]]
    assert row_groups([], 10) == []


def test_row_groups_count_the_longest_response_once_for_each_side():
    # both rows have length 1 + 3; two sides of two rows are 4 * 4 = 16 tokens
    rows = [row([1], [2], [3, 4, 5]), row([1], [2, 3, 4], [5])]
    assert row_groups(rows, 16, sides=2) == [rows]
    assert row_groups(rows, 15, sides=2) == [[rows[0]], [rows[1]]]
    assert row_groups(rows, 15, sides=1) == [rows]


def test_pad_rows_by_hand():
    rows = [row([5, 6], [8], [9, 2]), row([7], [8, 9, 2], [])]
    batch = pad_rows(rows, (0, 1), 4, "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 8, 4], [7, 8, 9, 2], [5, 6, 9, 2], [7, 4, 4, 4]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_pad_rows_takes_the_sides_that_are_asked_for():
    rows = [row([5], [8], [9]), row([7], [6], [2])]
    assert pad_rows(rows, (1,), 0, "cpu").input_ids.tolist() == [[5, 9], [7, 2]]
    assert pad_rows(rows, (1, 0), 0, "cpu").input_ids.tolist() == [[5, 9], [7, 2], [5, 8], [7, 6]]


def test_batches_of_settings_say_size_and_steps_once():
    from minirlhf.algorithms import PPOConfig, SFTConfig

    rows = list(range(10))
    sft = Batches.of(rows, SFTConfig(steps=7, batch_size=4), seed=3, stream="sft")
    plain = Batches(rows, batch_size=4, steps=7, seed=3, stream="sft")
    assert [sft[k] for k in range(len(sft))] == [plain[k] for k in range(7)]
    assert len(Batches.of(rows, SFTConfig(steps=70, batch_size=5, max_epochs=2.0))) == 4  # 2 epochs of 10 rows
    ppo = PPOConfig(steps=70, batch_size=5, minibatch_size=5)
    assert [len(Batches.of(rows, ppo)), len(Batches.of(rows, ppo, times=2))] == [70, 140]
