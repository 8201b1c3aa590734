"""Decoding returns any text, special tokens differ from text, and a broken folder is refused."""

import json
import re
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.errors import InputError
from minirlhf.text import Tokenizer
from minirlhf.text.tokenizer import BOS, EOS, PAD

TEXTS = ["the kettle is good. it is bad.", "the lamp is very good. we like it."] * 8
TOKENIZER = Tokenizer.train(TEXTS, 300)
pieces = st.one_of(
    st.text(max_size=20), st.sampled_from([PAD, BOS, EOS, "<|", "|>", " ", "\n", "the kettle", "\u00e9"])
)
texts = st.lists(pieces, max_size=4).map("".join)
many = settings(max_examples=300)


def refuses(text):
    return pytest.raises(InputError, match=f"^{re.escape(text)}$")


@pytest.fixture
def folder(tmp_path):
    TOKENIZER.save(tmp_path)
    return tmp_path


@many
@given(texts)
def test_decoding_returns_any_text(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id} & set(ids)


@many
@given(texts, texts)
def test_prompt_and_response_are_encoded_apart(prompt, response):
    # The ids that a policy samples from are the first ids of the training row, whatever the boundary's characters.
    (sampled_from,), (appended,) = TOKENIZER.encode_prompts([prompt]), TOKENIZER.encode_responses([response])
    assert sampled_from == [TOKENIZER.bos_id, *TOKENIZER.encode(prompt)]
    assert appended == [*TOKENIZER.encode(response), TOKENIZER.eos_id]
    assert TOKENIZER.decode(sampled_from + appended) == prompt + response


def test_boundary_is_never_merged():
    whole, apart = TOKENIZER.encode("the kettle"), (TOKENIZER.encode("the ket"), TOKENIZER.encode("tle"))
    assert len(whole) < sum(map(len, apart))  # the joined text has other ids
    assert TOKENIZER.encode_prompts(["the ket"])[0][1:] + TOKENIZER.encode_responses(["tle"])[0][:-1] == sum(apart, [])


def test_batches_are_encoded_and_decoded_row_by_row():
    rows = ["", "the kettle", "\u00e9"]
    assert TOKENIZER.encode_prompts(rows) == [[TOKENIZER.bos_id, *TOKENIZER.encode(row)] for row in rows]
    assert TOKENIZER.encode_responses(rows) == [[*TOKENIZER.encode(row), TOKENIZER.eos_id] for row in rows]
    assert TOKENIZER.decode_completions(TOKENIZER.encode_responses(rows)) == rows
    assert TOKENIZER.encode_prompts([]) == TOKENIZER.encode_responses([]) == TOKENIZER.decode_completions([]) == []


def test_special_tokens_inside_a_completion_stay_in_its_text_for_rewards():
    ids = [*TOKENIZER.encode("the"), TOKENIZER.pad_id, TOKENIZER.eos_id, *TOKENIZER.encode(" kettle"), TOKENIZER.eos_id]
    assert TOKENIZER.decode_completions([ids]) == [f"the{PAD}{EOS} kettle"]


@pytest.mark.parametrize("special", [PAD, BOS, EOS])
def test_special_tokens_inside_text_are_text(special):
    ids = TOKENIZER.encode(f"the {special} lamp")
    assert len(ids) > 5 and TOKENIZER.decode(ids) == f"the {special} lamp"


def test_decode_leaves_special_tokens_out():
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("the lamp"), TOKENIZER.eos_id, TOKENIZER.pad_id]
    assert TOKENIZER.decode(ids) == "the lamp"


def test_special_ids_come_first_and_differ():
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id) == (0, 1, 2)
    assert [TOKENIZER.backend.id_to_token(i) for i in range(3)] == [PAD, BOS, EOS]


def test_training_learns_merges_up_to_vocab_size():
    assert Tokenizer.train(TEXTS, 259).vocab_size == 259
    assert Tokenizer.train(TEXTS, 270).vocab_size == 270
    assert len(TOKENIZER.encode("the kettle is good.")) < 19 // 2
    assert Tokenizer.train(["ab"] * 4, 2048).vocab_size == 260  # the texts have only one pair
    assert Tokenizer.train(["ab"], 2048).vocab_size == 259  # the pair occurs only once


def test_every_digit_is_a_token_in_a_new_tokenizer():
    tokenizer = Tokenizer.train(["2026 - 1999 = 27; 202 + 2 = 204, a12b"] * 50, 400)
    for text in ("2026", "1999", "12 3", "a12b", " 27", "202"):
        digits = [
            token
            for token in map(tokenizer.backend.id_to_token, tokenizer.encode(text))
            if set(token) & set("0123456789")
        ]
        assert digits == [letter for letter in text if letter.isdigit()]
    assert len(tokenizer.encode(" = ")) < 3  # other pairs are merged


def test_training_is_deterministic():
    assert Tokenizer.train(iter(TEXTS), 300).backend.to_str() == TOKENIZER.backend.to_str()


def test_vocab_size_below_the_bytes_is_refused():
    with refuses("Tokenizer.train: vocab_size must be 259 (3 specials, 256 bytes) to 1,048,576, got 258"):
        Tokenizer.train(TEXTS, 258)


