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
from minirlhf.text.checkpoint_tokenizer.backend import MAX_ID

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "clean_up_tokenization_spaces",
    "split_special_tokens", "strip_accents", "tokenize_chinese_chars", "fix_mistral_regex",
)  # fmt: skip
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def check_types(config: dict, file: str) -> None:
    """Raise InputError for a value of a wrong type under a key that is read."""

    def need(ok: bool, key: str, needed: str, value: Any) -> None:
        if not ok:
            raise InputError(f"{file}: {key}: needed {needed}, got {shown(value)}")

    for key in SPECIAL:
        _check_token(config.get(key), f"{file}: {key}")
    for key in FLAGS:
        need(isinstance(config.get(key), bool | None), key, "true or false", config.get(key))
    for key in LISTS:
        value = config.get(key)
        need(isinstance(value, list | dict | None), key, "a list of tokens", value)
        for token in value.values() if isinstance(value, dict) else value or ():
            _check_token(token, f"{file}: {key}")
    entries = config.get("added_tokens_decoder")
    need(isinstance(entries, dict | None), "added_tokens_decoder", "an object of ids and tokens", entries)
    for number, entry in (entries or {}).items():
        is_id = number.isdecimal() and number.isascii() and len(number) < 10 and int(number) <= MAX_ID
        need(is_id, "added_tokens_decoder", f"ids from 0 to {MAX_ID:,}", number)
        ok = isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"] != ""
        need(ok, f"added_tokens_decoder: {number}", "an object with content", entry)
        for key in TOKEN_FLAGS:
            ok = key not in entry or isinstance(entry[key], bool)
            need(ok, f"added_tokens_decoder: {number}: {key}", "true or false", entry.get(key))
    template = config.get("chat_template")
    entries = template if isinstance(template, list) else []
    ok = isinstance(template, str | list | None) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in entries
    )
    need(ok, "chat_template", "text or a list of name and template", template)


def _check_token(token: Any, who: str) -> None:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or SURROGATE.search(text or ""):
        raise InputError(f"{who}: needed a token as a string or an object with content, got {shown(token)}")


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
