"""Ids: holes in a vocabulary, ids that are too large, ids that the library would change, broken files."""

from __future__ import annotations

import json
import re
import resource
import threading
from hashlib import pbkdf2_hmac

import pytest
import torch

from minirlhf.data.encoding import encode_rows
from minirlhf.errors import InputError
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.model import ModelConfig, RewardModel, Transformer, resize_embeddings
from minirlhf.rewards.scoring import RewardModelScorer
from minirlhf.text import Tokenizer
from minirlhf.text.checkpoint_tokenizer import regexes
from minirlhf.text.tokenizer import EOS, PAD

OWN = Tokenizer.train(["the kettle is good. it is bad."] * 8, 280)
SIZE = OWN.vocab_size
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def folder_with(folder, change=lambda content: None, settings=None, **files):
    """OWN's folder after `change` of the JSON in tokenizer.json."""
    OWN.save(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | (settings or {})
    for name, data in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def add(token, number, special=True):
    return lambda content: content["added_tokens"].append({"id": number, "content": token, "special": special, **FLAGS})


def vocabulary_with(**ids):
    return lambda content: content["model"]["vocab"].update(ids)


# --- holes ---


def test_new_special_tokens_continue_after_the_largest_id(tmp_path):
    tokenizer = Tokenizer.load(folder_with(tmp_path, vocabulary_with(zzz=500)))
    assert tokenizer.backend.get_vocab_size() == SIZE + 1 and tokenizer.vocab_size == 501
    grown = tokenizer.with_special_tokens(["<think>", EOS, "</think>"])
    assert [grown.backend.token_to_id(token) for token in ("zzz", "<think>", "</think>", EOS)] == [500, 501, 502, 2]
    assert grown.vocab_size == 503 and grown.decode([501, *grown.encode("the"), 502]) == "the"
    assert 501 not in grown.encode("a <think> b") and grown.decode(grown.encode("a <think> b")) == "a <think> b"
    assert grown.encode("the kettle is good.") == OWN.encode("the kettle is good.")
    assert grown.encode_rendered("<think>") != [501]  # no template: special tokens in plain text are text
    assert grown.with_template("{{ '<think>' }}").encode_chat([{"role": "user", "content": "x"}])[0] == [501]
    model = resize_embeddings(Transformer(ModelConfig(tokenizer.vocab_size)), grown.vocab_size)
    assert model(torch.tensor([[501, 502]])).shape == (1, 2, 503)
    grown.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.backend.get_vocab() == grown.backend.get_vocab() and again.encode("a <think> b") == grown.encode(
        "a <think> b"
    )


def test_a_new_token_takes_no_id_of_another_token(tmp_path):
    # The library would number the new token by the count of the vocabulary, and this id belongs to another token.
    tokenizer = Tokenizer.load(folder_with(tmp_path, vocabulary_with(zzz=SIZE + 1)))
    assert tokenizer.backend.get_vocab_size() == SIZE + 1
    assert tokenizer.with_special_tokens(["<x>"]).backend.token_to_id("<x>") == SIZE + 2


def test_added_tokens_keep_their_ids_when_tokens_are_added_to_a_vocabulary_with_holes(tmp_path):
    def change(content):
        vocabulary_with(zzz=900)(content)
        add("<old>", SIZE + 1)(content)

    grown = Tokenizer.load(folder_with(tmp_path, change)).with_special_tokens(["<new>"])
    assert [grown.backend.token_to_id(token) for token in ("<old>", "zzz", "<new>")] == [SIZE + 1, 900, 901]
    more = grown.with_special_tokens(["<newer>"])
    assert [more.backend.token_to_id(token) for token in ("<old>", "<new>", "<newer>")] == [SIZE + 1, 901, 902]


# --- ids that cannot be meant ---


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (add("<x>", 999), f"tokenizer.json gives '<x>' the id 999, the tokenizers library gives {SIZE}: it numbers"),
        (vocabulary_with(zzz=2), "tokenizer.json: '.*' and '.*' have one id, 2; take the folder's original files"),
        (vocabulary_with(zzz=10**9), "tokenizer.json: 'zzz': needed an id from 0 to 16,777,215, got 1000000000; corr"),
        (vocabulary_with(zzz=10**30), "tokenizer.json: 'zzz': needed an id from 0 to 16,777,215, got 1000000000000000"),
        (vocabulary_with(zzz=-1), "tokenizer.json: 'zzz': needed an id from 0 to 16,777,215, got -1; correct the file"),
        (vocabulary_with(zzz="5"), "tokenizer.json: 'zzz': needed an id from 0 to 16,777,215, got '5'; correct the"),
        (lambda content: content["added_tokens"][0].update(id=10**30), "needed a readable tokenizer .tokenizer.json: "),
        (lambda content: content["model"].update(merges=[["", "\u0120t"], ["a"]]), "needed a readable tokenizer .tok"),
        (lambda content: content["model"]["vocab"].pop("a"), "needed a readable tokenizer .tokenizer.json: "),
        (lambda content: content.update(model={"type": "WordLevel", "vocab": {PAD: 0, EOS: 2}, "unk_token": "u"}), ""),
        (lambda content: content.update(added_tokens={"a": 1}), "needed a readable tokenizer .tokenizer.json: "),
        (lambda content: content.update(model=[]), "needed a readable tokenizer .tokenizer.json: "),
    ],
    ids=range(12),
)
def test_ids_and_files_that_cannot_be_meant_are_refused_in_one_line(tmp_path, change, text):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}: {text}"):
        Tokenizer.load(folder_with(tmp_path, change))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_panic_of_the_library_is_an_input_error(tmp_path):
    def change(content):  # the library cuts beyond the end of a merge, and panics
        content["model"]["continuing_subword_prefix"] = "prefix longer than the token"

    with pytest.raises(InputError, match="needed a readable tokenizer .tokenizer.json: "):
        Tokenizer.load(folder_with(tmp_path, change))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_key_that_stands_twice_is_refused(tmp_path, file):
    path = folder_with(tmp_path, generation_config={"eos_token_id": 2}) / file
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "x": {"a": 1, "b": 2, "a": 3}}')
    with pytest.raises(InputError, match=f"needed a readable tokenizer .{file}: the key 'a' stands twice in an object"):
        Tokenizer.load(tmp_path)


