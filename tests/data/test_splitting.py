"""Which rows are held out."""

import zlib

from minirlhf.data.splitting import split_rows

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
