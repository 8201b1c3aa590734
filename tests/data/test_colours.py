"""The text of a row in pieces: prompt, learned and masked tokens."""

import pytest
import tokenizers

from minirlhf.data import EncodedRow
from minirlhf.data.colours import pieces, rendered
from minirlhf.text import Tokenizer

BYTES = Tokenizer.train(["ab"], 259)


def test_tokens_of_a_kind_are_one_piece_and_special_tokens_are_shown():
    a, b, c = BYTES.encode("abc")
    row = EncodedRow({}, [BYTES.bos_id, a], ([b, c, a, BYTES.eos_id], [c]), ([True, True, False, True], [True]))
    assert pieces(BYTES, row) == [("<|bos|>a", "prompt"), ("bc", "learned"), ("a", "masked"), ("<|eos|>", "learned")]
    assert pieces(BYTES, row, side=1) == [("<|bos|>a", "prompt"), ("c", "learned")]
    assert pieces(BYTES, EncodedRow({}, [a], ())) == [("a", "prompt")]
    assert pieces(BYTES, EncodedRow({}, [a], ([b],))) == [("a", "prompt"), ("b", "learned")]


def test_a_space_before_the_first_token_of_a_piece_stays():
    vocabulary = {"<s>": 0, "</s>": 1, "<p>": 2, "\u2581hi": 3, "\u2581you": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>", "<p>"])
    words = Tokenizer(backend, pad="<p>", bos="<s>", eos="</s>")
    assert pieces(words, EncodedRow({}, [3], ([4],))) == [("hi", "prompt"), (" you", "learned")]


@pytest.mark.parametrize("text", ["\u00e9", "\U0001f600"])
def test_a_letter_cut_by_a_border_is_shown_once_it_is_whole(text):
    first, *rest = BYTES.encode(text)
    assert pieces(BYTES, EncodedRow({}, [*BYTES.encode("a"), first], (rest,))) == [("a", "prompt"), (text, "learned")]


def test_colours_on_a_terminal_and_marks_on_a_pipe():
    parts = [("a\n", "prompt"), ("b", "learned"), ("c", "masked")]
    assert rendered(parts, colour=False) == "a\n[+b+][-c-]"
    assert rendered(parts, colour=True) == "\x1b[2ma\n\x1b[0m\x1b[1;32mb\x1b[0m\x1b[33mc\x1b[0m"


def test_a_text_cannot_command_the_terminal():
    assert rendered([("\x1b[2J\r\u202e", "prompt")], colour=False) == "\\x1b[2J\\r\\u202e"
