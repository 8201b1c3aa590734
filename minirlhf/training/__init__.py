"""The parts that every algorithm shares: the run, the optimizer, checkpoints, metrics, settings."""

import importlib
from typing import Any

# Names are loaded on first use: a program that reads run folders needs the names of metrics, but no torch.
NAMES = {
    "minirlhf.training.optimizer": "Optimizer OptimizerConfig",
    "minirlhf.training.run": "ADAPTER Run RunConfig RunSettings finished_model",
    "minirlhf.training.settings": "parse_settings with_defaults",
    "minirlhf.training.vocabulary": "METRICS",
}


def __getattr__(name: str) -> Any:
    for module, names in NAMES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(NAMES.values()).split()])
