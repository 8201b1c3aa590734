"""What a machine offers to a job: versions, devices, memory, compiler, disk. No network is used."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch

from minirlhf.errors import InputError
from minirlhf.runtime.compile import default_backend
from minirlhf.runtime.device import SMALL_MODEL, resolve_device, resolve_precision
from minirlhf.runtime.memory import free_memory, in_words

PACKAGES = ("torch", "tokenizers", "safetensors", "numpy", "tqdm")


def machine() -> dict[str, str]:
    """Facts about this machine, for a table."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    device = resolve_device("auto")
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_precision("auto", device, SMALL_MODEL)]
    return {
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "processor": f"{os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads",
        "GPUs": ", ".join(map(gpu, range(torch.cuda.device_count()))) or "none",
        "device auto": f"{device.type}, computes in {dtype}"
        + (" from a million parameters on" if dtype == "bf16" else ""),
        "memory": f"{in_words(free_memory(torch.device('cpu')))} free",
        "compiler": compiler(),
        "processes": ", ".join(
            name for name in ("gloo", "nccl") if getattr(torch.distributed, f"is_{name}_available")()
        ),
        "disk": f"{in_words(free_disk(Path()))} free in {Path().absolute()}",
    }


def gpu(number: int) -> str:
    facts = torch.cuda.get_device_properties(number)
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return f"{facts.name}, {in_words(facts.total_memory)}, {bf16}"


def compiler() -> str:
    """The compiler that `--compile` would use."""
    if torch.cuda.is_available():
        return default_backend()
    found = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return found or "none; --compile needs a C++ compiler"


def check_device(device: torch.device) -> None:
    """Raise InputError if the device cannot multiply two small matrices."""
    try:
        with torch.no_grad():
            torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        raise InputError(f"device {device}: needed a device that computes, got: {error}; give --device cpu") from None


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
