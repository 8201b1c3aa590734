"""A tokenizer's folder: what the files of a checkpoint say about its special tokens, its end tokens and its templates.

tokenizer.json holds the vocabulary. The names of the special tokens are taken from tokenizer_config.json, else from
special_tokens_map.json, else from the ids in generation_config.json and config.json (GPT-2 has them nowhere else); a
null in tokenizer_config.json counts: Qwen has no BOS, although its config.json gives an id. Further end tokens (the end
of text beside a chat model's end of turn) are in generation_config.json or config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from minirlhf.errors import InputError

MODEL, CONFIG, NAMES, GENERATION = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
)  # fmt: skip
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# what serves as padding where a checkpoint names nothing, or names its end token: the first that exists and is not used
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>", "<|unk|>")


@dataclass(frozen=True)
class TokenizerFolder:
    """What was read: all that `Tokenizer` needs, and all that it writes back."""

    backend: tokenizers.Tokenizer
    config: dict  # tokenizer_config.json, as it came, the templates left out
    special: dict[str, str]  # {"bos_token": "<s>", ...}: what the folder names, and so what its templates read
    pad: str | None  # the token to pad with; None if the vocabulary holds none that is free
    eos_ids: tuple[int, ...]  # the tokenizer's own end token first
    templates: dict[str, str] = field(default_factory=dict)  # by name; "default" is the usual one
    files: dict[str, str] = field(default_factory=dict)  # further files, by name, as they came


def read_folder(folder: str | Path) -> TokenizerFolder:
    """Read the files of a tokenizer. Raises: InputError if one is missing or broken, or no end token is named."""
    folder = Path(folder)
    for name in (MODEL, CONFIG):
        if not (folder / name).is_file():
            old = [other for other in ("tokenizer.model", "vocab.json") if name == MODEL and (folder / other).is_file()]
            hint = f"; {old[0]} alone is not read: convert it to {MODEL} with the tool that wrote it" if old else ""
            raise InputError(f"{folder}: needed a tokenizer folder with {MODEL} and {CONFIG}, found no {name}{hint}")
    try:
        return _read(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except Exception as error:  # the tokenizers library raises plain Exception for a broken file
        raise InputError(f"{folder}: needed a readable tokenizer ({error!r}); save it again") from None


def _read(folder: Path) -> TokenizerFolder:
    config, map_, generation = (_object(folder / name) for name in (CONFIG, NAMES, GENERATION))
    try:
        model = _object(folder / "config.json")
    except ValueError:
        model = {}  # whoever reads the model says what is wrong with it
    backend = tokenizers.Tokenizer.from_file(str(folder / MODEL))
    backend.no_truncation()  # some folders carry the settings of a last call, which would cut texts in silence
    backend.no_padding()
    _add_tokens(backend, config)

    special = {}
    for key in SPECIAL:
        named = config[key] if key in config else map_.get(key)
        if named is None and key in ("bos_token", "eos_token") and (key == "eos_token" or key not in config):
            ids = _ids(generation, f"{key}_id") or _ids(model, f"{key}_id")
            named = backend.id_to_token(ids[0]) if ids else None
        if (name := _content(named)) is not None:
            special[key] = name
    if "eos_token" not in special:
        raise InputError(f'no end token is named; write "eos_token": "..." into {CONFIG}')
    for key in ("bos_token", "eos_token", "pad_token"):
        if key in special and backend.token_to_id(special[key]) is None:
            raise InputError(
                f"{key.removesuffix('_token')} token {special[key]!r} is not in the vocabulary; name one that is"
            )
    extra = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or []
        extra += listed.values() if isinstance(listed, dict) else listed
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    words = [name for name in (*special.values(), *map(_content, extra)) if name and name not in known]
    if words := [name for name in words if backend.token_to_id(name) is not None]:
        backend.add_special_tokens(words)  # which only the config calls special

    eos = backend.token_to_id(special["eos_token"])
    eos_ids = tuple(dict.fromkeys([eos, *(_ids(generation, "eos_token_id") or _ids(model, "eos_token_id"))]))
    templates, config = _templates(folder, config)
    found = {NAMES: map_, GENERATION: generation}
    files = {name: (folder / name).read_text(encoding="utf-8") for name, content in found.items() if content}
    return TokenizerFolder(backend, config, special, choose_pad(backend, special), eos_ids, templates, files)


def _object(path: Path) -> dict:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content


def _content(token: Any) -> str | None:
    """The text of a token that stands as a string, as {"content": string, ...}, or is null."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise InputError(f"{CONFIG}: needed a token as a string or an object with content, got {token!r}")
    return text or None


