"""Calls of user code beside the engine, with a time-out."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

THREADS = 16  # calls at a time: more child processes of tools would only wait for one another


class Threads:
    """A few daemon threads that begin calls in order. A call that hangs cannot keep the program from ending.

    seconds: that a call may take from its beginning; the time before, in the queue, does not count.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, 0
        self.calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()
        self.began: dict[Future, float] = {}  # calls in progress

    def submit(self, call: Callable[[], Any]) -> Future:
        future: Future = Future()
        self.calls.put((future, call))
        if self.started < THREADS:
            self.started += 1
            threading.Thread(target=self._work, daemon=True, name="environment").start()
        return future

    def wait(self, future: Future) -> Any:
        """The result of a call, or its error.   Raises: TimeoutError if this call or an earlier one takes too long."""
        while not future.done():
            ends = [began + self.seconds for began in [*self.began.values()]]
            now = time.monotonic()
            if ends and min(ends) < now:
                raise TimeoutError
            concurrent.futures.wait([future], min(ends, default=now + 1) - now)
        return future.result()

    def _work(self) -> None:
        while True:
            future, call = self.calls.get()
            self.began[future] = time.monotonic()
            try:
                future.set_result(call())
            except BaseException as error:  # the thread that waits raises it
                future.set_exception(error)
            finally:
                del self.began[future]