def test_pad_that_is_the_end_token_is_refused():
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    with refuses(
        "Tokenizer: pad and EOS must be two tokens, got '<|eos|>' for both: a model trained this way never learns "
        "to stop; add a pad token"
    ):
        Tokenizer(backend, pad=EOS)


@pytest.mark.parametrize("role", ["pad", "bos", "eos"])
def test_special_token_outside_the_vocabulary_is_refused(role):
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    with refuses(f"Tokenizer: {role} token '</s>' is not in the vocabulary; name another token"):
        Tokenizer(backend, **{role: "</s>"})


def test_a_saved_tokenizer_is_read_back(folder):
    loaded = Tokenizer.load(folder)
    assert loaded.vocab_size == TOKENIZER.vocab_size and loaded.special == TOKENIZER.special
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
    for text in (*TEXTS[:2], f"{EOS} \u00e9\n\n  x", ""):
        assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text


def test_other_names_of_special_tokens_are_saved(tmp_path):
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.add_special_tokens(["</s>"])
    Tokenizer(backend, eos="</s>").save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    new = TOKENIZER.vocab_size
    assert loaded.eos_id == new and loaded.encode_responses([""]) == [[new]] and loaded.decode([new]) == ""


def test_config_names_the_special_tokens(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config == {
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "split_special_tokens": True,
    }


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with refuses(f"{folder}: needed a tokenizer folder with tokenizer.json and tokenizer_config.json, found no {name}"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b""),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
    ],
)
def test_broken_file_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    start = f"{folder}: needed a readable tokenizer ("
    with pytest.raises(InputError, match=f"^{re.escape(start)}.*\\); save it again$"):
        Tokenizer.load(folder)


def test_chat_template_is_the_plain_layout():
    turns = [{"role": "user", "content": "Hi"}]
    assert TOKENIZER.apply_chat_template(turns, add_generation_prompt=True) == "User:\nHi\n\nAssistant:\n"
    assert TOKENIZER.apply_chat_template(turns) == "User:\nHi\n\n"


def test_new_special_tokens_come_last_and_the_old_tokenizer_does_not_change():
    size, whole = TOKENIZER.vocab_size, TOKENIZER.backend.to_str()
    grown = TOKENIZER.with_special_tokens(["<think>", EOS, "</think>"])  # EOS keeps its id
    assert grown.vocab_size == size + 2 and (grown.pad_id, grown.bos_id, grown.eos_id) == (0, 1, 2)
    assert [grown.backend.token_to_id(token) for token in ("<think>", EOS, "</think>")] == [size, 2, size + 1]
    assert TOKENIZER.backend.to_str() == whole and TOKENIZER.vocab_size == size
    assert grown.encode_prompts(TEXTS[:2]) == TOKENIZER.encode_prompts(TEXTS[:2])
    assert grown.decode([size, *grown.encode("the lamp")]) == "the lamp"
    assert grown.decode_completions([[size, 2]]) == ["<think>"]


def test_a_new_special_token_in_plain_text_is_text_and_in_a_template_one_id():
    size, grown = TOKENIZER.vocab_size, TOKENIZER.with_special_tokens(["<think>"])
    assert size not in grown.encode("a<think>") and grown.decode(grown.encode("a<think>")) == "a<think>"
    assert grown.with_template("{{ '<think>' }}").encode_chat([{"role": "user", "content": "Hi"}])[0] == [size]
    chat = TOKENIZER.with_special_tokens(["<|im_start|>", "<|im_end|>"]).with_template("chatml")
    assert chat.eos_id == size + 1


def test_new_special_tokens_are_saved(tmp_path):
    grown = TOKENIZER.with_special_tokens(["<think>"])
    grown.save(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    assert [(a["id"], a["special"]) for a in added if a["content"] == "<think>"] == [(TOKENIZER.vocab_size, True)]
    loaded = Tokenizer.load(tmp_path)
    assert loaded.backend.to_str() == grown.backend.to_str() and loaded.special == grown.special


def test_a_tokenizer_without_padding_takes_a_new_pad_token(tmp_path):
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace(PAD, "@@@"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS, "bos_token": BOS}))
    without = Tokenizer.load(tmp_path)
    assert without.special["pad"] is None
    grown = without.with_special_tokens([PAD])
    assert grown.special["pad"] == PAD and grown.pad_id == TOKENIZER.vocab_size
    grown.save(tmp_path)
    assert Tokenizer.load(tmp_path).pad_id == grown.pad_id


@pytest.mark.parametrize("tokens", ["<think>", [""], [3]])
def test_ill_formed_special_tokens_are_refused(tokens):
    with refuses(f"with_special_tokens: needed a list of strings that are not empty, got {tokens!r}"):
        TOKENIZER.with_special_tokens(tokens)


def test_a_tokenizer_without_a_template_needs_no_jinja_and_no_checkpoint_reader_at_import(tmp_path):
    program = f"""
import sys
sys.modules["jinja2"] = None  # importing it raises ImportError
from minirlhf.text import TextStream, Tokenizer, render_chat
tokenizer = Tokenizer.train(["the kettle is good."] * 8, 300)
assert tokenizer.encode_turns([{{"role": "user", "content": "Hi"}}], ["the"])
assert not [name for name in sys.modules if "checkpoint_tokenizer" in name]
tokenizer.save({str(tmp_path)!r})
assert Tokenizer.load({str(tmp_path)!r}).encode("the") == tokenizer.encode("the")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
