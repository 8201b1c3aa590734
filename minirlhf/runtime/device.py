"""The device, the precision, and the session that a program runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from minirlhf.errors import InputError, shown
from minirlhf.runtime import distributed
from minirlhf.runtime.randomness import seed_everything

SMALL_MODEL = 1_000_000  # parameters; a smaller model trains faster on one thread, and in fp32


def resolve_device(name: str = "auto") -> torch.device:
    """The named device. `auto` takes cuda, else mps, else cpu. Under torchrun, cuda is the GPU of the local rank.

    Raises: InputError if torch does not know the device or does not find it.
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
        raise InputError(f"device: needed auto, cpu, cuda, cuda:N or mps, got {shown(name)}") from None
    if missing:
        raise InputError(f"device: needed {name}, but torch does not find it here; use --device auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def resolve_precision(name: str, device: torch.device, parameters: int | None = None) -> torch.dtype:
    """fp32, bf16, or auto: bf16 for a model that is not small, on a device that has it, else fp32.

    parameters: of the model that is trained. None: none is trained, so a CPU stays in fp32, because decoding reads the
        weights token by token and gains nothing.
    Raises: InputError for another name.
    """
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = device.type == "cpu" and parameters is not None and cpu_has_bf16()
        small = parameters is not None and parameters < SMALL_MODEL
        name = "bf16" if (on_gpu or on_cpu) and not small else "fp32"
    if name not in names:
        raise InputError(f"precision: needed fp32, bf16 or auto, got {shown(name)}")
    return names[name]


def cpu_has_bf16() -> bool:
    """True if the processor has instructions for products in bf16; without them, bf16 is slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def session(
    *,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    parameters: int | None = None,
) -> Iterator[torch.device]:
    """Set up device, process group, seed, precision and CPU threads, under torchrun or plain python; yield the device.

    bf16 means autocast over fp32 weights. It is entered here once, so sampling, scoring and training use the same
    precision.   parameters: of the model that is trained, see `resolve_precision`.
    """
    chosen = resolve_device(device)
    dtype = resolve_precision(precision, chosen, parameters)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if threads:
        torch.set_num_threads(threads)
    seed_everything(seed)
    # the cache of cast weights would outlive an optimizer step, so it is off
    autocast = torch.autocast(chosen.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with distributed.process_group(chosen), autocast:
        yield chosen
