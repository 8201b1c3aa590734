"""Rows: reading, checking, converting, splitting, encoding, batching."""

import importlib
from typing import Any

from minirlhf.data.batches import Batches, Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import Encoded, EncodedRow, encode_rows

# Names of leaves: their files are loaded on first use, so that the core does not need them.
LEAVES = {"minirlhf.data.formats": "Dataset read_rows"}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
