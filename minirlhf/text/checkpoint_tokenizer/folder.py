"""A tokenizer's folder: reads and writes the special tokens, end tokens and chat templates of a checkpoint.

tokenizer.json holds the vocabulary. The special tokens come from tokenizer_config.json, else special_tokens_map.json.
Without a name, BOS and EOS come from the ids in generation_config.json, else config.json (GPT-2). A null BOS in
tokenizer_config.json means no BOS (Qwen), whatever id config.json gives. generation_config.json or config.json lists
further end tokens, such as the end of text beside a chat model's end of turn.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from minirlhf.errors import InputError, shown
from minirlhf.text.checkpoint_tokenizer.answer_end import with_answer_end
from minirlhf.text.checkpoint_tokenizer.backend import (
    MAX_ID,
    as_object,
    check_distinct,
    check_id,
    check_number,
    library_errors,
    load_backend,
    read_text,
)
from minirlhf.text.checkpoint_tokenizer.config_keys import SPECIAL, check_types, content_of, listed_special, unfollowed
from minirlhf.text.checkpoint_tokenizer.template import ChatTemplate
from minirlhf.text.parts import TokenizerParts

MODEL, CONFIG, NAMES, GENERATION = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
)  # fmt: skip
MODEL_CONFIG = "config.json"
TEMPLATE, MORE_TEMPLATES, PROCESSOR_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
# If a checkpoint names no padding token, or pads with its end token, the first free special token of this list pads.
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>", "<|unk|>")


def read_folder(folder: str | Path) -> TokenizerParts:
    """Read the files of a tokenizer.

    Raises: InputError if a file is missing or broken, no end token is named, or a chat template does harm.
    """
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


def _read(folder: Path) -> TokenizerParts:
    config, names, generation = (_object(folder / name) for name in (CONFIG, NAMES, GENERATION))
    try:
        model = _object(folder / MODEL_CONFIG)
    except InputError:
        model = {}  # the reader of the model reports the fault
    check_types(config, CONFIG)
    check_types(names, NAMES)
    backend, content = load_backend(folder / MODEL)
    _add_tokens(backend, config)
    special = _special_tokens(backend, config, names, generation, model)
    _mark_special(backend, names | config, special)
    check_distinct(backend, content, MODEL)
    ends = _ids(generation, "eos_token_id", GENERATION) or _ids(model, "eos_token_id", MODEL_CONFIG)
    known = [number for number in ends if backend.id_to_token(number) is not None]
    eos_ids = tuple(dict.fromkeys([backend.token_to_id(special["eos_token"]), *known]))
    notes = unfollowed(names | config, content, backend, special)
    if unknown := sorted({*ends} - {*known}):
        notes += (f"eos_token_id {shown(unknown)}: not used, because the vocabulary has no such id",)
    sources, config = _templates(folder, config)
    templates = {name: ChatTemplate(source, special) for name, source in sources.items()}
    found = {NAMES: names, GENERATION: generation}
    files = {name: read_text(folder / name) for name, content in found.items() if content}
    pad = choose_pad(backend, special, _rows(model))
    return with_answer_end(TokenizerParts(backend, config, special, pad, eos_ids, templates, files, notes=notes))


def _rows(model: dict) -> int | None:
    """The rows of the embedding that config.json promises, or None."""
    inner = model.get("text_config")
    rows = model.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return rows if type(rows) is int and rows > 0 else None


def _special_tokens(
    backend: tokenizers.Tokenizer, config: dict, names: dict, generation: dict, model: dict
) -> dict[str, str]:
    """The special tokens that the folder's files name.   Raises: InputError if EOS is missing or a token is unknown."""
    special = {}
    for key in SPECIAL:
        named = config[key] if key in config else names.get(key)
        if named is None and key in ("bos_token", "eos_token") and (key == "eos_token" or key not in config):
            ids = _ids(generation, f"{key}_id", GENERATION) or _ids(model, f"{key}_id", MODEL_CONFIG)
            named = backend.id_to_token(ids[0]) if ids else None
        if (name := content_of(named)) is not None:
            special[key] = name
    if "eos_token" not in special:
        raise InputError(f'no end token is named; write "eos_token": "..." into {CONFIG}')
    for key in ("bos_token", "eos_token", "pad_token"):
        if key in special and backend.token_to_id(special[key]) is None:
            raise InputError(
                f"{key.removesuffix('_token')} token {shown(special[key])} is not in the vocabulary; name another token"
            )
    return special


