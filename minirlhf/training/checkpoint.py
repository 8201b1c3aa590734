"""Folders that are complete or absent, and state in safe files: safetensors for tensors, JSON for the rest.

A folder is written under a dotted name, flushed to the disk, then renamed. So a crash at any instant leaves no
half-written folder under the final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minirlhf.errors import InputError, writes

TENSORS, STATE = "state.safetensors", "state.json"


def aside_of(folder: Path, process: int) -> Path:
    """The dotted name under which a process writes the folder."""
    return folder.with_name(f".{folder.name}.{process}.tmp")


@contextlib.contextmanager
def written_whole(folder: Path, more: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to write into; at the end it becomes `folder`. After an exception it is deleted.

    more: further keys of the folder's manifest, known at the end.
    """
    from minirlhf.manifest import write_manifest  # here, so that the core loads no leaf

    aside = aside_of(folder, os.getpid())
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writes(folder):
            aside.mkdir(parents=True)
            yield aside
            write_manifest(aside, **more or {})
            for path in [*aside.rglob("*"), aside]:
                _flush(path)
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
            if folder.exists():  # a resumed run trains the same step again
                folder.rename(old)
            aside.rename(folder)
            _flush(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader sees the whole old text or the whole new text."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            _flush(aside)
            aside.rename(path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def holds_anything(folder: Path) -> bool:
    """True if the folder has any file that is not a dot-file (leftovers of a crash are dot-files)."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: needed a folder, got a file; choose another folder")
    return folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())


def discard(folder: Path) -> None:
    """Delete a folder. It is renamed first, so an interrupted deletion leaves nothing under its name."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the half-written and half-deleted files of a crash: dot-files of `folder` that end in .tmp."""
    for path in folder.glob(f".{name}.*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_complete(folder: Path) -> bool:
    """True if every file of the manifest exists and has its listed size."""
    from minirlhf.manifest import is_complete  # here, so that the core loads no leaf

    return is_complete(folder)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested dict of tensors and JSON values."""
    values, tensors = split_state(state)
    save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(values) + "\n")


def load_state(folder: Path) -> dict[str, Any]:
    """Read the dict that `save_state` wrote.   Raises: InputError if a file is damaged; see `manifest.py`."""
    from minirlhf.manifest import check_files  # here, so that the core loads no leaf

    check_files(folder, "resume from another checkpoint")
    try:
        state = json.loads((folder / STATE).read_text())
        return put_tensors(state, load_file(folder / TENSORS))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{folder}: needed a readable checkpoint ({error}); resume from another checkpoint") from None


def split_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A nested dict -> (its JSON values, its tensors by their path)."""
    tensors: dict[str, torch.Tensor] = {}
    return _split(state, "", tensors), tensors


def put_tensors(state: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_state`, in place."""
    for name, tensor in tensors.items():
        *path, last = name.split("/")
        parent = state
        for key in path:
            parent = parent.setdefault(key, {})
        parent[last] = tensor
    return state


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of a nested dict into `tensors`, keyed by their path; return the JSON values that remain."""
    if isinstance(value, dict):
        moved = {key: _split(entry, f"{name}/{key}" if name else key, tensors) for key, entry in value.items()}
        return {key: entry for key, entry in moved.items() if not isinstance(value[key], torch.Tensor)}
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
        return None
    return value


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
