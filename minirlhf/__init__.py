"""minirlhf: RLHF for language models in pure PyTorch, small enough to read and fast enough to use.

`import minirlhf` loads nothing; each name below arrives with its module on first use.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_ROOMS = ("losses", "runtime", "model", "adapters", "pretrained", "text", "data", "generation", "rewards", "rollout",
          "environments", "training", "algorithms", "tasks", "evaluation", "seeing", "jobs", "extras",
          "cli")  # fmt: skip


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"minirlhf.{name}")
    raise AttributeError(f"module 'minirlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
