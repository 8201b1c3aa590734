"""Read JSON and safetensors files. Pickles are refused, because opening a pickle can run any program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minirlhf.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_TYPES = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def read_json(path: Path, needed: str, **types: type) -> dict[str, Any]:
    """Read a JSON object with these keys. types: key -> type of its value.

    needed: the file's content in words, for the error. Raises: InputError if the file holds anything else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is a ValueError too
        raise not_as_needed(path, needed, error) from None
    if not isinstance(raw, dict):
        raise not_as_needed(path, needed, "it is no object")
    for key, value_type in types.items():
        if key not in raw:
            raise not_as_needed(path, needed, f"{key} is missing")
        if not isinstance(raw[key], value_type):
            raise not_as_needed(path, needed, f"{key} must be {JSON_TYPES[value_type]}, got {raw[key]!r}")
    return raw


def not_as_needed(path: Path, needed: str, reason: object) -> InputError:
    return InputError(f"{path}: needed {needed} ({reason})")


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Map a safetensors file. Raises: InputError if it is broken or cut short, at opening or during a later read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: needed a complete safetensors file ({error}); copy or save it again") from None


def missing_weights(path: Path, pickle: str) -> InputError:
    """The error for a folder without this safetensors file.

    pickle: the name that other tools give to the same weights in a pickle. The error says how to convert it.
    """
    found = sorted(file.name for file in path.parent.iterdir() if file.suffix in (*PICKLES, ".safetensors"))
    pickles = [name for name in found if name.endswith(PICKLES)]
    advice = "is the download complete?"
    if pickles:
        source = pickle if pickle in pickles else pickles[0]
        advice = (
            "a pickle can run any program and is not read; if you trust it, convert it: "
            f"safetensors.torch.save_file(torch.load('{source}', weights_only=True), '{path.name}')"
        )
    return InputError(f"{path}: needed this file, found {', '.join(found) or 'no weights'}; {advice}")