def test_our_own_fault_is_no_fault_of_the_file(tmp_path, monkeypatch):
    def broken(config):
        raise RuntimeError("a fault of this package")

    monkeypatch.setattr("minirlhf.text.checkpoint_tokenizer.folder.listed_special", broken)
    with pytest.raises(RuntimeError, match="a fault of this package"):
        Tokenizer.load(folder_with(tmp_path))


def test_ids_of_other_files_are_bounded(tmp_path):
    with pytest.raises(InputError, match="generation_config.json: eos_token_id: needed an id from 0 to 16,777,215, g"):
        Tokenizer.load(folder_with(tmp_path, generation_config={"eos_token_id": [2, 10**18]}))
    tokenizer = Tokenizer.load(folder_with(tmp_path, generation_config={"eos_token_id": [2, 5000]}))
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.parts.notes == ("eos_token_id [5000]: not used, because the vocabulary has no such id",)


# --- more ids than the embedding has rows ---


def test_a_tokenizer_with_tokens_that_only_some_texts_contain_is_taken_and_such_a_row_is_refused(tmp_path):
    tokenizer = Tokenizer.load(folder_with(tmp_path, add("@tool@", SIZE, special=False)))
    said = []
    check_vocabulary(ModelConfig(SIZE), tokenizer, "DIR", tell=said.append)
    assert said == ["DIR: the model has no row for ['@tool@']; texts with these tokens are refused"]
    rows = [{"prompt": "it is", "response": "good."}, {"prompt": "it is", "response": "@tool@", "line": 2}]
    encoded = encode_rows(tokenizer, rows, ("response",), context=99, vocabulary=SIZE, max_refused=1.0)
    assert encoded.refused == ["line 2: the model lacks '@tool@'; drop the text"]
    assert [row.source for row in encoded.rows] == rows[:1]
    assert len(encode_rows(tokenizer, rows, ("response",), context=99, vocabulary=SIZE + 1).rows) == 2
    scorer = RewardModelScorer(RewardModel(Transformer(ModelConfig(SIZE))), tokenizer)
    with pytest.raises(InputError, match="^the model lacks '@tool@'; drop the text$"):
        scorer(["it is"], ["@tool@"], [{}])


def test_a_turn_that_names_a_special_token_without_a_row_is_refused(tmp_path):
    template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"}
    template |= {"split_special_tokens": False}
    tokenizer = Tokenizer.load(folder_with(tmp_path, add("<|tool|>", SIZE), settings=template))
    check_vocabulary(ModelConfig(SIZE), tokenizer, "DIR")
    rows = [
        {"prompt": "", "prompt_turns": [{"role": "user", "content": text}], "line": 1} for text in ("a", "<|tool|>")
    ]
    encoded = encode_rows(tokenizer, rows, (), context=99, vocabulary=SIZE, max_refused=1.0)
    assert len(encoded.rows) == 1 and encoded.refused[0].startswith("line 1: the model lacks '<|tool|>'; drop")


