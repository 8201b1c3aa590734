"""Prompts of plain text beside a chat template."""

import pytest
import tokenizers

from minirlhf.data import encode_rows
from minirlhf.text import Tokenizer

BYTES = Tokenizer.train(["ab"], 259)
ZEPHYR = BYTES.with_template("zephyr")
PLAIN = {"prompt": "ab", "response": "c", "line": 1}
TURNS = {"prompt": "x", "prompt_turns": [{"role": "user", "content": "ab"}], "response": "c", "line": 2}


def encode(tokenizer, rows, **options):
    return encode_rows(tokenizer, rows, ("response",), context=99, **options)


def test_a_prompt_of_text_is_one_user_turn_and_the_source_row_has_it_too():
    found = encode(ZEPHYR, [PLAIN, TURNS])
    assert found.rows[0].prompt == found.rows[1].prompt and found.rows[0].responses == found.rows[1].responses
    assert found.rows[0].source == {**PLAIN, "prompt_turns": TURNS["prompt_turns"]}  # a reward model reads it
    assert found.rows[1].source is TURNS and "prompt_turns" not in PLAIN
    assert found.notes == (
        "1 prompts are text: the chat template writes each as a user turn (--wrap plain leaves the text alone)",
    )


def test_it_can_stay_text():
    found = encode(ZEPHYR, [PLAIN], wrap="plain")
    assert (found.rows[0].prompt, found.rows[0].source) == (ZEPHYR.encode_prompts(["ab"])[0], PLAIN)
    assert found.notes == (
        "1 prompts are text: they stay plain text beside the chat template (--wrap turns makes each a user turn)",
    )


@pytest.mark.parametrize("wrap", ["turns", "plain"])
def test_without_a_template_nothing_changes_and_nothing_is_said(wrap):
    found = encode(BYTES, [PLAIN], wrap=wrap)
    assert found.rows[0].source is PLAIN and found.notes == ()


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_raw_text_has_no_prompt_and_stays_raw(prompt):
    row = {"prompt": prompt, "response": "abc"}
    found = encode(ZEPHYR, [row])
    assert found.rows[0].prompt == ZEPHYR.encode_prompts([prompt])[0] and found.notes == ()


def test_special_tokens_in_a_prompt_are_named_because_they_are_read_as_text():
    backend = tokenizers.Tokenizer.from_str(BYTES.backend.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    chatml = Tokenizer(backend).with_template("chatml")
    rows = [PLAIN, PLAIN | {"prompt": "<|im_start|>user\nab<|im_end|>"}]
    notes = encode(chatml, rows).notes
    assert notes[1:] == (
        "1 of them hold a special token such as <|im_start|>, and it is read as plain text; write turns",
    )
