"""Embedded tasks that need no download, and tasks made from a user's rows."""

import importlib
from typing import Any

from minirlhf.tasks.task import Task, embedded_task

# Names of leaves: their files are loaded on first use, so that the core does not need them.
LEAVES = {"minirlhf.tasks.user_rows": "task_from_rows"}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
