"""Which device, which precision, and the session a program runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from minirlhf.errors import InputError
from minirlhf.runtime import distributed
from minirlhf.runtime.randomness import seed_everything


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps, then cpu; under torchrun each process takes the GPU of its local rank.

    Raises: InputError if the device asked for is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    missing = (name.startswith("cuda") and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except RuntimeError:
        raise InputError(f"device: needed auto, cpu, cuda, cuda:N or mps, got {name!r}") from None
    if missing:
        raise InputError(f"device: {name} was asked for, but torch sees none here; use --device auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere. Raises: InputError for any other name."""
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in names:
        raise InputError(f"precision: needed fp32, bf16 or auto, got {name!r}")
    return names[name]


@contextlib.contextmanager
def session(
    *, device: str = "auto", precision: str = "auto", seed: int = 0, threads: int | None = None
) -> Iterator[torch.device]:
    """Everything a program sets up once, under torchrun or plain python alike: device, process group, seed, precision,
    CPU threads.

    bf16 is autocast over fp32 weights, entered here once, so that sampling, scoring and training cannot differ in it.
    """
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if threads:
        torch.set_num_threads(threads)
    seed_everything(seed)
    # the cache of casted weights would outlive an optimizer step, so it stays off
    autocast = torch.autocast(where.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with distributed.process_group(where), autocast:
        yield where