def _ids(config: dict, key: str) -> list[int]:
    """One id, a list of them, or nothing."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise InputError(f"{key}: needed an id or a list of ids, got {value!r}")
    return [i for i in ids if i >= 0]  # -1 is some writers' "none"


def _add_tokens(backend: tokenizers.Tokenizer, config: dict) -> None:
    """Tokens that tokenizer_config.json lists and tokenizer.json lacks, as fine-tunes leave them."""
    known = backend.get_added_tokens_decoder()
    for number, entry in sorted(
        (int(number), entry) for number, entry in (config.get("added_tokens_decoder") or {}).items()
    ):
        if number not in known:
            flags = {key: bool(entry[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in entry}
            special = bool(entry.get("special"))
            token = tokenizers.AddedToken(entry["content"], special=special, **flags)
            (backend.add_special_tokens if special else backend.add_tokens)([token])
            if backend.token_to_id(entry["content"]) != number:
                raise InputError(
                    f"{CONFIG} gives {entry['content']!r} the id {number}, {MODEL} leads to "
                    f"{backend.token_to_id(entry['content'])}; the two files are of different checkpoints"
                )


def choose_pad(backend: tokenizers.Tokenizer, special: dict[str, str]) -> str | None:
    """The named padding token unless it is the end token, else an unused special token that is plainly for it.

    Many checkpoints pad with their end token. Here that does no harm, as masks come from lengths; a tool that masks by
    the id, given what we write, would never teach the model to stop, or would read a reward one token too early.
    """
    named = special.get("pad_token")
    if named not in (None, special["eos_token"]):
        return named
    free = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    free -= {special["eos_token"], special.get("bos_token")}
    return next((name for name in PADS if name in free), None)


def name_pad(names: dict, pad: str | None) -> dict:
    """The names of special tokens with `pad` as the padding token, unless they have it already."""
    return names if pad is None or _content(names.get("pad_token")) == pad else names | {"pad_token": pad}


def _templates(folder: Path, config: dict) -> tuple[dict[str, str], dict]:
    """The templates by name, files before config, and the config without them."""
    inside = config.get("chat_template")
    if isinstance(inside, list):
        inside = {entry["name"]: entry["template"] for entry in inside}
    elif inside is not None:
        inside = {"default": inside}
    paths = {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        paths["default"] = folder / TEMPLATE
    templates = {name: path.read_text(encoding="utf-8") for name, path in paths.items()} or inside or {}
    for name, source in templates.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise InputError(f"{CONFIG}: chat_template: needed text or a list of name and template, got {source!r}")
    return templates, {key: value for key, value in config.items() if key != "chat_template"}


def write_templates(folder: Path, config: dict, templates: dict[str, str]) -> dict:
    """The config with its templates; files of another template in `folder` would win over them and are removed."""
    (folder / TEMPLATE).unlink(missing_ok=True)
    for path in (folder / MORE_TEMPLATES).glob("*.jinja"):
        path.unlink()
    if set(templates) == {"default"}:
        return config | {"chat_template": templates["default"]}
    listed = [{"name": name, "template": source} for name, source in templates.items()]
    return config | {"chat_template": listed} if listed else config
