"""The C library's memory of a process that trains on a CPU."""

from __future__ import annotations

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in malloc.h
LARGE, OLD_LIMIT = 2**30, 2**25  # bytes of a block that the system gives and takes back by itself; before glibc 2.35


@functools.cache
def keep_freed_memory() -> bool:
    """Freed memory stays with this process, for its next tensors. False where that cannot be set or the user set it.

    Each step of training asks for the memory that the step before freed. By default glibc gives it back to the system,
    which clears every page when it is used again.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    large = mallopt(MMAP_THRESHOLD, LARGE) or mallopt(MMAP_THRESHOLD, OLD_LIMIT)
    return bool(large and mallopt(TRIM_THRESHOLD, -1))  # -1: never
