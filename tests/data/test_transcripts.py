"""Transcripts of episodes as rows: what the policy wrote is learned, what the environment wrote is not."""

import json

import pytest

from minirlhf.data import encode_rows, read_rows
from minirlhf.data.colours import pieces, rendered
from minirlhf.errors import InputError
from minirlhf.text import Tokenizer

BYTES = Tokenizer.train(["ab"], 259)
CALL = [{"by": "policy", "text": "<f>2</f>"}, {"by": "environment", "text": "[4]"}, {"by": "policy", "text": "4!"}]
GUESS = [{"by": "policy", "text": "5"}]


def read(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows(str(file))


def marked(tokenizer, rows, keys, side=0):
    encoded = encode_rows(tokenizer, rows, keys, context=500, max_refused=0)
    return [rendered(pieces(tokenizer, row, side), colour=False) for row in encoded.rows]


def test_a_sample_of_a_run_is_a_row_of_sft(tmp_path):
    sample = {"step": 3, "prompt": "2?", "completion": "<f>2</f>[4]4!", "score": 1.0, "turns": CALL}
    dataset = read(tmp_path, sample)
    assert dataset.kind == "sft" and dataset.rows[0]["response"] == sample["completion"]
    assert marked(BYTES, dataset.rows, ("response",)) == ["<|bos|>2?[+<f>2</f>+][-[4]-][+4!<|eos|>+]"]
    (row,) = encode_rows(BYTES, dataset.rows, ("response",), context=500).rows
    texts = [BYTES.encode(turn["text"]) for turn in CALL]
    assert row.responses[0] == [*texts[0], *texts[1], *texts[2], BYTES.eos_id]  # each turn is encoded for itself
    assert list(row.learned[0]) == [True] * 8 + [False] * 3 + [True] * 3
    everything = encode_rows(BYTES, dataset.rows, ("response",), context=500, train_on="all").rows[0]
    assert sum(everything.mask()) == len(everything.prompt) + len(everything.responses[0]) - 1 == 16


def test_two_transcripts_are_a_pair(tmp_path):
    dataset = read(tmp_path, {"prompt": "2?", "chosen": CALL, "rejected": GUESS})
    assert dataset.kind == "preference"
    keys = "chosen", "rejected"
    assert marked(BYTES, dataset.rows, keys, side=0) == ["<|bos|>2?[+<f>2</f>+][-[4]-][+4!<|eos|>+]"]
    assert marked(BYTES, dataset.rows, keys, side=1) == ["<|bos|>2?[+5<|eos|>+]"]


def test_a_chat_template_writes_the_environment_as_turns(tmp_path):
    chatml = BYTES.with_special_tokens(["<|im_start|>", "<|im_end|>"]).with_template("chatml")
    dataset = read(tmp_path, {"prompt": "2?", "turns": [*CALL[:1], {**CALL[1], "role": "user"}, *CALL[2:]]})
    (text,) = marked(chatml, dataset.rows, ("response",))
    assert text.count("[+") == 2 and "[+<f>2</f><|im_end|>+]" in text and text.endswith("[+4!<|im_end|>+]")
    assert "<|im_start|>user\n[4]<|im_end|>" in text


def test_texts_after_the_last_turn_of_the_policy_are_not_used(tmp_path):
    dataset = read(tmp_path, {"prompt": "2?", "turns": [*GUESS, {"by": "environment", "text": "no"}]})
    assert marked(BYTES, dataset.rows, ("response",)) == ["<|bos|>2?[+5<|eos|>+]"]
    assert "after" in dataset.summary()


@pytest.mark.parametrize(
    ("turns", "error"),
    [
        ([{"by": "environment", "text": "x"}], "needed a turn by the policy to learn, got 1 turns without one"),
        ([{"by": "judge", "text": "x"}], "turns: turn 1: needed by \"policy\" or \"environment\""),
        ([*GUESS, {"by": "policy", "text": 3}], "turns: turn 2: needed by \"policy\" or \"environment\""),
        ([{"by": "policy", "text": "x", "weight": 0}], "turns: turn 1: needed by, text and role, got 'weight'"),
    ],
)  # fmt: skip
def test_a_bad_turn_is_named(tmp_path, turns, error):
    with pytest.raises(InputError, match="rows cannot be used|refused") as refused:
        read(tmp_path, {"prompt": "2?", "turns": turns})
    assert error in str(refused.value)
