"""How a reward function takes its arguments."""

import asyncio
import functools
import time

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards.calling import Timed, call_reward
from minirlhf.rewards.functions import FileReward
from minirlhf.rewards.scoring import score_completions

P, C, ROWS = ["p", "q"], ["c", "dd"], [{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": 2}]


class Callable:
    def __call__(self, completions, rows):
        return completions, rows


def by_keyword(*, rows, prompts):
    return prompts, rows


def with_rest(completions, **rest):
    return completions, rest


def all_open(**rest):
    return rest


def column(completions, answer):
    return completions, answer


def column_third(prompts, completions, answer):
    return prompts, completions, answer


def default(completions, scale=2.0, prompts=None):
    return completions, scale, prompts


def everything(*arguments):
    return arguments


def positional(prompts, completions, rows, /):
    return prompts, completions, rows


CALLS = [
    (lambda a, b, c: (a, b, c), (P, C, ROWS)),
    (lambda p, c, rows: (p, c, rows), (P, C, ROWS)),
    (lambda rows, prompts, completions: (rows, prompts, completions), (ROWS, P, C)),
    (lambda completions: completions, C),
    (lambda completions, prompts: (completions, prompts), (C, P)),
    (by_keyword, (P, ROWS)),
    (with_rest, (C, {"prompts": P, "rows": ROWS})),
    (all_open, {"prompts": P, "completions": C, "rows": ROWS}),
    (column, (C, [1, 2])),
    (column_third, (P, C, [1, 2])),
    (default, (C, 2.0, P)),
    (everything, (P, C, ROWS)),
    (positional, (P, C, ROWS)),
    (functools.partial(default, scale=3.0), (C, 3.0, P)),
    (Callable(), (C, ROWS)),
    (zip, list(zip(P, C, ROWS, strict=True))),  # written in C
]


@pytest.mark.parametrize(("reward", "expected"), CALLS)
def test_a_function_gets_the_arguments_that_its_parameters_name(reward, expected):
    found = call_reward(reward, P, C, ROWS)
    assert (list(found) if reward is zip else found) == expected


def test_a_parameter_that_is_no_column_is_named():
    with pytest.raises(
        InputError, match="^the parameter gold is neither .* has no column gold; it has prompt, answer;"
    ):
        call_reward(lambda completions, gold: [], P, C, ROWS)
    with pytest.raises(InputError, match="a row has no column gold; it has none;"):
        call_reward(lambda completions, gold: [], P, C, [{}, {}])
    with pytest.raises(InputError, match="a row has no column gold; it has prompt;"):  # not by position in some batches
        call_reward(lambda prompts, completions, gold: [], P, C, [{"gold": 1}, {"prompt": "q"}])


def test_scores_come_from_functions_of_every_form():
    assert score_completions(lambda completions: [len(c) for c in completions], P, C, ROWS) == [1.0, 2.0]
    assert score_completions(lambda *, completions, **_: map(len, completions), P, C, ROWS) == [1.0, 2.0]


@pytest.mark.parametrize("answer", [None, 3, "ab", b"ab", {1.0, 2.0}, {"a": 1, "b": 2}])
def test_an_answer_that_is_no_sequence_of_scores_is_refused(answer):
    with pytest.raises(InputError, match="needed 2 scores, one per completion, got 1"):
        score_completions(lambda p, c, r: answer, P, C, ROWS)


def clearing(prompts, completions, rows):
    scores = [float(len(c)) for c in completions]
    for given in (prompts, completions, *rows, rows):
        given.clear()
    return scores


def test_what_a_function_does_to_its_arguments_stays_with_it():
    """Else a function that strips or sorts its completions changes the samples of the run, and a `pop` the rows."""
    prompts, completions, rows = list(P), list(C), [dict(row) for row in ROWS]
    assert score_completions(clearing, prompts, completions, rows) == [1.0, 2.0]
    assert (prompts, completions, rows) == (P, C, ROWS)


def drawing(cards, rows):
    for hand, row in zip(cards, rows, strict=True):
        hand.pop()
        row["deck"]["left"].clear()
    return [0.0] * len(cards)


def test_the_lists_inside_a_row_are_copies_too():
    rows = [{"cards": [1, 2], "deck": {"left": [3, {"suit": 4}]}}] * 2  # the completions of a group share a row
    for _ in range(2):
        score_completions(drawing, P, C, rows)
    assert rows == [{"cards": [1, 2], "deck": {"left": [3, {"suit": 4}]}}] * 2


async def one_by_one(completion):
    await asyncio.sleep(0)
    return float(len(completion))


async def at_once(completions):
    return await asyncio.gather(*map(one_by_one, completions))


@pytest.mark.parametrize(
    "reward", [at_once, lambda completions: list(map(one_by_one, completions)), lambda p, c, r: at_once(c)]
)
def test_async_functions_are_awaited_also_where_a_loop_runs_already(reward):
    assert score_completions(reward, P, C, ROWS) == [1.0, 2.0]

    async def in_a_notebook():
        return score_completions(reward, P, C, ROWS)

    assert asyncio.run(in_a_notebook()) == [1.0, 2.0]


def test_a_fault_of_an_async_function_names_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("async def f(completions):\n    return [1 / 0 for _ in completions]\n")
    with pytest.raises(InputError, match="mine.py, line 2: ZeroDivisionError"):
        FileReward(f"{tmp_path}/mine.py:f")(P, C, ROWS)


def test_coroutines_of_a_list_run_at_the_same_time_and_keep_their_order():
    async def score(gate, own, waits):
        own.set()
        if waits:
            await gate.wait()  # the first ends after the second
        return float(waits)

    def reward(completions):
        first, second = asyncio.Event(), asyncio.Event()
        return [score(second, first, True), score(first, second, False), 7]

    assert call_reward(reward, ["p"] * 3, ["a"] * 3, [{}] * 3) == [1.0, 0.0, 7]


@pytest.mark.parametrize("waits", [lambda: time.sleep(60), lambda: asyncio.sleep(60)], ids=["sync", "async"])
def test_a_function_that_takes_too_long_is_refused_by_its_name(waits):
    def slow(completions):
        return waits()

    started = time.monotonic()
    with pytest.raises(InputError, match="^reward slow: needed the scores of 2 completions within 0.05 s, got none"):
        score_completions(Timed(slow, 0.05), P, C, ROWS)
    assert time.monotonic() - started < 30


def test_a_function_with_a_limit_keeps_its_arguments_answers_and_errors():
    assert score_completions(Timed(lambda completions, answer: answer, 60), P, C, ROWS) == [1.0, 2.0]
    with pytest.raises(ZeroDivisionError):
        Timed(lambda completions: 1 / 0, 60)(P, C, ROWS)
