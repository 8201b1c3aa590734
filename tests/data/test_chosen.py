"""Views of rows behave like the lists that they stand for."""

import pytest

from minirlhf.data.chosen import Chosen, Joined, choose, join

PARTS = [(10, 11, 12), (), (13,), (14, 15), ()]
WHOLE = [10, 11, 12, 13, 14, 15]
SLICES = [slice(None), slice(2, 5), slice(-3, None), slice(None, None, -2), slice(4, 99), slice(5, 2)]


def check_like(view, rows):
    assert len(view) == len(rows) and list(view) == rows
    for index in range(-len(rows), len(rows)):
        assert view[index] == rows[index]
    for index in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            view[index]
    for part in SLICES:
        assert len(view[part]) == len(rows[part]) and list(view[part]) == rows[part]


def test_joined_parts_are_one_sequence():
    check_like(Joined(PARTS), WHOLE)
    check_like(Joined([]), [])
    check_like(Joined([(), ()]), [])


def test_chosen_rows_are_a_sequence_and_change_when_they_are_read():
    check_like(Chosen(WHOLE, [5, 0, 0, 2]), [15, 10, 10, 12])
    check_like(Chosen(WHOLE, [5, 0, 0, 2], change=str), ["15", "10", "10", "12"])
    check_like(Chosen(Joined(PARTS), range(1, 5)), WHOLE[1:5])


def test_lists_stay_lists_and_other_rows_are_not_copied():
    assert choose(WHOLE, [1, 1]) == [11, 11] and join([[1], [2, 3]]) == [1, 2, 3]
    for view in (choose(Joined(PARTS), [1, 1]), join([[1], (2, 3)])):
        assert not isinstance(view, list)
    check_like(join([[1], (2, 3)]), [1, 2, 3])
