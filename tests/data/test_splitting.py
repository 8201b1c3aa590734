"""Which rows are held out."""

import zlib

import pytest

from minirlhf.data.splitting import split_rows
from minirlhf.errors import InputError

PROMPTS = [f"question {i}" for i in range(400)]
HELD_OUT = [prompt for prompt in PROMPTS if zlib.crc32(prompt.encode()) % 20 == 0]


def split(prompts):
    training, held_out = split_rows([{"prompt": prompt, "line": i} for i, prompt in enumerate(prompts)])
    return [row["prompt"] for row in training], [row["prompt"] for row in held_out]


def test_a_twentieth_of_the_prompts_is_held_out_and_rows_keep_their_order():
    training, held_out = split(PROMPTS)
    assert held_out == HELD_OUT and training == [prompt for prompt in PROMPTS if prompt not in HELD_OUT]
    assert 8 <= len(held_out) <= 32  # 20 expected, standard deviation 4.4


def test_rows_are_handed_on_unchanged():
    rows = [{"prompt": prompt, "answer": 3} for prompt in PROMPTS]
    assert sum(split_rows(rows), []) != rows and all(row in rows for side in split_rows(rows) for row in side)


def test_every_row_of_a_prompt_is_on_the_same_side():
    training, held_out = split(PROMPTS * 3)
    assert not set(training) & set(held_out) and len(training) + len(held_out) == 1200


def test_which_rows_are_held_out_does_not_depend_on_the_others():
    assert set(split(PROMPTS[::-2])[1]) == set(HELD_OUT) & set(PROMPTS[::-2])


def test_a_file_of_few_rows_has_rows_on_both_sides():
    for prompt in ("question 0", HELD_OUT[0]):
        assert split([prompt]) == ([prompt], [prompt])
    assert split(["question 0", "question 1"]) == (["question 0"], ["question 1"])
    assert split([HELD_OUT[0], HELD_OUT[1]]) == ([HELD_OUT[0]], [HELD_OUT[1]])


def test_a_prompt_of_most_rows_is_not_held_out_whole():
    training, held_out = split([""] * 90 + PROMPTS[:10])  # the empty text's checksum is 0
    assert (len(training), held_out) == (95, PROMPTS[5:10])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5])
def test_a_share_of_the_prompts_is_held_out_and_a_larger_share_holds_out_the_same_prompts_and_more(share):
    rows = [{"prompt": f"question {i}"} for i in range(4000)]
    training, held_out = split_rows(rows, share)
    assert abs(len(held_out) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5  # standard deviations
    more = split_rows(rows, min(0.99, 1.5 * share))[1]
    assert all(row in more for row in held_out) and len(training) + len(held_out) == 4000
    assert split_rows(rows, share, seed=1)[1] != held_out


@pytest.mark.parametrize("number", [1, 7, 399])
def test_a_number_of_rows_is_held_out_in_whole_prompts(number):
    training, held_out = split_rows([{"prompt": prompt} for prompt in PROMPTS], number)
    assert (len(training), len(held_out)) == (400 - number, number)
    pairs, held_out = split_rows([{"prompt": prompt} for prompt in PROMPTS for _ in range(2)], number)
    assert len(held_out) in (number, number - 1)
    if number > 1:
        assert not {row["prompt"] for row in pairs} & {row["prompt"] for row in held_out}


def test_no_row_is_held_out_if_the_share_is_0():
    rows = [{"prompt": prompt} for prompt in ["", *PROMPTS]]  # the empty text has the lowest position, 0
    assert split_rows(rows, 0) == (rows, [])


def test_rows_without_prompts_are_split_by_their_texts():
    rows = [{"prompt": "", "response": prompt} for prompt in PROMPTS]
    assert [row["response"] for row in split_rows(rows)[1]] == HELD_OUT


@pytest.mark.parametrize("number", [-0.1, -1, 1.5, 400, 401, float("nan"), float("inf")])
def test_a_number_that_holds_out_no_sensible_part_is_refused(number):
    with pytest.raises(InputError, match="^held_out: needed "):
        split_rows([{"prompt": prompt} for prompt in PROMPTS], number)
