"""Read JSON and safetensors files. Pickles are refused, because opening a pickle can run any program."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minirlhf.errors import InputError, shown
from minirlhf.foreign import without_repeats

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_BYTES = 1 << 26  # a longer file is no configuration
LARGEST = 10**15  # no setting of a model comes near
WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
}
NO_MODELS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # pickles of trainers without weights
OTHER_FORMATS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz")


def read_json(path: Path, needed: str, **types: type) -> dict[str, Any]:
    """Read a JSON object with these keys. types: key -> type of its value, see `check_type`.

    needed: the file's content in words, for the error. Raises: InputError if the file holds anything else.
    """
    try:
        raw = json.loads(_bytes_of(path).decode("utf-8-sig"), object_pairs_hook=without_repeats)
        if not isinstance(raw, dict):
            raise InputError("it is no object")
        for key, value_type in types.items():
            if key not in raw:
                raise InputError(f"{key} is missing")
            check_type(key, raw[key], value_type)
    except OSError as error:
        raise not_as_needed(path, needed, error.strerror) from None
    except RecursionError:
        raise not_as_needed(path, needed, "its lists and objects are nested too deep") from None
    except ValueError as error:  # InputError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise not_as_needed(path, needed, error) from None
    return raw


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        raise InputError(f"it has more than {JSON_BYTES:,} bytes")
    return data


def check_type(name: str, value: object, wanted: type, least: float = -LARGEST, most: float = LARGEST) -> None:
    """Raise InputError unless a JSON value has this type, and a number lies in the bounds. True is no number.

    A whole number fits float.
    """
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits:
        raise InputError(f"{name} must be {WORDS[wanted]}, got {shown(value)}")
    if wanted in (int, float) and not least <= value <= most:  # nan is refused too
        raise InputError(f"{name} must be {WORDS[wanted]} from {least:,} to {most:,}, got {shown(value)}")


def not_as_needed(path: Path, needed: str, reason: object) -> InputError:
    return InputError(f"{path}: needed {needed} ({reason})")


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Map a safetensors file. Raises: InputError if it is missing, broken or cut short.

    Only the opening is caught: opening checks the header against the file's size, so an error of a later statement has
    another cause.
    """
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: needed a complete safetensors file ({error}); copy or save it again") from None
    with file:
        yield file


def missing_weights(path: Path, pickle: str) -> InputError:
    """The error for a folder without this safetensors file.

    pickle: the name that other tools give to the same weights in a pickle. The error says how to convert it.
    """
    suffixes = (*PICKLES, *OTHER_FORMATS, ".safetensors")
    found = sorted(file.name for file in path.parent.iterdir() if file.suffix in suffixes)
    return InputError(
        f"{path}: needed this file, found {', '.join(found) or 'no weights'}; {_advice(path, pickle, found)}"
    )


def _advice(path: Path, pickle: str, found: list[str]) -> str:
    pickles = [name for name in found if name.endswith(PICKLES) and not name.startswith(NO_MODELS)]
    if pickles:
        stem = Path(pickle).stem
        usual = any(name.startswith(stem) for name in pickles)  # in one file or in shards
        largest = max(pickles, key=lambda name: (path.parent / name).stat().st_size)
        recipe = conversion(f"{stem}*.bin" if usual else largest, stem if usual else Path(largest).stem, path.stem)
        return (
            f"a pickle can run any program and is not read; if you trust it, convert it: run in that folder: {recipe}"
        )
    if others := [name for name in found if name.endswith(OTHER_FORMATS)]:
        format = Path(others[0]).suffix[1:].upper()
        return f"{format} files are not read; take the folder of the same model with .safetensors files"
    if len(found) == 1 and found[0].endswith(".safetensors"):
        return f"if {found[0]} holds the weights, rename it to {path.name}"
    return "is the download complete?"


def conversion(files: str, stem: str, new_stem: str) -> str:
    """The shell command that converts pickles to safetensors, each name from `stem` to `new_stem`.

    files: a name or a glob. clone() gives each name its own memory: safetensors refuses shared memory, and a tied
    weight of a pickle has two names.
    """
    tensors = '{name: t.clone().contiguous() for name, t in w.get("state_dict", w).items()}'
    name = f'{json.dumps(new_stem)} + f[{len(stem)}:].rsplit(".", 1)[0] + ".safetensors"'
    pattern = "glob.glob(" + json.dumps(files) + ")" if "*" in files else f"[{json.dumps(files)}]"
    load = 'torch.load(f, map_location="cpu", weights_only=True)'
    saves = f'[save_file({tensors}, {name}, {{"format": "pt"}}) for f in {pattern} for w in [{load}]]'
    return f"python -c {shlex.quote(f'import glob, torch; from safetensors.torch import save_file; {saves}')}"
