"""Limits: which tokens remain of a row that is too long, and which texts are cut before they are tokenised."""

import itertools
import random

import pytest
import tokenizers

from minirlhf.data import EncodedRow, encode_rows
from minirlhf.data.lengths import Lengths, Limits, characters_of_a_token
from minirlhf.errors import InputError
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab"], 259)  # one token per byte
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
PROMPT = [BOS, 11, 12, 13, 14, 15]


def limits(context=8, reserve=1, **settings):
    return Limits.of(Lengths(**settings), context, reserve, TOKENIZER)


def fit(limit, prompt, *responses, learned=None):
    (found,) = limit.fit([EncodedRow({}, prompt, responses, learned)], ("chosen", "rejected"))
    return found.row.prompt, *found.row.responses, found.prompt_cut, found.truncated


@pytest.mark.parametrize(
    ("overlong", "prompt"),
    [("cut_left", [BOS, 13, 14, 15]), ("cut_right", [BOS, 11, 12, 13]), ("cut_middle", [BOS, 11, 14, 15])],
)
def test_a_prompt_loses_its_beginning_end_or_middle_but_not_bos(overlong, prompt):
    limit = limits(overlong=overlong, max_prompt_length=4)
    assert fit(limit, PROMPT, [21, 22]) == (prompt, [21, 22], True, 0)
    assert fit(limit, PROMPT, [21, 22, 23, 24, EOS]) == (prompt, [21, 22, 23, 24], True, 1)
    assert fit(limit, PROMPT[:4], [21]) == (PROMPT[:4], [21], False, 0)


def test_keep_end_cuts_the_beginning_of_prompt_and_answer():
    limit = limits(overlong="keep_end")
    assert fit(limit, PROMPT, [21, EOS]) == (PROMPT, [21, EOS], False, 0)
    assert fit(limit, PROMPT, [21, 22, 23, EOS]) == ([BOS, 13, 14, 15], [21, 22, 23, EOS], True, 0)
    assert fit(limit, PROMPT, [*range(21, 29), EOS]) == ([BOS, 15], [24, 25, 26, 27, 28, EOS], True, 3 - 2)
    assert fit(limit, PROMPT, [21, EOS], [*range(21, 25), EOS])[0] == [BOS, 14, 15]  # the same for both answers
    assert fit(limit, [BOS], [*range(21, 29), EOS]) == ([BOS], [22, 23, 24, 25, 26, 27, 28, EOS][1:], False, 1)
    assert fit(limits(8, 5, overlong="keep_end"), PROMPT) == ([BOS, 14, 15], True, 0)


def test_masks_are_cut_with_their_tokens():
    row = EncodedRow({}, PROMPT, ([21, 22, 23, EOS],), ([True, False, False, True],))
    (right,) = limits().fit([row], ())
    (end,) = limits(overlong="keep_end", max_prompt_length=2, max_length=5).fit([row], ())
    assert right.row.learned == ([True, False],) and right.row.responses == ([21, 22],)
    assert end.row == EncodedRow({}, [BOS, 15], ([22, 23, EOS],), ([False, False, True],))
    with pytest.raises(InputError, match="^no learned token is left once it is cut to the context's 7 tokens"):
        limits(7).fit([EncodedRow({}, PROMPT, ([21, 22],), ([False, True],))], ())


