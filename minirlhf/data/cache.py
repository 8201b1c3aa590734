"""A folder of encoded rows: the second job on the same rows maps their ids from disk.

The file's name is a checksum of all that decides the ids: the rows, the tokenizer, the settings, and the source code
of the rooms text/ and data/. So a file is right or has another name. It is written whole, and its own checksum is
compared before use: a damaged file is made again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from minirlhf.data.compact import Arrays
from minirlhf.errors import InputError
from minirlhf.runtime.distributed import is_main, say

VARIABLE = "MINIRLHF_CACHE"  # the environment variable with the cache's folder; without it nothing is kept
ABANDONED = 86_400  # [s] a half-written file of this age belongs to no job
DTYPES = {"I32": np.int32, "I64": np.int64, "U8": np.uint8, "F32": np.float32, "F64": np.float64}
Kind = TypeVar("Kind", bound=tuple)


def cache_folder() -> Path | None:
    """The folder that the environment names."""
    return Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else None


def cached(folder: Path | None, key: Callable[[], str], make: Callable[[], tuple[Arrays, dict]]) -> tuple[Arrays, dict]:
    """The result of `make`, from the folder if the key is there, else made and kept."""
    if folder is None:
        return make()
    path = folder / f"{key()}.safetensors"
    if path.exists():
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path}: damaged ({error}); the rows are encoded again")
    made = make()
    if is_main():
        write(path, *made)
    return made


def key_of(rows: Sequence[dict], tokenizer: Any, settings: dict[str, Any]) -> str:
    """The checksum of all that decides the ids."""
    parts, found = tokenizer.parts, hashlib.blake2b(digest_size=16)
    templates = {name: template.source for name, template in parts.templates.items()}
    about = [parts.backend.to_str(), templates, parts.config, parts.special, parts.pad, parts.eos_ids, settings]
    for value in (source_code("text", "data"), tokenizers.__version__, *about):
        found.update(_bytes(value))
    for i in range(len(rows)):
        found.update(_bytes(rows[i]))
    return found.hexdigest()


def _bytes(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=repr).encode() + b"\n"


@cache
def source_code(*rooms: str) -> str:
    """A checksum of this version's files in the rooms."""
    found = hashlib.blake2b(digest_size=16)
    for room in rooms:
        for path in sorted((Path(__file__).parent.parent / room).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def write(path: Path, arrays: NamedTuple, about: dict, who: str = VARIABLE) -> None:
    """Write a file whole: a reader sees all of it or nothing.   who: a name for the error."""
    tensors = {name: np.ascontiguousarray(values) for name, values in arrays._asdict().items()}
    sums = {name: zlib.crc32(values) for name, values in tensors.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(".*.safetensors.*"):  # of jobs that were killed
            with suppress(FileNotFoundError):  # another job may have finished or deleted it
                if old.stat().st_mtime < time.time() - ABANDONED:
                    old.unlink()
        save_file(tensors, partial, metadata={"about": json.dumps(about), "sums": json.dumps(sums)})
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{who}: cannot write {path} ({error.strerror}); name another folder or none") from None


def read(path: Path, kind: type[Kind] = Arrays) -> tuple[Kind, dict]:
    """Map the arrays of a file from disk. kind: their named tuple.

    Raises: ValueError, KeyError, TypeError or OSError if the file is damaged.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= path.stat().st_size - 8:
            raise ValueError("it is shorter than its header says")
        header = json.loads(file.read(size))
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + size :]
    about, sums = (json.loads(header["__metadata__"][name]) for name in ("about", "sums"))
    arrays = {}
    for name in kind._fields:
        start, end = header[name]["data_offsets"]
        if zlib.crc32(data[start:end]) != sums[name]:
            raise ValueError(f"the checksum of {name} differs")
        arrays[name] = np.frombuffer(data[start:end], DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
    return kind(**arrays), about
