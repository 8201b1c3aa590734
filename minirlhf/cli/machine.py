"""What a machine offers to a job: versions, devices, memory, compiler, disk. No network is used."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import torch

from minirlhf.errors import InputError
from minirlhf.runtime.compile import default_backend
from minirlhf.runtime.device import resolve_device, resolve_precision

PACKAGES = ("torch", "tokenizers", "safetensors", "numpy", "tqdm")
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def machine() -> dict[str, str]:
    """Facts about this machine, for a table."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    device = resolve_device("auto")
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_precision("auto", device)]
    return {
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "processor": f"{os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads",
        "GPUs": ", ".join(map(gpu, range(torch.cuda.device_count()))) or "none",
        "device auto": f"{device.type}, computes in {dtype}",
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


def in_words(size: float) -> str:
    """A number of bytes, as people write it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def check_device(device: torch.device) -> None:
    """Raise InputError if the device cannot multiply two small matrices."""
    try:
        with torch.no_grad():
            torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        raise InputError(f"device {device}: needed a device that computes, got: {error}; give --device cpu") from None


def free_memory(device: torch.device) -> int:
    """Bytes that a job can still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(filter(None, (_limit(), _available())), default=sys.maxsize)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _available() -> int:
    """Free memory as Linux counts it; the whole memory elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limit() -> int | None:
    """The memory that a container still allows; None without a limit."""
    for path in map(Path, LIMITS):
        try:
            used = path.with_name("memory.current" if path.name == "memory.max" else "memory.usage_in_bytes")
            return max(int(path.read_text()) - int(used.read_text()), 0)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
