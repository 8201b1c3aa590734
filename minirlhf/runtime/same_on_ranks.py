"""All processes must begin with the same settings, files and code: else they would train different models in silence,
or wait for one another until the time-out.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import torch

import minirlhf
from minirlhf.errors import InputError, shown
from minirlhf.runtime.distributed import gather, world_size

OWN = ("device", "threads", "log_level")  # settings that may differ between processes


def check_same(described: dict[str, object]) -> None:
    """Compare a description of this process, JSON values by name, with those of all others. All ranks call it.

    Raises: InputError on all ranks, with the first rank that differs from rank 0 and the first name in which it does.
    """
    first, *others = gather(described)
    for rank, theirs in enumerate(others, start=1):
        for name in dict.fromkeys([*first, *theirs]):
            if (a := first.get(name)) != (b := theirs.get(name)):
                raise InputError(
                    f"rank {rank}: {name} is {_value(b)}, but rank 0 has {_value(a)}; start all processes with the "
                    "same settings, files and code"
                )


def check_same_settings_on_ranks(settings: dict[str, object]) -> None:
    """`check_same` for settings by their full names, and for the code. Nothing is computed for a single process."""
    if world_size() > 1:
        kept = {name: value for name, value in settings.items() if name.rpartition(".")[2] not in OWN}
        check_same({**kept, **_code()})


def _code() -> dict[str, str]:
    """The versions of the code, and a checksum of this package's files."""
    found, package = hashlib.sha256(), Path(minirlhf.__file__).parent
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    versions = {"the version of Python": platform.python_version(), "the version of torch": torch.__version__}
    return {**versions, "the checksum of minirlhf's files": found.hexdigest()[:16]}


def _value(value: object) -> str:
    return "not set" if value is None else shown(value)
