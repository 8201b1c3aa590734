"""Each token of a completion has a text, and the texts add up to the completion."""

from random import Random

from minirlhf.text import Tokenizer
from minirlhf.text.streaming import BROKEN
from minirlhf.text.token_texts import token_texts

TOKENIZER = Tokenizer.train(["the kettle is good. it is bad."] * 8, 300)


def test_a_token_that_ends_inside_a_character_still_has_a_text():
    ids = TOKENIZER.encode("a\U0001f600b")
    assert token_texts(TOKENIZER, ids) == ["a", BROKEN, BROKEN, BROKEN, "\U0001f600", "b"]
    assert token_texts(TOKENIZER, ids[:3]) == ["a", BROKEN, BROKEN]
    first = ids[1]  # the beginning of an emoji, again and again
    assert token_texts(TOKENIZER, [first, first, *TOKENIZER.encode("b"), first]) == [BROKEN, BROKEN, "b", BROKEN]


def test_special_tokens_are_shown():
    (word,) = TOKENIZER.encode(" is")
    assert token_texts(TOKENIZER, [word, TOKENIZER.eos_id]) == [" is", "<|eos|>"]
    assert token_texts(TOKENIZER, []) == []


def test_a_decoder_that_drops_the_first_space_and_replaces_runs_of_bytes(sentencepiece):
    assert token_texts(sentencepiece, [257, 258, 257]) == ["the", " kettle", " the"]
    ids = [257, *"\u00e9\u6f22".encode(), 258]
    assert token_texts(sentencepiece, ids) == ["the", BROKEN, "\u00e9", BROKEN, BROKEN, "\u6f22", " kettle"]


def test_the_texts_add_up_to_the_completion(sentencepiece):
    chance, letters = Random(0), "a b\n\u00e9\u6f22\U0001f600\u200d"
    for text in ("".join(chance.choices(letters, k=chance.randrange(30))) for _ in range(60)):
        for tokenizer, ids in ((TOKENIZER, TOKENIZER.encode(text)), (sentencepiece, list(text.encode()))):
            texts = token_texts(tokenizer, ids)
            assert "".join(texts).replace(BROKEN, "") == tokenizer.decode(ids) and all(texts)


def test_bytes_at_random_have_a_text_each():
    chance = Random(1)
    for ids in ([chance.randrange(3, 259) for _ in range(chance.randrange(40))] for _ in range(60)):
        texts, text = token_texts(TOKENIZER, ids), TOKENIZER.decode(ids)
        assert len(texts) == len(ids) and all(texts)
        assert [x for x in "".join(texts) if x.isascii()] == [x for x in text if x.isascii()]


def test_the_time_grows_with_the_length_alone(monkeypatch):
    decoded, real = [], TOKENIZER.backend.decode

    class Counted:
        def decode(self, ids, **options):
            decoded.append(len(ids))
            return real(ids, **options)

    broken = TOKENIZER.encode("\U0001f600")[0]
    monkeypatch.setattr(TOKENIZER, "backend", Counted())
    token_texts(TOKENIZER, [broken] * 400)
    assert max(decoded) <= 8
