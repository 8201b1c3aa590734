"""Mixtures of several sources: how many rows each gives, and which."""

import re

import pytest

from minirlhf.data.chosen import Chosen, Joined, choose, join
from minirlhf.data.mixing import counts, lines, mix, row_numbers
from minirlhf.errors import InputError


@pytest.mark.parametrize(
    ("strategy", "weights", "expected"),
    [
        ("concat", (), [10, 4, 6]),
        ("balanced", (), [4, 4, 4]),
        ("weighted", (1, 1, 2), [5, 5, 10]),  # 20 rows in shares of a quarter, a quarter, a half
        ("weighted", (0.7, 0.2, 0.1), [14, 4, 2]),
        ("weighted", (1, 1, 1), [7, 7, 6]),  # 6.67 each: the first two remainders are rounded up
        ("weighted", (1e6, 1e-6, 1e-6), [20, 0, 0]),
    ],
)
def test_the_rows_that_each_source_gives(strategy, weights, expected):
    assert counts([10, 4, 6], strategy, weights) == expected
    rows = [[f"{name}{i}" for i in range(n)] for name, n in zip("abc", (10, 4, 6), strict=True)]
    mixed = mix(rows, strategy, weights)
    assert [sum(row[0] == name for row in mixed) for name in "abc"] == expected


def test_a_source_with_too_few_rows_repeats_all_of_them_and_one_with_too_many_gives_a_part():
    numbers = row_numbers(4, 10, seed=0, source=0)
    assert sorted({n: numbers.count(n) for n in numbers}.values()) == [2, 2, 3, 3]  # 10 = 2 * 4 + 2
    part = row_numbers(100, 30, seed=0, source=0)
    assert len(set(part)) == 30 and part == sorted(part)
    assert part == row_numbers(100, 30, 0, 0)
    assert part != row_numbers(100, 30, 1, 0) and part != row_numbers(100, 30, 0, 1)


def test_a_mixture_of_one_source_by_any_strategy_is_the_source():
    for strategy, weights in (("concat", ()), ("balanced", ()), ("weighted", (3,))):
        assert mix([list("abc")], strategy, weights) == list("abc")
    assert mix([], "concat") == [] and mix([[], ["a"]], "concat") == ["a"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("shuffled",), "needed one of concat, weighted, balanced, got 'shuffled'"),
        (("weighted",), "needed a weight for each of 2 sources, got 0: none"),
        (("weighted", (1,)), "needed a weight for each of 2 sources, got 1: 1"),
        (("weighted", (1, 0)), "needed finite weights above 0, got 1,0; leave a source of weight 0 out"),
        (("weighted", (1, -1)), "needed finite weights above 0"),
        (("weighted", (1, float("inf"))), "needed finite weights above 0"),
        (("concat", (1, 1)), "concat takes no weights, got 1,1"),
        (("balanced", (1, 1)), "balanced takes no weights"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(arguments, reason):
    with pytest.raises(InputError, match=f"^mix: {re.escape(reason)}"):
        counts([3, 3], *arguments)


def test_the_plan_says_what_each_source_gives():
    assert lines(["a", "b", "c"], [10, 2, 4], [5, 5, 4]) == [
        "a: gives 5 rows (36% of the mixture), 5 of its 10 rows",
        "b: gives 5 rows (36% of the mixture), each of its 2 rows 2.5 times",
        "c: gives 4 rows (29% of the mixture), each row once",
    ]


class OnDisk:
    """A sequence that is no list, and counts its reads."""

    def __init__(self, n):
        self.n, self.reads = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return {"row": range(self.n)[i]}


def test_rows_on_the_disk_are_read_when_they_are_used():
    source = OnDisk(100)
    mixed = mix([source, [{"row": "a"}]], "weighted", (1, 1))
    assert isinstance(mixed, Joined) and (len(mixed), source.reads) == (101, 0)
    assert mixed[-1] == {"row": "a"} and source.reads == 0
    assert [row["row"] for row in mixed[:3]] == sorted(row["row"] for row in mixed[:3]) and source.reads == 6
    changed = choose(source, [5, 7], lambda row: row["row"] + 1)
    assert isinstance(changed, Chosen) and list(changed) == [6, 8] and list(changed[1:]) == [8]
    with pytest.raises(IndexError):
        join([source])[100]
