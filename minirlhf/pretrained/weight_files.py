"""Write safetensors files tensor by tensor, so that a model need not be in memory at once.

A file has a header (the name, dtype, shape and place of each tensor), then the numbers. Its bytes are those that the
safetensors library writes for the same tensors: sorted by dtype, then by name. A large model becomes several files, and
an index names the file of each weight.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.errors import writes
from minirlhf.pretrained.locate import DTYPES, FILE_NAME, INDEX, WEIGHTS

FILE_BYTES = 2 * 10**9  # of the tensors in one file; a larger tensor has a file of its own
ALIGNMENT = 8  # the numbers begin at a multiple of so many bytes
WORDS = {dtype: word for word, dtype in DTYPES.items()}
LARGE_FIRST = ("F64", "F32", "BF16", "F16")  # the order in a file


class Weight(NamedTuple):
    """A tensor to be written. `make` is called once, when its turn comes; the tensor may be on any device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(folder: Path, weights: dict[str, Weight]) -> None:
    """Write model.safetensors, or numbered files with an index if the weights have more than FILE_BYTES bytes.

    Files of an earlier model in the folder are replaced or deleted.
    Raises: InputError if the disk is full or the folder cannot be written.
    """
    parts = split(weights)
    number = len(parts)
    names = [f"model-{k:05}-of-{number:05}.safetensors" for k in range(1, number + 1)] if number > 1 else [WEIGHTS]
    for name, part in zip(names, parts, strict=True):
        write_file(folder / name, part)
    if number > 1:
        total = sum(weight.bytes for weight in weights.values())
        files = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        names.append(INDEX)
    for path in folder.iterdir():
        if path.name not in names and (path.name == INDEX or FILE_NAME.fullmatch(path.name)):
            path.unlink()


def make_weights(weights: dict[str, Weight]) -> None:
    """Make the weights in the order of `write_weights`, for another process that writes them."""
    for part in split(weights):
        for name in in_order(part):
            part[name].make()


def split(weights: dict[str, Weight]) -> list[dict[str, Weight]]:
    """The weights of each file, in the order of the model."""
    parts: list[dict[str, Weight]] = [{}]
    room = FILE_BYTES
    for name, weight in weights.items():
        if parts[-1] and weight.bytes > room:
            parts.append({})
            room = FILE_BYTES
        parts[-1][name] = weight
        room -= weight.bytes
    return parts


def in_order(weights: dict[str, Weight]) -> list[str]:
    """The names in the order of the tensors in a file."""
    return sorted(weights, key=lambda name: (LARGE_FIRST.index(WORDS[weights[name].dtype]), name))


def write_file(path: Path, weights: dict[str, Weight]) -> None:
    """Write one file under another name, then rename it: a model that was read from `path` may still be mapped to it.

    Raises: InputError if it cannot be written.
    """
    part, names = path.with_name(f".{path.name}.part"), in_order(weights)
    with writes(path), _removed_after_error(part):
        with part.open("wb") as file:
            file.write(header(names, weights))
            for name in names:
                file.write(bytes_of(weights[name]))
        os.replace(part, path)


@contextlib.contextmanager
def _removed_after_error(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def header(names: list[str], weights: dict[str, Weight]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        shape, dtype, _ = weights[name]
        end = at + weights[name].bytes
        content[name] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(weight: Weight) -> memoryview:
    tensor = weight.make().detach().to("cpu", weight.dtype).contiguous()
    if tensor.shape != weight.shape:
        raise ValueError(f"a weight was announced as {tuple(weight.shape)}, but is {tuple(tensor.shape)}")
    return memoryview(tensor.flatten().view(torch.uint8).numpy())
