"""Words that a job keeps for its next start, if torchrun starts it again after a crash.

They are in the store that torchrun keeps during restarts. A job without torchrun, or whose store ends with rank 0, has
nowhere to keep them.
"""

from __future__ import annotations

import os

import torch.distributed as dist

from minirlhf.runtime.rendezvous import read_place, root_store, time_out


def remember(name: str, value: str) -> None:
    """Keep a value. Only the main process calls it."""
    if (store := _store()) is not None:
        store.set(name, value)


def recall(name: str) -> str | None:
    """The value that an earlier start of this job kept, or None. Only the main process calls it."""
    store = _store()
    return store.get(name).decode() if store is not None and store.check([name]) else None


def _store() -> dist.Store | None:
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("MASTER_PORT") != "0"
    if job is None or not kept:
        return None
    return dist.PrefixStore(f"minirlhf/remembered/{job}", root_store(read_place(), time_out()))
