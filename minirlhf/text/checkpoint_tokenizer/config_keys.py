"""Keys of tokenizer_config.json and special_tokens_map.json: the types of their values, and keys without effect here.

tokenizer.json alone decides how a text becomes ids. transformers rebuilds some tokenizers from the config's keys
instead, and older versions followed more of them. `unfollowed` names each key whose value disagrees with
tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tokenizers

from minirlhf.errors import InputError, shown
from minirlhf.foreign import SURROGATE
from minirlhf.pretrained.safe import check_type
from minirlhf.text.checkpoint_tokenizer.backend import MAX_ID

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "clean_up_tokenization_spaces",
    "split_special_tokens", "strip_accents", "tokenize_chinese_chars", "fix_mistral_regex",
)  # fmt: skip
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def check_types(config: dict, file: str) -> None:
    """Raise InputError for a value of a wrong type under a key that is read. Null means that the key is not there."""
    given = {key: value for key, value in config.items() if value is not None}
    for key in (key for key in SPECIAL if key in given):
        _check_token(f"{file}: {key}", given[key])
    for key in (key for key in FLAGS if key in given):
        check_type(f"{file}: {key}", given[key], bool)
    for key in (key for key in LISTS if key in given):
        tokens = list(given[key].values()) if isinstance(given[key], dict) else given[key]
        check_type(f"{file}: {key}", tokens, list)
        for token in tokens:
            _check_token(f"{file}: {key}", token)
    check_type(f"{file}: added_tokens_decoder", given.get("added_tokens_decoder", {}), dict)
    for number, entry in given.get("added_tokens_decoder", {}).items():
        if not (number.isdecimal() and number.isascii() and len(number) < 10 and int(number) <= MAX_ID):
            raise InputError(f"{file}: added_tokens_decoder: needed ids from 0 to {MAX_ID:,}, got {shown(number)}")
        who = f"{file}: added_tokens_decoder: {number}"
        check_type(who, entry, dict)
        if not entry.get("content"):
            raise InputError(f"{who}: needed a token's content, got {shown(entry)}")
        _check_token(who, entry)
        for key in (key for key in TOKEN_FLAGS if key in entry):
            check_type(f"{who}: {key}", entry[key], bool)
    _check_templates(f"{file}: chat_template", given.get("chat_template", ""))


def _check_token(who: str, token: Any) -> None:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or SURROGATE.search(text or ""):
        raise InputError(f"{who}: needed a token as a string or an object with content, got {shown(token)}")


def _check_templates(who: str, templates: Any) -> None:
    """A template, or a list of templates with their names."""
    if not isinstance(templates, list):
        return check_type(who, templates, str)
    for entry in templates:
        check_type(f"{who}: each entry", entry, dict)
        for key in ("name", "template"):
            check_type(f"{who}: {key}", entry.get(key), str)


def content_of(token: Any) -> str | None:
    """The text of a token that `check_types` accepts: a string, {"content": string, ...}, or null."""
    return (token.get("content") if isinstance(token, dict) else token) or None


def listed_special(config: dict) -> list[str]:
    """The further tokens that the config calls special."""
    values = [config.get(key) or [] for key in LISTS]
    tokens = [token for value in values for token in (value.values() if isinstance(value, dict) else value)]
    return [name for token in tokens if (name := content_of(token))]


def unfollowed(config: dict, content: dict, backend: tokenizers.Tokenizer, special: dict[str, str]) -> tuple[str, ...]:
    """A line for each key that would change ids or texts in another tool and does not here.

    content: the JSON of tokenizer.json.
    """
    encoding = backend.encode("a", add_special_tokens=True)
    inner = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else len(encoding.ids)
    first = backend.token_to_id(special["bos_token"]) in encoding.ids[:inner] if "bos_token" in special else False
    steps = list(_steps(content.get("normalizer"))) + list(_steps(content.get("pre_tokenizer")))
    here = {
        "add_bos_token": first,
        "add_eos_token": backend.token_to_id(special["eos_token"]) in encoding.ids[inner:],
        "add_prefix_space": any(map(_adds_space, steps)),
        "do_lower_case": any(step["type"] == "Lowercase" or step.get("lowercase") is True for step in steps),
        "strip_accents": any(step["type"] == "StripAccents" or _strips_accents(step) for step in steps),
        "tokenize_chinese_chars": any(step.get("handle_chinese_chars") is True for step in steps),
        "fix_mistral_regex": False,
        "clean_up_tokenization_spaces": False,
    }
    is_bpe = type(backend.model).__name__ == "BPE"  # other tools leave the texts of BPE unchanged as well
    lines = [
        f"tokenizer_config.json: {key} {str(config[key]).lower()} is not followed; tokenizer.json does otherwise"
        for key, value in here.items()
        if config.get(key) is not None and config[key] != value and not (is_bpe and key.startswith("clean_up"))
    ]
    if config.get("sp_model_kwargs"):
        lines.append("tokenizer_config.json: sp_model_kwargs is not followed; tokenizer.json decides")
    if content.get("truncation"):
        lines.append("tokenizer.json: truncation is not followed; only the model's context cuts a text")
    if content["model"].get("dropout"):
        lines.append("tokenizer.json: dropout is not followed; a text always has the same ids")
    if "auto_map" in config:
        lines.append("tokenizer_config.json: auto_map names Python code, which is not run; tokenizer.json decides")
    unknown = dict.fromkeys(name for name in listed_special(config) if backend.token_to_id(name) is None)
    unknown |= dict.fromkeys(name for name in special.values() if backend.token_to_id(name) is None)
    if unknown:
        lines.append(
            f"tokenizer_config.json: {', '.join(map(shown, list(unknown)[:3]))}{' ...' * (len(unknown) > 3)}: called "
            "special, but not in the vocabulary, so not tokens here"
        )
    return tuple(lines)


def _steps(part: Any) -> Iterator[dict]:
    """The steps of a normalizer or pre-tokenizer, from inside its sequences."""
    if isinstance(part, dict):
        inner = part.get("normalizers") or part.get("pretokenizers")
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)
        if isinstance(part.get("type"), str):
            yield part


def _strips_accents(step: dict) -> bool:
    default = step["type"] == "BertNormalizer" and step.get("lowercase") is True
    return default if step.get("strip_accents") is None else step["strip_accents"] is True


def _adds_space(step: dict) -> bool:
    kind = step["type"]
    if kind == "Metaspace":
        return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
    return kind == "Prepend" or (kind == "ByteLevel" and step.get("add_prefix_space") is True)
