"""The pieces of a stream add up to the text, and no piece is taken back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.text import TextStream, Tokenizer
from minirlhf.text.streaming import settled

TOKENIZER = Tokenizer.train(["the kettle is good. it is bad."] * 8, 300)


def pieces(tokenizer, ids, stop_strings=()):
    stream = TextStream(tokenizer, stop_strings)
    return [*(stream.push(token) for token in ids), stream.end()]


def test_an_emoji_of_four_tokens_arrives_whole_with_the_last_token():
    ids = TOKENIZER.encode("a\U0001f600b")
    assert len(ids) == 6
    assert pieces(TOKENIZER, ids) == ["a", "", "", "", "\U0001f600", "b", ""]


def test_pieces_have_the_spaces_of_the_whole_text():
    ids = TOKENIZER.encode(" is kettle is")
    assert pieces(TOKENIZER, ids) == [" is", " kettle", " is", ""]


def test_a_decoder_that_drops_the_first_space_drops_no_other_space(sentencepiece):
    assert pieces(sentencepiece, [257, 258, 257]) == ["the", " kettle", " the", ""]


def test_a_decoder_that_replaces_a_run_of_bytes_takes_no_piece_back(sentencepiece):
    # Two characters of two and three bytes. After the third byte this decoder sees no character at all, although the
    # first character was handed out already.
    ids = [257, *"\u00e9\u6f22".encode(), 258]
    assert sentencepiece.decode(ids[:4]) == "the\ufffd\ufffd\ufffd"
    assert pieces(sentencepiece, ids) == ["the", "", "\u00e9", "", "", "\u6f22", " kettle", ""]


def test_special_tokens_are_not_shown():
    (word,) = TOKENIZER.encode(" is")
    ids = [TOKENIZER.bos_id, word, TOKENIZER.pad_id, word, TOKENIZER.eos_id]
    assert pieces(TOKENIZER, ids) == ["", " is", "", " is", "", ""]


def test_bytes_without_a_character_are_handed_out_once_no_token_can_complete_them():
    first, *_ = TOKENIZER.encode("\u00e9")
    assert pieces(TOKENIZER, [first, *TOKENIZER.encode("b")]) == ["", "\ufffdb", ""]
    assert pieces(TOKENIZER, [first]) == ["", "\ufffd"]


def test_a_possible_stop_string_is_held_back_and_a_stop_string_is_not_shown():
    ids = TOKENIZER.encode("a\nxyz")
    assert len(ids) == 5
    assert pieces(TOKENIZER, ids, ["\nxy"]) == ["a", "", "", "", "", ""]
    assert pieces(TOKENIZER, ids, ["\nxx"]) == ["a", "", "", "\nxy", "z", ""]
    assert pieces(TOKENIZER, ids[:3], ["\nxy"]) == ["a", "", "", "\nx"]


def test_the_earliest_of_several_stop_strings_cuts():
    stream = TextStream(TOKENIZER, ["d", "b"])
    for token in TOKENIZER.encode("abcd"):
        stream.push(token)
    assert stream.text == "a"


def test_settled_holds_back_the_longest_beginning_of_a_stop_string():
    assert settled("fine.\nUs", ["\nUser:", "s?"]) == "fine."
    assert settled("fine.\nUs\ufffd", ["\nUser:"]) == "fine."
    assert settled("fine.\nUse", ["\nUx"]) == "fine.\nUse"


@settings(max_examples=200)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=12))
def test_the_pieces_of_any_tokens_add_up_to_their_text(ids):
    assert "".join(pieces(TOKENIZER, ids)) == TOKENIZER.decode(ids)