@pytest.mark.parametrize(
    ("settings", "reserve", "text"),
    [
        ({}, 3, "the prompt has 6 tokens and leaves 2 of the context's 8, needed 3"),
        ({"max_length": 6}, 1, "the prompt has 6 tokens and leaves 0 of --max_length's 6, needed 1"),
        ({"max_prompt_length": 5}, 1, "the prompt has 6 tokens, --max_prompt_length allows 5"),
        ({"max_prompt_length": 7}, 3, "the prompt has 6 tokens and leaves 2 of the context's 8, needed 3"),
        ({"overlong": "cut_left"}, 7, "the prompt has 6 tokens and leaves 2 of the context's 8, needed 7"),
        ({"overlong": "keep_end"}, 7, "the prompt has 6 tokens and leaves 2 of the context's 8, needed 7"),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_by_the_limit_that_it_breaks(settings, reserve, text):
    with pytest.raises(InputError, match=f"^{text}$"):
        fit(limits(8, reserve, **settings), PROMPT)


@pytest.mark.parametrize("field", ["max_length", "max_prompt_length"])
def test_limits_below_two_tokens_are_refused(field):
    with pytest.raises(InputError, match=f"Lengths: {field} must be at least 2, got 1"):
        Lengths(**{field: 1})


@pytest.mark.parametrize("overlong", ["cut_left", "cut_right", "cut_middle", "keep_end"])
def test_any_row_fits_and_its_tokens_are_some_of_the_old_in_order(overlong):
    rng = random.Random(0)
    for _ in range(300):
        limit = limits(rng.randint(3, 12), 1, overlong=overlong, max_prompt_length=rng.choice([None, 2, 5]))
        prompt = [BOS, *range(100, 100 + rng.randint(0, 12))]
        answer = list(range(200, 200 + rng.randint(1, 12)))
        kept, response, cut, truncated = fit(limit, prompt, answer)
        assert len(kept) >= 1 and len(response) >= 1 and len(kept) + len(response) <= limit.context
        assert kept[0] == BOS and kept == sorted(set(kept) & set(prompt)) and set(response) <= set(answer)
        assert response == sorted(response) and cut == (kept != prompt) and truncated == (response != answer)
        if len(prompt) + len(answer) <= limit.context and len(prompt) <= (limit.lengths.max_prompt_length or 99):
            assert not cut and not truncated


def test_cut_prompts_are_counted_and_printed():
    rows = [{"prompt": "abcdef", "response": "y", "line": 1}, {"prompt": "a", "response": "y", "line": 2}]
    lengths = Lengths(max_prompt_length=4, overlong="cut_middle")
    encoded = encode_rows(TOKENIZER, rows, ("response",), context=9, lengths=lengths)
    assert encoded.summary("sft").splitlines() == [
        "sft: 2 kept, 0 truncated, 0 refused",
        "sft: 1 prompts cut (cut_middle)",
    ]
    assert TOKENIZER.decode(encoded.rows[0].prompt) == "aef"


# Texts that cannot fit are cut before they are tokenised.


def texts_tokenised(monkeypatch):
    """The length of the longest response in each call."""
    longest = []
    plain = Tokenizer.encode_responses

    def spy(self, texts):
        longest.append(max(map(len, texts), default=0))
        return plain(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_responses", spy)
    return longest


def test_a_long_text_is_cut_before_it_is_tokenised_with_the_same_ids(monkeypatch):
    tokenizer = Tokenizer.train(["abab abab cdcd " * 9], 300)
    most = characters_of_a_token(tokenizer)
    assert most == max(map(len, tokenizer.backend.get_vocab())) >= 5
    rng, longest = random.Random(1), texts_tokenised(monkeypatch)
    for context, size in itertools.product((9, 30), (10, 200, 20_000)):
        text = "".join(rng.choices(["abab", " abab", " cdcd", "x", " "], k=size))
        row = {"prompt": "a", "response": text, "line": 1}
        encoded = encode_rows(tokenizer, [row], ("response",), context=context)
        whole = tokenizer.encode(text) + [tokenizer.eos_id]
        room = context - len(encoded.rows[0].prompt)
        assert encoded.rows[0].responses[0] == whole[:room] and encoded.truncated == (len(whole) > room)
        assert encoded.rows[0].source is row and longest.pop() <= min(len(text), 2 * most * (context + 1))


def test_a_long_prompt_is_refused_without_its_number_of_tokens_or_cut_to_the_right_tokens():
    text = "".join(random.Random(2).choices("abcdefgh", k=9000))
    row = {"prompt": text, "response": "y", "line": 1}
    (reason,) = encode_rows(TOKENIZER, [row], ("response",), context=9, max_refused=1).refused
    assert reason == "line 1: the prompt has more than 9 tokens and leaves 0 of the context's 9, needed 1"
    for overlong, kept in (("cut_left", text[-7:]), ("cut_right", text[:7]), ("cut_middle", text[:3] + text[-4:])):
        encoded = encode_rows(TOKENIZER, [row], ("response",), context=9, lengths=Lengths(overlong=overlong))
        assert TOKENIZER.decode(encoded.rows[0].prompt) == kept


@pytest.mark.parametrize("place", ["response", "turn", "call", "tools"])
def test_texts_inside_calls_and_tools_are_cut_too(place):
    texts = dict.fromkeys(("response", "turn", "call", "tools"), "short") | {place: "ab" * 5000}
    call = {"function": {"name": "f", "arguments": {"lines": [texts["call"], 7]}}}
    turns = [{"role": "user", "content": texts["turn"]}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    row = {"prompt": "p", "prompt_turns": turns, "response": texts["response"], "tools": [{"name": texts["tools"]}]}
    limit = limits(40, overlong="cut_left")
    short = limit.shorten(row, ("response",))
    assert len(str(row)) > 10_000 and len(str(short)) < 4 * limit.characters
    rest = {key: value for key, value in short.items() if value != row[key]}
    assert list(rest) == [{"turn": "prompt_turns", "call": "prompt_turns"}.get(place, place)]
    small = limits(9999)
    assert small.shorten(row, ("response",)) is row


def test_a_long_dialogue_ends_after_the_turns_that_may_fit():
    # the longest token, <|im_start|>, has 12 letters: 12 * 41 may fit, and turn 123 exceeds them
    turns = [{"role": role, "content": f"{k:04}"} for k in range(130) for role in ("user", "assistant")]
    row = {"prompt": "", "prompt_turns": turns[:-1], "response": turns[-1]["content"], "line": 1}
    chatml = tokenizer_with_template()
    short = limits_of(chatml, 40).shorten(row, ("response",), all_turns=True)
    assert len(short["prompt_turns"]) == 123 and short["response"] == short["response_turns"][0]["content"]
    both = [encode_rows(chatml, [each], ("response",), context=40) for each in (row, row | short)]
    assert both[0].rows[0].responses == both[1].rows[0].responses and both[0].truncated == 1
    (reason,) = encode_rows(chatml, [row], ("response",), context=40, train_on="last", max_refused=1).refused
    assert "the prompt has more than 40 tokens" in reason


def limits_of(tokenizer, context):
    return Limits.of(None, context, 1, tokenizer)


def tokenizer_with_template():
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend).with_template("chatml")


def backend_with(**parts):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "<0x61>": 1, "<s>": 2, "</s>": 3}, merges=[]))
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, pad="<s>", bos="<s>", eos="</s>")


