"""A checkpoint in shards: each rank writes its rows of each tensor, and one manifest lists the slices of all tensors.

manifest.json: {"files": ..., "step": N, "tensors": {name: {"shape", "dtype", "slices": [[start, stop, file], ...]}}}. A
slice is a range of rows (dimension 0). Any rank of any later run reads the rows that it needs, so the number of
processes and the strategy may change between two runs. The functions that write use no collective but `own_slices`:
ranks meet in the folder, where each rank leaves a receipt, so a thread can write while the ranks go on training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from minirlhf.errors import InputError, shown
from minirlhf.manifest import read_manifest
from minirlhf.runtime.distributed import gather, rank
from minirlhf.runtime.parallel.sharding import local, local_slice
from minirlhf.training.host_copies import HostCopies

Slices = list[tuple[int, int, str]]  # (first row, row after the last, file)


def differs_between_ranks(tensors: dict[str, Tensor]) -> bool:
    """True on every rank if a rank holds other rows or other tensors than rank 0. All ranks must call it."""
    held = {name: local_slice(tensor) for name, tensor in tensors.items()}
    mine = [any(isinstance(tensor, DTensor) for tensor in tensors.values()), sorted(held)]
    everywhere = gather(mine)
    return any(each[0] or each[1] != everywhere[0][1] for each in everywhere)


def own_slices(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose local rows this rank writes: of equal slices, the lowest rank writes its copy.

    All ranks must call it.
    """
    held = {name: list(local_slice(tensor)) for name, tensor in tensors.items()}
    earlier = gather(held)[: rank()]
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not any(other.get(name) == held[name] for other in earlier)
        and (held[name][0] < held[name][1] or tensor.numel() == 0)
    }


# Write


def write_shard(
    folder: Path,
    number: int,
    world: int,
    slices: dict[str, tuple[tuple[int, int], list[int], Tensor]],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the shard of one rank, then its receipt.

    slices: name -> (rows, whole shape, the rows on the host).   check: raises an error for rows that must not be
    written. Rank 0 finds the text of any error in the receipt.
    """
    path = folder / f"shard-{number:05d}-of-{world:05d}.safetensors"
    receipt: dict[str, Any] = {}
    try:
        check()
        save_file({name: tensor.contiguous() for name, (_, _, tensor) in slices.items()}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        for name, (rows, shape, tensor) in slices.items():
            entry = {"shape": list(shape), "dtype": str(tensor.dtype).removeprefix("torch."), "rows": list(rows)}
            receipt[name] = entry
    except Exception as error:
        receipt = {"": f"{type(error).__name__}: {error}"}
        if isinstance(error, OSError | SafetensorError):
            raise InputError(f"{path}: rank {number} cannot write its shard ({error})") from None
        raise
    finally:
        part = folder / f".{path.stem}.part"
        part.write_text(json.dumps(receipt), encoding="utf-8")
        part.rename(folder / f"{path.stem}.receipt")


def wait_for(ready: Callable[[], bool], what: str, seconds: float) -> None:
    """Look at the shared folder until `ready`.   Raises: InputError after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise InputError(f"{what}: waited {seconds:g} s; is the folder on a disk that all nodes share?")
        time.sleep(0.02)


def collected(folder: Path, world: int, seconds: float) -> dict[str, Any]:
    """Wait for the shards of all ranks -> the key "tensors" of the manifest. The receipts are deleted."""
    tensors: dict[str, Any] = {}
    for number in range(world):
        stem = f"shard-{number:05d}-of-{world:05d}"
        receipt = folder / f"{stem}.receipt"
        wait_for(receipt.exists, f"{folder}: needed the shard of rank {number}", seconds)
        entries = json.loads(receipt.read_text(encoding="utf-8"))
        if "" in entries:
            raise InputError(f"{folder}: rank {number} could not write its shard ({entries['']})")
        for name, entry in entries.items():
            found = tensors.setdefault(name, {"shape": entry["shape"], "dtype": entry["dtype"], "slices": []})
            found["slices"].append([*entry["rows"], f"{stem}.safetensors"])
        receipt.unlink()
    for name, entry in tensors.items():
        check_slices(folder, name, entry["shape"], entry["slices"])
    return tensors


def on_host(
    tensors: dict[str, Tensor], copies: HostCopies | None = None
) -> dict[str, tuple[tuple[int, int], list[int], Tensor]]:
    """name -> (rows, whole shape, the local rows on the host). With `copies`, later updates do not change the rows."""
    rows = {name: local(tensor) for name, tensor in tensors.items()}
    rows = copies.of_tensors(rows) if copies else {name: tensor.cpu() for name, tensor in rows.items()}
    return {name: (local_slice(tensor), list(tensor.shape), rows[name]) for name, tensor in tensors.items()}


# Read


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the files of a folder. Its rows are read on demand."""

    folder: Path
    name: str
    shape: tuple[int, ...]
    slices: Slices  # sorted; together they hold every row

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows [start, stop), assembled from all files that hold some of these rows."""
        parts = []
        for first, last, file in self.slices:
            low, high = max(start, first), min(stop, last)
            if low < high or not parts and start == stop:
                with safe_open(self.folder / file, framework="pt") as opened:
                    if not self.shape:
                        return opened.get_tensor(self.name)
                    parts.append(opened.get_slice(self.name)[max(0, low - first) : max(0, high - first)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self) -> Tensor:
        return self.rows(0, self.shape[0] if self.shape else 1)

    def like(self, target: Tensor) -> Tensor:
        """The rows that this rank holds of `target`, placed as `target` is.   Raises: InputError for another shape."""
        if self.shape not in ((), tuple(target.shape)):
            raise InputError(
                f"{self.folder}: {self.name} has the shape {list(self.shape)}, but this model needs "
                f"{list(target.shape)}; it is a checkpoint of another model"
            )
        if not self.shape or not isinstance(target, DTensor):
            return self.whole().to(target.device)
        rows = self.rows(*local_slice(target)).to(target.to_local().device)
        options = {"run_check": False, "shape": target.shape, "stride": target.stride()}
        return DTensor.from_local(rows, target.device_mesh, target.placements, **options)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint in shards; empty for another folder.   Raises: InputError if the slices have gaps."""
    found = {}
    try:
        for name, entry in read_manifest(folder).get("tensors", {}).items():
            check_slices(folder, name, entry["shape"], entry["slices"])
            slices = sorted((int(first), int(last), str(file)) for first, last, file in entry["slices"])
            found[name] = StoredTensor(folder, name, tuple(entry["shape"]), slices)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder}: needed a manifest that lists slices of tensors, got: {shown(error)}") from None
    return found


def tensors_of_file(folder: Path, file: str) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, as a shard that holds all rows."""
    with safe_open(folder / file, framework="pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return {name: StoredTensor(folder, name, s, [(0, s[0] if s else 1, file)]) for name, s in shapes.items()}


def check_slices(folder: Path, name: str, shape: list[int], slices: list) -> None:
    """Raise InputError unless the slices hold every row of the tensor exactly once."""
    at = 0
    for first, last, _ in sorted(slices):
        if first != at:
            break
        at = last
    rows = shape[0] if shape else 1
    if at != rows or not slices:
        raise InputError(f"{folder}: needed all {rows} rows of {name}, found the slices {shown(sorted(slices))}")
