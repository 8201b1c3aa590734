"""Calls of user code beside the engine, with a time-out."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from minirlhf.rewards.calling import TookTooLong

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
            self._start()
        return future

    def wait(self, future: Future) -> Any:
        """The result of a call, or its error.   Raises: TookTooLong if the call takes too long."""
        while not future.done():
            next_end = self._give_up() + self.seconds
            concurrent.futures.wait([future], max(0.0, next_end - time.monotonic()))
        return future.result()

    def _give_up(self) -> float:
        """End the wait for each call that takes too long -> the time at which the oldest other call began.

        Its thread is lost, so a new thread takes its place. Who removes a call from `began` alone sets its result.
        """
        now = time.monotonic()
        for future, began in self.began.copy().items():
            if began + self.seconds < now and self.began.pop(future, None) is not None:
                future.set_exception(TookTooLong())
                self._start()
        return min(self.began.copy().values(), default=now)

    def _start(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="environment").start()

    def _work(self) -> None:
        while True:
            future, call = self.calls.get()
            self.began[future] = time.monotonic()
            try:
                settle = partial(future.set_result, call())
            except BaseException as error:  # the thread that waits raises it
                settle = partial(future.set_exception, error)
            if self.began.pop(future, None) is None:
                return  # the call was given up, and another thread has taken this thread's place
            settle()