PRE, NORMAL = tokenizers.pre_tokenizers, tokenizers.normalizers


@pytest.mark.parametrize(
    ("parts", "most"),
    [
        ({"pre_tokenizer": PRE.ByteLevel()}, 6),  # "<0x61>"
        ({"pre_tokenizer": PRE.Sequence([PRE.Digits(), PRE.ByteLevel()]), "normalizer": NORMAL.NFC()}, 24),
        ({"pre_tokenizer": PRE.ByteLevel(), "normalizer": NORMAL.Replace(" ", "_")}, 6),
        ({}, None),  # an unknown letter disappears
        ({"pre_tokenizer": PRE.Sequence([PRE.Whitespace(), PRE.ByteLevel()])}, None),  # drops spaces
        ({"pre_tokenizer": PRE.Sequence([PRE.Split(" ", "removed"), PRE.ByteLevel()])}, None),
        ({"pre_tokenizer": PRE.ByteLevel(), "normalizer": NORMAL.Strip()}, None),
        ({"pre_tokenizer": PRE.ByteLevel(), "normalizer": NORMAL.Replace("  ", " ")}, None),
        ({"pre_tokenizer": PRE.ByteLevel(), "normalizer": NORMAL.Replace(tokenizers.Regex(" +"), "  ")}, None),
    ],
)
def test_the_bound_is_known_only_for_a_tokenizer_that_keeps_every_character(parts, most):
    assert characters_of_a_token(backend_with(**parts)) == most
