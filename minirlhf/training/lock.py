"""A lock on a folder: while one job writes into it, no other job does.

It is a lock of the system (flock) on the file `.lock`. The system releases it when the process ends, however it ends,
so a killed job leaves a file that nobody has locked. Only the main process of a job holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.runtime.distributed import restarted, say

LOCK = ".lock"
PATIENCE = 60.0  # seconds that a job waits whose processes torchrun has restarted: the earlier ones may still be ending
NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)  # errors of file systems without flock

_held: dict[tuple[int, int], tuple[int, Path]] = {}  # (device, inode) of a lock file -> (open handle, path)
_told: list[Path] = []  # a folder that cannot be locked, once it was said


def lock(folder: Path) -> None:
    """Lock a folder for this process, until `unlocks` or the end of the process. The folder is made if it is absent.

    Parts of one job may lock it again in the same process.
    Raises: InputError with host and process if another process holds the lock.
    """
    path, deadline = folder / LOCK, time.monotonic() + (PATIENCE if restarted() else 0.0)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"{folder}: needed a folder that can be written, got: {error.strerror}; check it, or choose another"
            ) from None
        if _inode(os.fstat(handle)) in _held:
            return os.close(handle)
        if is_locked := _locks(handle, folder):
            with contextlib.suppress(OSError):
                if _inode(path.stat()) == _inode(os.fstat(handle)):  # else the holder has just deleted it
                    break
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        if not is_locked and time.monotonic() >= deadline:
            raise InputError(f"{folder}: in use by {holder}; wait until it ends, or choose another --output")
        time.sleep(0.05)
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[_inode(os.fstat(handle))] = handle, path


@contextlib.contextmanager
def unlocks(folder: Path) -> Iterator[None]:
    """At the end of the block the folder is unlocked, if this process holds its lock."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            _unlock(_inode((folder / LOCK).stat()))


@contextlib.contextmanager
def unlocked_at_end() -> Iterator[None]:
    """At the end of the block this process releases all locks that it took inside."""
    before = set(_held)
    try:
        yield
    finally:
        for key in _held.keys() - before:
            _unlock(key)


def _unlock(key: tuple[int, int]) -> None:
    handle, path = _held.pop(key, (None, None))
    if handle is not None:
        with contextlib.suppress(OSError):
            if _inode(path.stat()) == key:  # the folder may be another one by now
                path.unlink()
        os.close(handle)


def _locks(handle: int, folder: Path) -> bool:
    """True if this process has the lock now, or if the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        if not _told:
            say(f"{folder}: this file system has no locks, so two jobs in one folder would not notice each other")
            _told.append(folder)
    return True


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _forget() -> None:
    """A fork shares the handles of its parent, and would hold the locks of a killed parent."""
    while _held:
        os.close(_held.popitem()[1][0])


os.register_at_fork(after_in_child=_forget)
