"""Rows of text -> rows of ids: cut responses are counted, rows that do not fit are named."""

import re

import pytest
import tokenizers

from minirlhf.data import encode_rows
from minirlhf.errors import InputError
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab"], 259)  # one token per byte
EOS = TOKENIZER.eos_id


def sft(prompt, response="y", **rest):
    return {"prompt": prompt, "response": response, **rest}


def ids(text):
    return TOKENIZER.encode(text)


def test_prompt_begins_with_bos_and_response_ends_with_eos():
    rows = [sft("ab", "c", line=1), sft("", "de", line=2)]
    encoded = encode_rows(TOKENIZER, rows, ("response",), context=8)
    assert [row.prompt for row in encoded.rows] == [[TOKENIZER.bos_id, *ids("ab")], [TOKENIZER.bos_id]]
    assert [row.responses for row in encoded.rows] == [([*ids("c"), EOS],), ([*ids("de"), EOS],)]
    assert [row.source for row in encoded.rows] == rows
    assert (encoded.truncated, encoded.refused) == (0, [])


def test_pairs_have_two_responses_and_prompts_none():
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    pair = encode_rows(TOKENIZER, [row], ("chosen", "rejected"), context=8).rows[0]
    assert pair.responses == ([*ids("c"), EOS], [*ids("r"), EOS])
    assert encode_rows(TOKENIZER, [row], (), context=8).rows[0].responses == ()


def test_responses_are_cut_to_the_context_and_counted():
    # context 6, prompt 1 + 2: three tokens are left. "ab" + EOS fits, "abc" + EOS loses its EOS
    rows = [sft("pp", "ab"), sft("pp", "abc"), sft("pp", "abcdef")]
    encoded = encode_rows(TOKENIZER, rows, ("response",), context=6)
    assert [row.responses[0] for row in encoded.rows] == [[*ids("ab"), EOS], ids("abc"), ids("abc")]
    assert encoded.truncated == 2


def test_each_side_of_a_pair_is_counted():
    row = {"prompt": "pp", "chosen": "abcd", "rejected": "abcde"}
    assert encode_rows(TOKENIZER, [row | {"chosen": "zbcd"}], ("chosen", "rejected"), context=6).truncated == 2
    with pytest.raises(InputError, match="chosen and rejected are the same once cut to the context's 6 tokens"):
        encode_rows(TOKENIZER, [row], ("chosen", "rejected"), context=6)


def test_prompts_that_leave_too_little_room_are_refused_by_name():
    # context 5 and one token reserved: 1 + 3 prompt tokens fit, 1 + 4 do not
    rows = [sft("abc", line=1), sft("abcd", line=2), sft("abcdefgh", line=3)]
    encoded = encode_rows(TOKENIZER, rows, ("response",), context=5, max_refused=1)
    assert [row.source["line"] for row in encoded.rows] == [1]
    assert encoded.refused == [
        "line 2: the prompt has 5 tokens and leaves 0 of the context's 5, needed 1",
        "line 3: the prompt has 9 tokens and leaves 0 of the context's 5, needed 1",
    ]


def test_reserve_counts_the_tokens_after_the_prompt():
    # context 6: after 1 + 2 tokens three are left
    assert len(encode_rows(TOKENIZER, [sft("ab")], (), context=6, reserve=3).rows) == 1
    encoded = encode_rows(TOKENIZER, [sft("ab")], (), context=6, reserve=4, max_refused=1)
    assert encoded.refused == ["'ab': the prompt has 3 tokens and leaves 3 of the context's 6, needed 4"]


def test_more_refusals_than_allowed_stop_the_run():
    rows = [sft("abcd", line=i) for i in range(1, 5)] + [sft("a", line=i) for i in range(5, 9)]
    text = (
        "4 of 8 rows cannot be used, at most 25.0% may be refused: "
        "line 1: the prompt has 5 tokens and leaves 0 of the context's 5, needed 1; "
        "line 2: the prompt has 5 tokens and leaves 0 of the context's 5, needed 1; "
        "line 3: the prompt has 5 tokens and leaves 0 of the context's 5, needed 1; "
        "shorten the prompts, cut them with --overlong, allow more with --max_refused or raise a new model's "
        "--model.max_position_embeddings"
    )
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        encode_rows(TOKENIZER, rows, ("response",), context=5, max_refused=0.25)
    assert len(encode_rows(TOKENIZER, rows, ("response",), context=5, max_refused=0.5).rows) == 4