@pytest.mark.parametrize(
    ("change", "settings", "largest"),
    [
        (vocabulary_with(zzz=SIZE), {}, SIZE),  # a word of the vocabulary itself
        (add("</s>", SIZE), {"eos_token": "</s>"}, SIZE),
        (add("<|turn|>", SIZE), {"chat_template": "{{ '<|turn|>' }}", "split_special_tokens": False}, SIZE),
    ],
    ids=["vocabulary", "end token", "template"],
)
def test_a_tokenizer_is_refused_if_every_text_may_need_a_missing_row(tmp_path, change, settings, largest):
    tokenizer = Tokenizer.load(folder_with(tmp_path, change, settings))
    text = f"DIR: the tokenizer gives ids up to {largest}, the model's vocabulary holds {SIZE}; they do not belong"
    with pytest.raises(InputError, match=f"^{text} together$"):
        check_vocabulary(ModelConfig(SIZE), tokenizer, "DIR")


@pytest.mark.parametrize("config", [{"vocab_size": SIZE}, {"text_config": {"vocab_size": SIZE}}])
def test_a_padding_token_without_a_row_does_not_pad(tmp_path, config):
    # Llama 2 with an added [PAD] and an embedding of the old size
    settings = {"pad_token": "[PAD]"}
    tokenizer = Tokenizer.load(folder_with(tmp_path, add("[PAD]", SIZE), settings, config=config))
    assert tokenizer.pad_id == 0 and tokenizer.special["pad"] == PAD
    check_vocabulary(ModelConfig(SIZE), tokenizer, "DIR")
    whole = Tokenizer.load(folder_with(tmp_path, add("[PAD]", SIZE), settings, config={"vocab_size": SIZE + 1}))
    assert whole.pad_id == SIZE and whole.special["pad"] == "[PAD]"


def test_a_free_special_token_without_a_row_does_not_pad(tmp_path):
    # the end token pads, so that a free special token is looked for; the only one has the first id without a row
    settings = {"pad_token": EOS, "bos_token": PAD}
    for rows, pad in ((SIZE, None), (SIZE + 1, "[PAD]")):
        tokenizer = Tokenizer.load(folder_with(tmp_path, add("[PAD]", SIZE), settings, config={"vocab_size": rows}))
        assert tokenizer.special["pad"] == pad and tokenizer.pad_id < rows


def with_regex(folder, regex, part="pre_tokenizer"):
    Tokenizer.train(["ab"], 259).save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    replace = {"type": "Replace", "pattern": {"Regex": regex}, "content": "x"}
    content |= {
        "pre_tokenizer": {"pre_tokenizer": steps},
        "normalizer": {"normalizer": replace},
        "decoder": {"decoder": {"type": "Sequence", "decoders": [content["decoder"], replace]}},
    }[part]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("regex", "part"),
    [
        ("(x+x+)+y", "pre_tokenizer"),
        ("(a|aa)+$", "normalizer"),
        ("1.*1.*1.*b", "pre_tokenizer"),
        ("(x+x+)+y", "decoder"),
    ],
)
def test_a_regular_expression_that_runs_away_is_refused_at_load(tmp_path, regex, part):
    with pytest.raises(InputError, match=r"tokenizer.json: a regular expression runs away, .* times '.' (end in|take)"):
        Tokenizer.load(with_regex(tmp_path, regex, part))


def test_the_work_of_other_threads_does_not_count(tmp_path, monkeypatch):
    """A thread that writes a checkpoint would else make an honest expression look like a runaway."""

    class Busy:
        """Letters as ids; the first text takes long, because another thread works."""

        ids, burned = [], False

        def encode(self, text):
            if not self.burned:
                self.burned = True
                thread = threading.Thread(target=pbkdf2_hmac, args=("sha256", b"a", b"b", 300_000))
                thread.start()
                thread.join()
            return self

        def decode(self, ids):
            return ""

    monkeypatch.setattr(regexes, "MOST", 0.02)
    regexes.check_regexes(Busy(), {"normalizer": {"Regex": "a"}})


# GPT-2, Llama 3, Qwen 2 and o200k: expressions of real tokenizers
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("regex", [GPT2, LLAMA3, LLAMA3.replace("{1,3}", ""), O200K])
def test_expressions_of_real_tokenizers_are_taken(tmp_path, regex):
    assert Tokenizer.load(with_regex(tmp_path, regex)).decode(Tokenizer.load(tmp_path).encode("Hi  12.")) == "Hi  12."


def test_a_panic_on_a_text_is_one_line(tmp_path):
    tokenizer = Tokenizer.load(with_regex(tmp_path, r"(?:okapi|k)(\u00f6+\u00f6+)+y".replace("\\u00f6", "\u0416")))
    bad = "okapi" + "\u0416" * 60
    for act in (
        lambda: tokenizer.encode_prompts(["good", bad]),
        lambda: tokenizer.encode_chat([{"role": "user", "content": bad}]),
        lambda: tokenizer.with_template("zephyr").encode_rendered(bad),
    ):
        with pytest.raises(InputError, match="^tokenizer: it fails on a text .*retry-limit.*; leave the text out, or"):
            act()
    assert tokenizer.decode(tokenizer.encode("good")) == "good"