def _mark_special(backend: tokenizers.Tokenizer, config: dict, special: dict[str, str]) -> None:
    """Make the tokens special that other files call special and tokenizer.json does not."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    words = [name for name in (*special.values(), *listed_special(config)) if name not in known]
    if words := [name for name in words if backend.token_to_id(name) is not None]:
        with library_errors(CONFIG):
            backend.add_special_tokens(words)


def _object(path: Path) -> dict:
    """The JSON object of a file; {} if the file does not exist."""
    return as_object(read_text(path), path.name) if path.is_file() else {}


def _ids(config: dict, key: str, file: str) -> list[int]:
    """The ids under a key. The key may hold an id, a list of ids, or nothing."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise InputError(f"{file}: {key}: needed an id or a list of ids, got {shown(value)}")
    ids = [i for i in ids if i >= 0]  # some writers mean "none" by -1
    for number in ids:
        check_id(number, f"{file}: {key}")
    return ids


def _add_tokens(backend: tokenizers.Tokenizer, config: dict) -> None:
    """Add tokens that tokenizer_config.json lists and tokenizer.json lacks, as in fine-tuned checkpoints."""
    known = backend.get_added_tokens_decoder()
    listed = {int(number): entry for number, entry in (config.get("added_tokens_decoder") or {}).items()}
    for number in sorted(listed.keys() - known.keys()):
        entry = listed[number]
        flags = {key: entry[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in entry}
        with library_errors(CONFIG):
            token = tokenizers.AddedToken(entry["content"], special=bool(entry.get("special")), **flags)
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        check_number(backend, entry["content"], number, CONFIG)


def choose_pad(backend: tokenizers.Tokenizer, special: dict[str, str], rows: int | None = None) -> str | None:
    """The named padding token unless it is the end token, else a free special token of `PADS`, else None.

    rows: of the model's embedding, if known. A padding token without a row is not taken: the model could not read it.

    Many checkpoints pad with their end token. That does no harm here, because masks come from lengths. It does harm in
    a tool that masks by the id: the model never learns to stop, or the tool reads a reward one token too early.
    """
    named, rows = special.get("pad_token"), rows or MAX_ID + 1
    if named not in (None, special["eos_token"]) and backend.token_to_id(named) < rows:
        return named
    free = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    free -= {special["eos_token"], special.get("bos_token")}
    return next((name for name in PADS if name in free and backend.token_to_id(name) < rows), None)


def _templates(folder: Path, config: dict) -> tuple[dict[str, str], dict]:
    """(sources of the templates by name, the config without them). Template files win over the config."""
    inside = config.get("chat_template")
    if isinstance(inside, list):
        inside = {entry["name"]: entry["template"] for entry in inside}
    elif inside is not None:
        inside = {"default": inside}
    paths = {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        paths["default"] = folder / TEMPLATE
    templates = {name: read_text(path) for name, path in paths.items()} or inside or _of_a_processor(folder)
    return templates, {key: value for key, value in config.items() if key != "chat_template"}


def _of_a_processor(folder: Path) -> dict[str, str]:
    """The template in chat_template.json. Processors of images and text keep their template in this file."""
    source = _object(folder / PROCESSOR_TEMPLATE).get("chat_template")
    if not isinstance(source, str | None):
        raise InputError(f"{PROCESSOR_TEMPLATE}: chat_template: needed text, got {shown(source)}")
    return {} if source is None else {"default": source}


def write_folder(folder: str | Path, parts: TokenizerParts, token_ids: dict[str, int | None]) -> None:
    """Write a tokenizer's files, with the settings that were read, so that other tools read the same tokenizer.

    generation_config.json keeps its other keys and lists the end tokens. The files name our padding token.

    Args:
        token_ids: {"pad_token_id": ..., ...} for generation_config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts.backend.save(str(folder / MODEL))
    files = {CONFIG: _write_templates(folder, _name_pad(parts.config, parts.pad), parts)}
    if NAMES in parts.files:
        files[NAMES] = _name_pad(json.loads(parts.files[NAMES]), parts.pad)
    ends = list(parts.eos_ids) if len(parts.eos_ids) > 1 else parts.eos_ids[0]
    files[GENERATION] = token_ids | json.loads(parts.files.get(GENERATION, "{}")) | {"eos_token_id": ends}
    (folder / NAMES).unlink(missing_ok=True)  # an old file would name the tokens of another tokenizer
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_bytes(text.encode(errors="backslashreplace"))  # half a surrogate pair as JSON writes it


def _name_pad(names: dict, pad: str | None) -> dict:
    """The names of special tokens with `pad` as the padding token, unchanged if they name it already."""
    return names if pad is None or content_of(names.get("pad_token")) == pad else names | {"pad_token": pad}


def _write_templates(folder: Path, config: dict, parts: TokenizerParts) -> dict:
    """The config with the templates. Old template files in `folder` would win over the config, so they are removed."""
    (folder / TEMPLATE).unlink(missing_ok=True)
    for path in (folder / MORE_TEMPLATES).glob("*.jinja"):
        path.unlink()
    if set(parts.templates) == {"default"}:
        return config | {"chat_template": parts.templates["default"].source}
    listed = [{"name": name, "template": template.source} for name, template in parts.templates.items()]
    return config | {"chat_template": listed} if listed else config
