"""tokenizer.json: the vocabulary. A stranger wrote the file, and the tokenizers library believes its ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from minirlhf.errors import InputError, shown
from minirlhf.foreign import without_repeats
from minirlhf.text.checkpoint_tokenizer.regexes import check_regexes

MAX_ID = (1 << 24) - 1  # saving takes 4 bytes for every unused id; the largest real vocabulary has 2**18 ids
TRIALS = ("a", "Hi there.\n", " 12 \u00e9 \u6f22 \U0001f600")


def load_backend(path: Path) -> tuple[tokenizers.Tokenizer, dict]:
    """-> (the tokenizer, the JSON of its file).

    Raises: InputError if the file is broken, or gives an id that the library would change.
    """
    text = read_text(path)
    content = as_object(text, path.name)
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and (bad := [token for token in vocabulary if not is_id(vocabulary[token])]):
        check_id(vocabulary[bad[0]], f"{path.name}: {shown(bad[0])}")
    with library_errors(path.name):
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_truncation()  # some folders have truncation settings that would cut texts silently
        backend.no_padding()
        if isinstance(backend.model, tokenizers.models.BPE):
            backend.model.dropout = None  # merges left out at random would give a text other ids each time
        for trial in TRIALS:
            backend.decode(backend.encode(trial).ids)
    try:
        check_regexes(backend, content)
    except InputError as error:
        raise InputError(f"needed a readable tokenizer ({path.name}: {error}); correct it") from None
    for entry in content.get("added_tokens") or []:  # a list of objects: the library has read it
        check_number(backend, entry["content"], entry["id"], path.name)
    return backend, content


def read_text(path: Path) -> str:
    """Raises: InputError if the file cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"needed a readable tokenizer ({path.name}: {error}); save it again") from None


def as_object(text: str, name: str) -> dict:
    """The JSON object in the text of the file `name`.   Raises: InputError."""
    try:
        content = json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"needed a readable tokenizer ({name}: {error}); save it again") from None
    if not isinstance(content, dict):
        raise InputError(f"needed a readable tokenizer ({name}: no JSON object, but {shown(content)}); save it again")
    return content


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Every failure of the tokenizers library becomes an InputError about the file `name`.

    Call only the library inside: our own faults must not be told as faults of the file. The library raises plain
    Exception for a broken file. Its panics are no Exception, only a BaseException.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"needed a readable tokenizer ({name}: {shown(str(error), 300)}); save it again") from None


def is_id(number: Any) -> bool:
    return type(number) is int and 0 <= number <= MAX_ID


def check_id(number: Any, who: str) -> None:
    """Raise InputError unless `number` is an id from 0 to `MAX_ID`."""
    if not is_id(number):
        raise InputError(f"{who}: needed an id from 0 to {MAX_ID:,}, got {shown(number)}; correct the file")


def check_number(backend: tokenizers.Tokenizer, token: str, number: int, name: str) -> None:
    """Raise InputError unless the backend gives the token the id that the file `name` gives it."""
    if (got := backend.token_to_id(token)) != number:
        raise InputError(
            f"{name} gives {shown(token)} the id {number}, the tokenizers library gives {got}: it numbers added tokens "
            "on from its vocabulary, without holes; take the folder's original files"
        )


def check_distinct(backend: tokenizers.Tokenizer, content: dict, name: str) -> None:
    """Raise InputError if two tokens have one id.   content: the JSON of tokenizer.json."""
    vocabulary = content["model"].get("vocab") or {}
    if isinstance(vocabulary, list):  # of (token, score)
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    owners = {number: token for token, number in vocabulary.items()}
    shared = [(token, number) for token, number in vocabulary.items() if owners[number] != token]
    added = backend.get_added_tokens_decoder().items()
    shared += [(token.content, number) for number, token in added if owners.get(number, token.content) != token.content]
    for token, number in shared[:1]:
        tokens = f"{shown(token)} and {shown(owners[number])}"
        raise InputError(f"{name}: {tokens} have one id, {number}; take the folder's original files")


def add_special_tokens(backend: tokenizers.Tokenizer, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """A copy with more special tokens. New ids continue after the largest id.

    The library numbers new tokens on from the count of the vocabulary. If ids have holes, such a number may belong to
    another token, so the new tokens join the vocabulary itself with their ids.
    Raises: InputError if ids have holes and the vocabulary is a list, or splits texts into whole words.
    """
    text = backend.to_str()
    new = [token for token in dict.fromkeys(tokens) if backend.token_to_id(token) is None]
    first = max(backend.get_vocab().values(), default=-1) + 1
    numbers = {token: first + i for i, token in enumerate(new)}
    grown = tokenizers.Tokenizer.from_str(text)
    grown.add_special_tokens(list(tokens))
    if all(grown.token_to_id(token) == number for token, number in numbers.items()):
        return grown
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise InputError(
            "with_special_tokens: ids of this tokenizer have holes, and its vocabulary is a list; renumber"
        )
    # All added tokens join, because their numbers would grow with the count of the vocabulary.
    vocabulary |= {entry["content"]: entry["id"] for entry in content["added_tokens"]} | numbers
    grown = tokenizers.Tokenizer.from_str(json.dumps(content))
    grown.add_special_tokens(list(tokens))
    grown.encode_special_tokens = True
    for token, number in numbers.items():
        if grown.token_to_id(token) != number or number in grown.encode(token, add_special_tokens=False).ids:
            raise InputError(
                f"with_special_tokens: ids of this tokenizer have holes, and {shown(token)} would be read in plain text"
            )
    return grown
