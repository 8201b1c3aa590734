"""The processes meet: they find rank 0, agree on a fresh name space in its store, and join one process group.

torchrun keeps one store for all restarts of a job. A process of a restart would find the network addresses of killed
processes there. So the processes agree on a number that no earlier start has used, and write all further names below
this number. They also agree whether the start is a restart: each torchrun counts its own restarts, and counts none if
machines join or leave.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from minirlhf import torchrun
from minirlhf.errors import InputError, shown

TIMEOUT = "MINIRLHF_TIMEOUT"  # the environment variable with the seconds that a process waits for the others
SECONDS = 1800  # default; rank 0 may write the files of a large model while the others wait
POLL = 0.02  # seconds between two looks at the store


@dataclass(frozen=True)
class Place:
    """The place of this process among all processes, as the environment describes it."""

    rank: int
    ranks: int
    host: str  # of the store
    port: int

    @property
    def hosts_store(self) -> bool:
        """True if this process must start the store. torchrun has started it already."""
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group of all processes, and leave it at the end. An error of one process ends all of them."""
    from minirlhf.runtime import ending

    place, seconds = read_place(), time_out()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and not dist.is_nccl_available():
        raise InputError("several processes on GPUs need nccl, and this torch has none; use --device cpu, or one GPU")
    number = meet(root_store(place, seconds), place, seconds, device)
    store = dist.PrefixStore(f"minirlhf/{number}", root_store(place, seconds))
    options = {"rank": place.rank, "world_size": place.ranks, "timeout": timedelta(seconds=seconds)}
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), **options)
    try:
        yield
        dist.barrier()  # torchrun cannot start processes again that have ended well, so none ends before all have
    except Exception as error:
        ending.end_all(store, place.rank, place.ranks, error, seconds)
        raise
    finally:
        # A gloo thread may still hold tensors of the last collective, and it needs the interpreter lock to free them.
        # destroy_process_group() holds that lock while it waits for the thread, so an immediate call can hang.
        time.sleep(0.1)
        dist.destroy_process_group()


def read_place() -> Place:
    """The variables that torchrun sets for each process.   Raises: InputError if one of them is missing or wrong."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"environment: WORLD_SIZE is {shown(os.environ.get('WORLD_SIZE'))}, but {', '.join(missing)} "
            "must be set too; start the processes with torchrun, or unset WORLD_SIZE for one process"
        )
    rank, ranks, port = (whole(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not (0 <= rank < ranks and 0 < port < 2**16):
        raise InputError(
            f"environment: needed RANK below WORLD_SIZE and MASTER_PORT below 65536, got RANK {rank}, WORLD_SIZE "
            f"{ranks}, MASTER_PORT {port}; start the processes with torchrun"
        )
    return Place(rank, ranks, os.environ["MASTER_ADDR"], port)


def whole(name: str) -> int:
    """The whole number in a variable of the environment.   Raises: InputError if it holds something else."""
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"environment: {name} must be a whole number, got {shown(text)}; start with torchrun")
    return int(text)


def time_out() -> float:
    """Seconds that a process waits for the others.   Raises: InputError if MINIRLHF_TIMEOUT is not a number above 0."""
    text = os.environ.get(TIMEOUT) or str(SECONDS)
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e7:
            return float(text)
    raise InputError(f"environment: {TIMEOUT} must be a number of seconds above 0, got {shown(text)}")


@functools.cache  # a process that joins twice uses its first connection
def root_store(place: Place, seconds: float) -> dist.Store:
    """The store that all processes can reach. torchrun keeps it during restarts.

    Raises: InputError if its port is in use, or if rank 0 does not answer.
    """
    connecting = _Connecting(place, seconds)
    connecting.start()
    connecting.join(seconds + 1)  # torch waits without end for the answer of another program
    if connecting.store is not None:
        return connecting.store
    address = f"{place.host}:{place.port}"
    if place.hosts_store:
        reason = "is in use" if "EADDRINUSE" in connecting.error else f"cannot be opened ({connecting.error[:80]})"
        raise InputError(f"{address}: the port of rank 0 {reason}; set another MASTER_PORT")
    raise InputError(
        f"{address}: rank {place.rank} finds no rank 0 within {seconds:g} seconds ({connecting.error[:80]}); look at "
        "the output of rank 0, and check MASTER_ADDR, MASTER_PORT and the firewall"
    )


class _Connecting(threading.Thread):
    """Starts the store, or connects to it; then it has a `store` or an `error`."""

    def __init__(self, place: Place, seconds: float) -> None:
        super().__init__(daemon=True)
        self.place, self.seconds = place, seconds
        self.store: dist.Store | None = None
        self.error = "a program answers there that is no rank 0"

    def run(self) -> None:
        options = {"wait_for_workers": False, "multi_tenant": True, "timeout": timedelta(seconds=self.seconds)}
        try:
            if not self.place.hosts_store:
                _wait_for_port(self.place, self.seconds)
            self.store = dist.TCPStore(self.place.host, self.place.port, is_master=self.place.hosts_store, **options)
        except (dist.DistError, RuntimeError, ValueError, OSError) as error:
            self.error = str(error)


def _wait_for_port(place: Place, seconds: float) -> None:
    """Wait until a program listens at the port. torch itself would write its call stack while it waits."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((place.host, place.port), seconds).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(5 * POLL)


