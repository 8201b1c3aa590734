"""The end after an error: the error of one process is shown once, and it ends all processes.

A process that fails first writes its error into the store. The others notice that it has left them: a collective fails.
They read the error in the store and end without a message of their own. If nobody wrote an error, a process was killed,
is stopped or hangs: the first process that notices names the ranks that gave no sign.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from minirlhf.errors import InputError
from minirlhf.torchrun import leave_together

GRACE = 3.0  # seconds in which all living processes notice that a collective has failed

step: Callable[[], str] | None = None  # the work of this process, such as "runs/a/ppo, step 7"; a run sets it


def where() -> str:
    return (step and step()) or "outside of a run"


def end_all(store: dist.Store, rank: int, ranks: int, error: Exception, seconds: float) -> None:
    """Tell the other processes of the error. Return if this process must show it; else end this process here.

    Raises: SystemExit if another process shows the error, or if other processes caused it.
    """
    lost = is_lost(error)
    if isinstance(error, InputError) and step and step() and "step" not in str(error):
        error.args = (f"{where()}: {error}",)
    mine = {"lost": lost, "code": 2 if isinstance(error, InputError) else 1, "text": _text(error)}
    try:
        store.set_timeout(timedelta(seconds=GRACE))
        store.set(f"end/{rank}", json.dumps(mine))
        if not lost:
            if _is_first(store, mine["text"], rank):
                error.add_note(f"[rank {rank}] {where()}")
                _leave_after_traceback(mine)
                return
            cause = mine
        else:
            _ignore_sigterm()
            cause, missing = _cause(store, rank, ranks)
            if cause is None and _is_first(store, "lost", rank):
                print(f"[rank {rank}] error: {_lost(missing, error, seconds)}", file=sys.stderr, flush=True)
    except dist.DistError:  # the store ended with the process or the machine that kept it
        print(f"[rank {rank}] error: {where()}: rank 0 or its torchrun ended", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    if cause:
        _leave(cause)
    raise SystemExit(cause["code"] if cause else 1)


def _text(error: Exception) -> str:
    """The last line of the error. All processes that end because of it know it by this text."""
    return f"error: {error}" if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _leave(cause: dict) -> None:
    leave_together(cause["text"], restart=cause["code"] == 1)


def _leave_after_traceback(cause: dict) -> None:
    """Let this process leave with the others once Python has printed the traceback of the error."""

    def show(*error) -> None:
        sys.__excepthook__(*error)
        _leave(cause)

    sys.excepthook = show


def is_lost(error: BaseException) -> bool:
    """True if the error began in a collective that another process has left."""
    while error.__context__ is not None and not error.__suppress_context__ or error.__cause__ is not None:
        error = error.__cause__ or error.__context__
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def _ignore_sigterm() -> None:
    """torchrun ends all processes as soon as it sees one end; the message needs a moment more."""
    with contextlib.suppress(ValueError):  # outside the main thread Python forbids new handlers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_first(store: dist.Store, text: str, rank: int) -> bool:
    """True on one of the processes that end with this text."""
    key = f"shown/{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"
    return store.compare_set(key, "", str(rank)).decode() == str(rank)


def _cause(store: dist.Store, rank: int, ranks: int) -> tuple[dict | None, list[int]]:
    """-> (the error that another process wrote or None, the ranks that wrote nothing)."""
    deadline = time.monotonic() + GRACE
    while True:
        ended = [other for other in range(ranks) if store.check([f"end/{other}"])]
        written = {other: json.loads(store.get(f"end/{other}")) for other in ended}
        for other in written.values():
            if not other["lost"]:
                return other, []
        if len(written) == ranks or time.monotonic() > deadline:
            return None, [other for other in range(ranks) if other not in written]
        time.sleep(0.05)


def _lost(missing: list[int], error: Exception, seconds: float) -> str:
    """The message about processes that gave no sign."""
    if not missing:
        return f"{where()}: the connection between the processes broke: {str(error)[:120]}"
    names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    if "imed out" in str(error):
        reason = f"did not arrive within {seconds:g} seconds: stopped, or hanging"
        remedy = "if the work only needs longer, set MINIRLHF_TIMEOUT to more seconds"
    else:
        reason, remedy = "ended without a message: killed", "look for a lack of memory"
    return f"{where()}: {names} {reason}; {remedy}; go on from the last checkpoint with --resume"
