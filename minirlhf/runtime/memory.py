"""Free memory: of a machine, of a container, of a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def free_memory(device: torch.device) -> int:
    """Bytes that a job can still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(filter(None, (_limit(), _available())), default=sys.maxsize)


def share_of_process(device: torch.device) -> int:
    """Bytes that this process may still take: of its GPU, or its part of the machine's memory."""
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free_memory(device) // processes


def in_words(size: float) -> str:
    """A number of bytes, as people write it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


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
