"""Folders of checkpoints: the names of special tokens, padding, end tokens, templates, and writing them back."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers

from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Transformer, save_pretrained
from minirlhf.text import Tokenizer
from minirlhf.text.tokenizer import BOS, EOS, PAD

OWN = Tokenizer.train(["the kettle is good. it is bad."] * 8, 280)
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def checkpoint(folder, settings, /, extra=(), bos_first=None, **files):
    """A folder whose special tokens are <|pad|>, <|bos|>, <|eos|>, and `extra` numbered on from the end."""
    backend = tokenizers.Tokenizer.from_str(OWN.backend.to_str())
    backend.add_special_tokens(list(extra))
    first = tokenizers.processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 1)])
    backend.post_processor = first if bos_first else tokenizers.processors.ByteLevel(trim_offsets=False)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": settings, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def without_pad(folder, settings, extra=()):
    """The same without the special token <|pad|>: id 0 is an ordinary token."""
    checkpoint(folder, settings, extra)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(PAD, "@@@").replace('"special": true', '"special": false', 1))
    return folder


def test_tokens_are_strings_or_objects(tmp_path):
    config = {"bos_token": {"content": BOS, "lstrip": False}, "eos_token": {"content": EOS}, "pad_token": PAD}
    tokenizer = Tokenizer.load(checkpoint(tmp_path, config))
    assert tokenizer.special == {"pad": PAD, "bos": BOS, "eos": EOS}
    assert tokenizer.token_ids == {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_tokens_that_the_config_does_not_name_come_from_the_map_then_from_ids(tmp_path):
    # As in GPT-2: only config.json has the ids.
    folder = checkpoint(
        tmp_path, {}, special_tokens_map={"eos_token": EOS}, config={"bos_token_id": 1, "eos_token_id": 1}
    )
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.special["eos"], tokenizer.special["bos"], tokenizer.eos_ids) == (EOS, BOS, (2, 1))


def test_a_null_in_the_config_wins_over_ids(tmp_path):
    # As in Qwen: prompts begin without BOS. An empty prompt is the end token, because a text begins after it.
    folder = checkpoint(tmp_path, {"bos_token": None, "eos_token": EOS}, config={"bos_token_id": 1})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_id is None and tokenizer.token_ids["bos_token_id"] is None
    assert tokenizer.encode_prompts(["the", ""]) == [tokenizer.encode("the"), [2]]


def test_a_prompt_begins_with_bos_only_if_tokenizer_json_puts_it_there(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    config = {"bos_token": BOS, "eos_token": EOS}
    first = Tokenizer.load(checkpoint(tmp_path / "a", config, bos_first=True))
    assert first.encode_prompts(["the", ""]) == [[1, *first.encode("the")], [1]]
    other = Tokenizer.load(checkpoint(tmp_path / "b", config))
    assert other.encode_prompts(["the", ""]) == [other.encode("the"), [1]]


@pytest.mark.parametrize(
    ("generation", "model", "eos_ids"),
    [
        ({"eos_token_id": [9, 2, 7]}, {"eos_token_id": 5}, (2, 9, 7)),
        ({"eos_token_id": 9}, {}, (2, 9)),
        ({}, {"eos_token_id": [2, 5]}, (2, 5)),
        ({"eos_token_id": None}, {"eos_token_id": -1}, (2,)),
    ],
)
def test_eos_ids_are_all_end_tokens_with_the_tokenizers_own_first(tmp_path, generation, model, eos_ids):
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS}, generation_config=generation, config=model))
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (2, eos_ids)
    for last in eos_ids:
        assert tokenizer.decode_completions([[*tokenizer.encode("the"), last]]) == ["the"]
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").eos_ids == eos_ids


def test_saving_beside_a_model_keeps_its_generation_settings(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS}, generation_config={"eos_token_id": [2, 9], "temperature": 0.6})
    Tokenizer.load(folder).save(folder)
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2, 9], "temperature": 0.6, "bos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("tokenizer_first", [True, False])
def test_model_and_tokenizer_are_saved_in_any_order(tmp_path, tokenizer_first):
    settings = {"eos_token_id": [2, 9], "temperature": 0.6}
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS}, generation_config=settings))
    again = tmp_path / "again"
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size))
    save = [lambda: tokenizer.save(again), lambda: save_pretrained(model, again, tokenizer.token_ids)]
    for one in save if tokenizer_first else save[::-1]:
        one()
    written = json.loads((again / "generation_config.json").read_text())
    assert written["temperature"] == 0.6 and Tokenizer.load(again).eos_ids == (2, 9)


@pytest.mark.parametrize("pad", [{}, {"pad_token": None}])
@pytest.mark.parametrize("spare", ["<pad>", "<|finetune_right_pad_id|>", "<unk>"])
def test_without_a_padding_token_a_free_special_token_pads(tmp_path, pad, spare):
    tokenizer = Tokenizer.load(without_pad(tmp_path, {"eos_token": EOS} | pad, extra=["<|x|>", spare]))
    assert tokenizer.special["pad"] == spare and tokenizer.pad_id == OWN.vocab_size + 1


def test_a_free_special_token_replaces_an_end_token_that_pads_here_and_in_written_files(tmp_path):
    # As in Phi-3. A tool that masks by the id would never teach such a model to stop.
    folder = without_pad(tmp_path, {"eos_token": EOS, "pad_token": {"content": EOS}}, extra=["<unk>"])
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": EOS, "pad_token": EOS}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special["pad"] == "<unk>" and tokenizer.eos_id == 2
    tokenizer.save(tmp_path / "again")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == {"eos_token": EOS, "pad_token": "<unk>"}
    assert Tokenizer.load(tmp_path / "again").token_ids == tokenizer.token_ids


def test_an_end_token_that_pads_is_not_named_if_no_special_token_is_free(tmp_path):
    # As in SmolLM2. Any id pads here. config.json names none, or other tools would read rewards a token too early.
    tokenizer = Tokenizer.load(without_pad(tmp_path, {"eos_token": EOS, "pad_token": EOS}))
    assert tokenizer.pad_id == 0 and tokenizer.token_ids["pad_token_id"] is None
    tokenizer.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["pad_token"] == EOS
    more = Tokenizer.load(tmp_path / "again").with_special_tokens(["<pad>"])
    assert more.special["pad"] == "<pad>" and more.pad_id == OWN.vocab_size


def test_bos_and_eos_are_never_free_to_pad(tmp_path):
    folder = without_pad(tmp_path, {"eos_token": "<unk>", "bos_token": "<pad>"}, extra=["<unk>", "<pad>"])
    assert Tokenizer.load(folder).special["pad"] is None


def test_without_a_free_special_token_an_ordinary_token_pads_and_no_pad_is_named(tmp_path):
    # Masks come from lengths, so any id may pad. Other tools would leave the end token out of training.
    tokenizer = Tokenizer.load(without_pad(tmp_path, {"eos_token": EOS, "bos_token": BOS}))
    assert tokenizer.pad_id == 0 and tokenizer.backend.id_to_token(0) == "@@@" and tokenizer.special["pad"] is None
    assert tokenizer.token_ids == {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def test_a_broken_config_of_the_model_is_left_to_the_reader_of_the_model(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS})
    (folder / "config.json").write_text("[")
    assert Tokenizer.load(folder).special == {"pad": PAD, "bos": None, "eos": EOS}


def test_the_ordinary_token_that_pads_is_never_the_end_token(tmp_path):
    tokenizer = Tokenizer.load(without_pad(tmp_path, {"eos_token": "@@@"}))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.special["pad"]) == (0, 1, None)


def test_special_tokens_in_plain_text_stay_text(tmp_path):
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS}, extra=["<|im_end|>"]))
    ids = tokenizer.encode("a<|im_end|>")
    assert OWN.vocab_size not in ids and tokenizer.decode(ids) == "a<|im_end|>"


def test_tokens_that_only_the_config_lists_are_added(tmp_path):
    new = OWN.vocab_size
    listed = {str(new): {"content": "<|im_end|>", "special": True}, "0": {"content": PAD, "special": True}}
    folder = checkpoint(tmp_path, {"eos_token": "<|im_end|>", "added_tokens_decoder": listed})
    assert Tokenizer.load(folder).eos_id == new


@pytest.mark.parametrize("extra", [["bad"], {"thing_token": "bad"}, [{"content": "bad"}]])
def test_decoding_leaves_out_tokens_that_only_the_config_calls_special(tmp_path, extra):
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS, "extra_special_tokens": extra}))
    ids = tokenizer.with_template("{{ messages[0].content }}").encode_chat([USER | {"content": "bad"}])[0]
    assert ids == [tokenizer.backend.token_to_id("bad")] and tokenizer.decode(ids) == ""


def test_a_listed_token_with_another_id_is_refused(tmp_path):
    listed = {"999": {"content": "<|im_end|>", "special": True}}
    folder = checkpoint(tmp_path, {"eos_token": EOS, "added_tokens_decoder": listed})
    text = f"tokenizer_config.json gives '<|im_end|>' the id 999, the tokenizers library gives {OWN.vocab_size}: it"
    with pytest.raises(InputError, match=f"^{re.escape(f'{folder}: {text}')} numbers added tokens .* original files$"):
        Tokenizer.load(folder)


def test_truncation_settings_of_a_file_are_ignored(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS})
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("kettle kettle") == OWN.encode("kettle kettle") and len(OWN.encode("kettle kettle")) > 2
    assert tokenizer.encode("") == []


def test_all_that_was_loaded_is_written_back(tmp_path):
    config = {
        "eos_token": {"content": EOS, "lstrip": False}, "pad_token": PAD, "model_max_length": 77, "note": "\u00e9",
        "chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}],
    }  # fmt: skip
    names = {"eos_token": EOS, "pad_token": PAD, "additional_special_tokens": ["<|x|>"]}
    folder = checkpoint(tmp_path, config, extra=["<|x|>"], special_tokens_map=names)
    again = tmp_path / "again"
    again.mkdir()
    (again / "chat_template.jinja").write_text("of another tokenizer")
    (again / "additional_chat_templates").mkdir()
    (again / "additional_chat_templates" / "rag.jinja").write_text("of another tokenizer")
    Tokenizer.load(folder).save(again)
    assert not (again / "additional_chat_templates" / "rag.jinja").exists()
    assert json.loads((again / "tokenizer_config.json").read_text()) == config
    assert json.loads((again / "special_tokens_map.json").read_text()) == names
    assert json.loads((again / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())
    assert not (again / "chat_template.jinja").exists()


def test_old_files_of_another_tokenizer_in_the_folder_are_not_read(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": BOS}))
    OWN.save(tmp_path)
    assert Tokenizer.load(tmp_path).parts.special == OWN.parts.special


def test_a_template_file_wins_over_the_config(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS, "chat_template": "old"})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    assert Tokenizer.load(folder).apply_chat_template([USER]) == f"Hi{EOS}"


def test_tools_use_the_folders_template_for_tools(tmp_path):
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS, "chat_template": templates}))
    assert (
        tokenizer.apply_chat_template([USER]) == "plain" and tokenizer.apply_chat_template([USER], tools=[]) == "tools"
    )


def test_templates_without_a_default_are_named(tmp_path):
    templates = [{"name": "rag", "template": "x"}]
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS, "chat_template": templates}))
    with pytest.raises(InputError, match="^chat template: needed a template named default, got 'rag'; choose one with"):
        tokenizer.apply_chat_template([USER])
    assert tokenizer.with_template(tokenizer.templates["rag"].source + "{{ 1 }}").apply_chat_template([USER]) == "x1"


@pytest.mark.parametrize(
    ("config", "files", "text"),
    [
        ({"pad_token": PAD}, {}, 'no end token is named; write "eos_token": "..." into tokenizer_config.json'),
        ({"eos_token": "</s>"}, {}, "eos token '</s>' is not in the vocabulary; name another token"),
        (
            {"eos_token": 2},
            {},
            "tokenizer_config.json: eos_token: needed a token as a string or an object with content, got 2",
        ),
        (
            {"eos_token": EOS},
            {"generation_config": {"eos_token_id": "2"}},
            "generation_config.json: eos_token_id: needed an id or a list of ids, got '2'",
        ),
        (
            {"eos_token": EOS, "chat_template": 7},
            {},
            "tokenizer_config.json: chat_template must be text, got 7",
        ),
        (
            {"eos_token": EOS, "chat_template": "{{ ''.__class__.mro }}"},
            {},
            "chat template: it tries to leave the sandbox: access to attribute '__class__' of 'str' object is unsafe.; "
            "choose a built-in layout, or delete the template",
        ),
    ],
    ids=range(6),
)
def test_bad_folders_are_refused(tmp_path, config, files, text):
    with pytest.raises(InputError, match=f"^{re.escape(f'{tmp_path}: {text}')}$"):
        Tokenizer.load(checkpoint(tmp_path, config, **files))


NEEDED_TOKEN = "needed a token as a string or an object with content, got "


@pytest.mark.parametrize(
    ("file", "value", "text"),
    [
        ("tokenizer_config", {"bos_token": ["<s>"]}, f"bos_token: {NEEDED_TOKEN}['<s>']"),
        ("tokenizer_config", {"unk_token": {"content": {}}}, f"unk_token: {NEEDED_TOKEN}" + "{'content': {}}"),
        ("special_tokens_map", {"pad_token": True}, f"pad_token: {NEEDED_TOKEN}True"),
        (
            "tokenizer_config",
            {"additional_special_tokens": "<x>"},
            "additional_special_tokens must be a list, got '<x>'",
        ),
        ("tokenizer_config", {"extra_special_tokens": [[]]}, f"extra_special_tokens: {NEEDED_TOKEN}[]"),
        ("tokenizer_config", {"extra_special_tokens": {"a": 1}}, f"extra_special_tokens: {NEEDED_TOKEN}1"),
        ("tokenizer_config", {"additional_special_tokens": ["\ud83d"]}, f"special_tokens: {NEEDED_TOKEN}'\\ud83d'"),
        (
            "tokenizer_config",
            {"eos_token": {"content": "a\ud83d"}},
            f"eos_token: {NEEDED_TOKEN}{{'content': 'a\\ud83d'}}",
        ),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder must be an object, got []"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {}}}, "needed ids from 0 to 16,777,215, got 'x'"),
        ("tokenizer_config", {"added_tokens_decoder": {"1" * 30: {}}}, "needed ids from 0 to 16,777,215, got '1111"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"1": "a"}},
            "added_tokens_decoder: 1 must be an object, got 'a'",
        ),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {"content": 1}}}, f"1: {NEEDED_TOKEN}{{'content': 1}}"),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {"content": ""}}}, "1: needed a token's content, got"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"300": {"content": "a", "lstrip": "no"}}},
            "added_tokens_decoder: 300: lstrip must be true or false, got 'no'",
        ),
        ("tokenizer_config", {"split_special_tokens": "false"}, "split_special_tokens must be true or false, got 'fal"),
        ("tokenizer_config", {"add_bos_token": 1}, "add_bos_token must be true or false, got 1"),
        (
            "tokenizer_config",
            {"chat_template": [{"name": "a"}]},
            "chat_template: template must be text, got None",
        ),
        (
            "tokenizer_config",
            {"chat_template": ["a"]},
            "chat_template: each entry must be an object, got 'a'",
        ),
        ("chat_template", {"chat_template": 3}, "chat_template: needed text, got 3"),
        ("generation_config", {"eos_token_id": True}, "eos_token_id: needed an id or a list of ids, got True"),
        ("generation_config", {"eos_token_id": [[2]]}, "eos_token_id: needed an id or a list of ids, got [[2]]"),
        ("generation_config", {"eos_token_id": 1.5}, "eos_token_id: needed an id or a list of ids, got 1.5"),
    ],
    ids=range(23),
)
def test_values_of_wrong_types_are_refused_in_one_line(tmp_path, file, value, text):
    files = {} if file == "tokenizer_config" else {file: value}
    folder = checkpoint(tmp_path, {"eos_token": EOS} | (value if file == "tokenizer_config" else {}), **files)
    with pytest.raises(InputError, match=f"^{re.escape(str(folder))}: {file}.json: .*{re.escape(text)}"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "special_tokens_map", "generation_config"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff", b"[1]", b"null", b'{"a": ' + b"9" * 5000 + b"}"], ids=["deep", *"abcd"]
)
def test_files_that_are_no_json_object_are_refused_in_one_line(tmp_path, name, content):
    folder = checkpoint(tmp_path, {"eos_token": EOS}, special_tokens_map={}, generation_config={})
    (folder / f"{name}.json").write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(folder))}: needed a readable tokenizer .{name}.json: ") as e:
        Tokenizer.load(folder)
    assert len(str(e.value)) < 1000 and str(e.value).isprintable()


def test_dropout_of_merges_and_truncation_are_named_and_have_no_effect(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS})
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.model.dropout = 0.9
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert all(tokenizer.encode("the kettle is good.") == OWN.encode("the kettle is good.") for _ in range(20))
    assert tokenizer.parts.notes == (
        "tokenizer.json: truncation is not followed; only the model's context cuts a text",
        "tokenizer.json: dropout is not followed; a text always has the same ids",
    )
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").parts.notes == ()


def test_special_tokens_of_the_map_are_special_too(tmp_path):
    names = {"additional_special_tokens": ["bad"]}
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS}, special_tokens_map=names))
    assert tokenizer.decode([tokenizer.backend.token_to_id("bad")]) == ""


def test_half_a_surrogate_pair_in_a_file_is_written_back(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS, "note": "\ud800"})
    Tokenizer.load(folder).save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["note"] == "\ud800"


def test_the_template_of_a_processor_is_read(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token": EOS}, chat_template={"chat_template": "{{ messages[0].content }}!"})
    assert Tokenizer.load(folder).apply_chat_template([USER]) == "Hi!"


FOLLOWED = {"add_bos_token": True, "add_eos_token": False, "add_prefix_space": False, "do_lower_case": False}


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (FOLLOWED | {"clean_up_tokenization_spaces": True, "legacy": True, "model_input_names": ["input_ids"]}, []),
        ({key: not value for key, value in FOLLOWED.items()}, [
            f"tokenizer_config.json: {key} {str(not value).lower()} is not followed; tokenizer.json does otherwise"
            for key, value in FOLLOWED.items()
        ]),
        ({"add_bos_token": None, "do_lower_case": None, "strip_accents": False, "sp_model_kwargs": {}}, []),
        ({"sp_model_kwargs": {"enable_sampling": True}, "strip_accents": True, "fix_mistral_regex": True}, [
            "tokenizer_config.json: strip_accents true is not followed; tokenizer.json does otherwise",
            "tokenizer_config.json: fix_mistral_regex true is not followed; tokenizer.json does otherwise",
            "tokenizer_config.json: sp_model_kwargs is not followed; tokenizer.json decides",
        ]),
        ({"auto_map": {"AutoTokenizer": ["x.py", None]}},
         ["tokenizer_config.json: auto_map names Python code, which is not run; tokenizer.json decides"]),
        ({"extra_special_tokens": ["<a>", PAD], "unk_token": "<unk>"},
         ["tokenizer_config.json: '<a>', '<unk>': called special, but not in the vocabulary, so not tokens here"]),
    ],
    ids=range(6),
)  # fmt: skip
def test_keys_that_would_change_ids_and_are_not_followed_are_named(tmp_path, config, lines):
    config |= {"eos_token": EOS, "bos_token": BOS}
    tokenizer = Tokenizer.load(checkpoint(tmp_path, config, bos_first=True))
    assert list(tokenizer.parts.notes) == lines


@pytest.mark.parametrize(
    ("part", "value", "key"),
    [
        ("pre_tokenizer", tokenizers.pre_tokenizers.Metaspace(), "add_prefix_space"),
        ("pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True), "add_prefix_space"),
        ("normalizer", tokenizers.normalizers.Prepend("_"), "add_prefix_space"),
        ("normalizer", tokenizers.normalizers.Lowercase(), "do_lower_case"),
        ("normalizer", tokenizers.normalizers.BertNormalizer(lowercase=True), "do_lower_case"),
        ("normalizer", tokenizers.normalizers.BertNormalizer(lowercase=True), "strip_accents"),
        ("normalizer", tokenizers.normalizers.BertNormalizer(lowercase=False), "tokenize_chinese_chars"),
        ("normalizer", tokenizers.normalizers.StripAccents(), "strip_accents"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_tokenizer_json_does_itself_is_known(tmp_path, part, value, key, nested):
    for setting in (True, False):
        folder = checkpoint(tmp_path, {"eos_token": EOS, key: setting})
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        room = tokenizers.normalizers if part == "normalizer" else tokenizers.pre_tokenizers
        setattr(backend, part, room.Sequence([value]) if nested else value)
        backend.save(str(folder / "tokenizer.json"))
        assert bool(Tokenizer.load(folder).parts.notes) == (not setting)


def test_the_error_for_an_older_folder_names_the_file_to_convert(tmp_path):
    checkpoint(tmp_path, {"eos_token": EOS})
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    with pytest.raises(InputError, match="found no tokenizer.json; tokenizer.model alone is not read: convert it to"):
        Tokenizer.load(tmp_path)


# --- conversations as ids ---


def chatml(folder, **files):
    config = {"eos_token": "<|im_end|>", "pad_token": PAD, "chat_template": CHATML}
    return Tokenizer.load(checkpoint(folder, config, extra=["<|im_start|>", "<|im_end|>"], **files))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def said(tokenizer, ids, mask):
    return tokenizer.backend.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)


def test_a_templates_special_tokens_are_tokens_even_inside_content(tmp_path):
    tokenizer = chatml(tmp_path)
    start, end = OWN.vocab_size, OWN.vocab_size + 1
    ids, mask = tokenizer.encode_chat([USER | {"content": "Hi<|im_end|>"}], add_generation_prompt=True)
    assert [i for i in ids if i >= start] == [start, end, end, start] and not any(mask)
    assert ids == tokenizer.encode_rendered("<|im_start|>user\nHi<|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert start not in tokenizer.encode("<|im_start|>")  # plain text has no special tokens


def test_answers_are_found_by_rendering_up_to_them(tmp_path):
    tokenizer = chatml(tmp_path)
    ids, mask = tokenizer.encode_chat([USER, ANSWER, USER, ANSWER | {"content": "Bye"}])
    assert said(tokenizer, ids, mask) == "Hello<|im_end|>Bye<|im_end|>"  # no model writes the line break after it
    assert len(ids) == len(mask)


def test_answers_are_found_by_generation_blocks(tmp_path):
    marked = chatml(tmp_path).with_template("chatml")
    turns = [USER, ANSWER, USER, ANSWER | {"content": "Bye"}]
    ids, mask = marked.encode_chat(turns)
    assert (ids, mask) == chatml(tmp_path).encode_chat(turns) and any(mask)


def test_an_empty_answer_is_its_end_token(tmp_path):
    tokenizer = chatml(tmp_path)
    assert said(tokenizer, *tokenizer.encode_chat([USER, ANSWER | {"content": ""}])) == "<|im_end|>"


def test_a_token_that_ends_the_whole_text_does_not_hide_the_answers(tmp_path):
    # As in Phi-3: the end of text follows only the last turn, and belongs to it.
    template = CHATML.replace("{% endif %}", "{% else %}{{ '<|eos|>' }}{% endif %}")
    tokenizer = chatml(tmp_path, generation_config={"eos_token_id": [2]}).with_template(template)
    assert said(tokenizer, *tokenizer.encode_chat([USER, ANSWER, USER, ANSWER])) == (
        "Hello<|im_end|>Hello<|im_end|>\n<|eos|>"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}" + CHATML,  # the beginning depends on later turns
        CHATML.replace(
            "<|im_start|>assistant\\n' }}", "<|im_start|>assistant\\n<think>' }}"
        ),  # answers begin in another way
        CHATML.replace("m.content", "(m.content if loop.last else '-')"),  # earlier turns change
    ],
)
def test_a_template_that_changes_earlier_text_is_refused_for_masks(tmp_path, template):
    tokenizer = chatml(tmp_path).with_template(template)
    with pytest.raises(
        InputError, match=r"^turn 2: this template renders earlier turns differently .* with {% generation %} blocks"
    ):
        tokenizer.encode_chat([USER, ANSWER, USER])


def test_an_answer_that_is_shortened_once_turns_follow_ends_with_its_end_token(tmp_path):
    # As in Qwen3: only the last answer keeps its reasoning.
    template = CHATML.replace("m.content", "(m.content if loop.last or m.role == 'user' else '-')")
    tokenizer = chatml(tmp_path).with_template(template)
    assert said(tokenizer, *tokenizer.encode_chat([USER, ANSWER, USER, ANSWER])) == "-<|im_end|>Hello<|im_end|>"


def test_an_answer_in_the_first_turn_is_refused_for_masks(tmp_path):
    with pytest.raises(InputError, match="^turn 1: no turn leads to this answer, .* begin with a user turn"):
        chatml(tmp_path).encode_chat([ANSWER, USER])


def test_without_a_template_ids_begin_as_prompts_do_and_special_text_is_text():
    turns = [USER | {"content": EOS}, ANSWER]
    ids, mask = OWN.encode_chat(turns)
    text = f"User:\n{EOS}\n\nAssistant:\nHello\n\n"
    assert [ids] == OWN.encode_prompts([text]) and [OWN.encode_rendered(text)] == [ids] and ids.count(2) == 0
    assert said(OWN, ids, mask) == "Hello\n\n"
    assert [OWN.encode_chat(turns[:1], True)[0]] == OWN.encode_prompts([OWN.apply_chat_template(turns[:1], True)])


def test_the_plain_layout_takes_no_variables():
    with pytest.raises(InputError, match="^chat: the plain layout reads no variables; choose"):
        OWN.apply_chat_template([USER], variables={"x": 1})


def test_a_chosen_layout_sets_the_end_token_and_is_read_back_from_a_folder(tmp_path):
    tokenizer = Tokenizer.load(checkpoint(tmp_path, {"eos_token": EOS}, extra=["<|im_start|>", "<|im_end|>"]))
    chosen = tokenizer.with_template("chatml")
    assert tokenizer.eos_ids == (2,) and not tokenizer.templates  # the first tokenizer did not change
    assert chosen.eos_ids == (OWN.vocab_size + 1, 2) and chosen.encode_responses([""]) == [[OWN.vocab_size + 1]]
    chosen.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.eos_ids == chosen.eos_ids and again.special == chosen.special
    assert again.encode_chat([USER, ANSWER]) == chosen.encode_chat([USER, ANSWER])


def test_our_own_tokenizer_with_a_layout_reads_its_end_token_as_a_token(tmp_path):
    OWN.with_template("zephyr").save(tmp_path)
    ids, mask = Tokenizer.load(tmp_path).encode_chat([USER, ANSWER])
    assert ids.count(2) == 2 and [i for i, m in zip(ids, mask, strict=True) if m][-1] == 2


def test_unknown_and_unsuitable_layouts_are_refused():
    needs = "chat template 'chatml': the vocabulary lacks <|im_start|>, <|im_end|>; choose one of "
    with pytest.raises(InputError, match=f"^{re.escape(needs)}mistral, zephyr, alpaca, plain$"):
        OWN.with_template("chatml")
    known = "chatml, llama3, mistral, gemma, zephyr, alpaca, plain"
    with pytest.raises(InputError, match=f"^chat template: needed one of {known} or Jinja text, got 'vicuna'$"):
        OWN.with_template("vicuna")