def test_one_percent_is_allowed_by_default():
    rows = [sft("a")] * 99 + [sft("abcd")]
    assert len(encode_rows(TOKENIZER, rows, (), context=5).refused) == 1
    with pytest.raises(InputError, match=r"^1 of 99 rows cannot be used, at most 1\.0% may be refused"):
        encode_rows(TOKENIZER, rows[1:], (), context=5)


def test_summary_counts_and_names():
    rows = [sft("a"), sft("a", "bcdef"), sft("abcd", line=7)]
    summary = encode_rows(TOKENIZER, rows, ("response",), context=5, max_refused=1).summary("SFT")
    assert summary.splitlines() == [
        "SFT: 2 kept, 1 truncated, 1 refused",
        "line 7: the prompt has 5 tokens and leaves 0 of the context's 5, needed 1",
    ]


# Turns, written by a chat template: <|im_start|>role\ncontent<|im_end|>\n

TURNS = [{"role": "system", "content": "be"}, {"role": "user", "content": "ab"}]
CHAT = {"prompt": "in the plain layout", "prompt_turns": TURNS, "chosen": "cd", "rejected": "d"}


@pytest.fixture(scope="module")
def chatml():
    """One token per byte, and the two of ChatML."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend).with_template("chatml")


def test_turns_are_written_by_the_chat_template_and_answers_end_with_its_end_token(chatml):
    row = encode_rows(chatml, [CHAT], ("chosen", "rejected"), context=99).rows[0]
    start, end = (chatml.backend.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    text = [chatml.encode(part) for part in ("system\nbe", "\n", "user\nab", "assistant\n", "cd", "d")]
    system, newline, user, assistant, cd, d = text
    assert row.prompt == [start, *system, end, *newline, start, *user, end, *newline, start, *assistant]
    assert row.responses == ([*cd, end], [*d, end]) and end == chatml.eos_id
    whole = [*TURNS, {"role": "assistant", "content": "cd"}]
    assert [*row.prompt, *row.responses[0], *newline] == chatml.encode_chat(whole)[0]
    assert row.source["prompt"] == "in the plain layout"  # people and reward functions see this text


def test_a_text_prompt_can_stay_plain_text_even_beside_rows_of_turns(chatml):
    text, turns = {"prompt": "ab", "chosen": "cd"}, CHAT
    options = {"context": 99, "wrap": "plain"}
    alone = [encode_rows(chatml, [row], ("chosen",), **options).rows[0] for row in (text, turns)]
    assert encode_rows(chatml, [text, turns], ("chosen",), **options).rows == alone
    row = encode_rows(chatml, [{"prompt": "ab", "chosen": "cd"}], ("chosen",), **options).rows[0]
    assert row.prompt == chatml.encode_prompts(["ab"])[0] and row.responses[0] == [*chatml.encode("cd"), chatml.eos_id]


def test_without_a_template_turns_are_in_the_plain_layout():
    row = encode_rows(TOKENIZER, [CHAT], (), context=99).rows[0]
    assert row.prompt == TOKENIZER.encode_prompts([CHAT["prompt"]])[0]


def test_turns_that_the_template_refuses_are_counted_and_named(chatml):
    strict = chatml.with_template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    users = {**CHAT, "prompt_turns": TURNS[1:]}
    encoded = encode_rows(strict, [users, CHAT | {"line": 7}], ("chosen",), context=99, max_refused=0.5, source="f")
    assert len(encoded.rows) == 1 and len(encoded.refused) == 1
    assert encoded.refused[0].startswith("f: line 7: ") and "no system turn" in encoded.refused[0]
    # This template writes no end token, so EOS ends the answer.
    assert encoded.rows[0].responses[0] == [*strict.encode("cd"), strict.eos_id]


def test_a_row_is_refused_by_name_if_the_template_changes_earlier_text(chatml):
    forgetful = chatml.with_template("{% for m in messages[-1:] %}{{ m.role }}:{{ m.content }}{% endfor %}")
    encoded = encode_rows(forgetful, [CHAT | {"line": 7}], ("chosen",), context=99, max_refused=1.0)
    (reason,) = encoded.refused
    assert reason.startswith("line 7: chat template: its generation prompt ends with 'user:ab', and it renders these")
    assert encoded.rows == []