def meet(store: dist.Store, place: Place, seconds: float, device: torch.device) -> int:
    """Agree on the number of this start -> the number. No earlier start in this store has the same number.

    Each rank writes a random word, and rank 0 answers every word that it finds with the number. A word of a killed
    process gets an answer that nobody reads. A rank that reads the answer to its own word confirms it below the
    number. Rank 0 lets all ranks go when all have confirmed.

    Raises: InputError with the ranks that did not come in time, or with processes that share a GPU.
    """
    mine = {"host": socket.gethostname(), "device": str(device), "restarted": torchrun.restarted()}
    store = dist.PrefixStore("minirlhf", store)
    if place.rank == 0:
        number = store.add("starts", 1)
        known = [mine, *_welcome(store, place.ranks, number, time.monotonic() + seconds)]
        problem = _problem(known, seconds)
        restarted = any(each["restarted"] for each in known if each)
        store.set(f"{number}/go", json.dumps({"problem": problem, "restarted": restarted}))
    else:
        word = uuid.uuid4().hex
        store.set(f"word/{place.rank}", word)
        number = int(_wait(store, f"answer/{word}", seconds, place))
        store.set(f"{number}/here/{place.rank}", json.dumps(mine))
    go = json.loads(_wait(store, f"{number}/go", 2 * seconds, place))
    if go["problem"]:
        raise InputError(go["problem"])
    torchrun.settle(go["restarted"])
    return number


def _welcome(store: dist.Store, ranks: int, number: int, deadline: float) -> list[dict | None]:
    """Answer the words of all other ranks until each rank has confirmed, or until the deadline.

    -> for each other rank its description, None if the rank did not come.
    """
    here = [f"{number}/here/{rank}" for rank in range(1, ranks)]
    answered = set()
    while not store.check(here) and time.monotonic() < deadline:
        for rank in range(1, ranks):
            if store.check([f"word/{rank}"]) and (word := store.get(f"word/{rank}").decode()) not in answered:
                answered.add(word)
                store.set(f"answer/{word}", str(number))
        time.sleep(POLL)
    return [json.loads(store.get(name)) if store.check([name]) else None for name in here]


def _problem(known: list[dict | None], seconds: float) -> str:
    """The reason why the processes cannot work together, or an empty text."""
    missing = [str(rank) for rank, each in enumerate(known) if each is None]
    if missing:
        return (
            f"rank {', '.join(missing)} of {len(known)} did not start within {seconds:g} seconds ({TIMEOUT}); look at "
            "the output of these processes, and start as many as WORLD_SIZE says"
        )
    places = [(each["host"], each["device"]) for each in known]
    for rank, place in enumerate(places):
        first = places.index(place)
        if first != rank and place[1].startswith("cuda"):
            return f"ranks {first} and {rank} both use {place[1]} of {place[0]}; use --device cuda, a GPU for each rank"
    return ""


def _wait(store: dist.Store, name: str, seconds: float, place: Place) -> str:
    try:
        store.wait([name], timedelta(seconds=seconds))
        return store.get(name).decode()
    except dist.DistError:
        raise InputError(
            f"{place.host}:{place.port}: rank 0 gave no answer to rank {place.rank} within {seconds:g} seconds "
            f"({TIMEOUT}); look at the output of rank 0"
        ) from None
