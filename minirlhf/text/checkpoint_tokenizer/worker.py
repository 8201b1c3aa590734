"""A child process that renders a stranger's template. This file has both ends of the pipe.

The sandbox alone bounds neither time nor memory: a single expression can build a string of 10 GB or a number of 100
million digits, and a list of all dangerous expressions would never be complete. The operating system bounds each render
of the child. A timer of processor time kills the child. An allocation beyond the limit of address space fails. The
parent kills a child that gives no answer, because a stopped process uses no processor time. A render in the child takes
about 0.1 ms longer than a render in this process.

The parent writes lines of JSON: first [source, trials], then a conversation in each line. The child answers every line
with a line of JSON; see `sandbox.reply`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import NamedTuple

PATIENCE = 30  # seconds for each second of processor time


class Limits(NamedTuple):
    """Bounds of a render. They grow with the conversation, so that no honest template reaches them."""

    seconds: float  # of processor time
    patience: float  # seconds until the answer; so many more that a busy machine refuses no honest template
    memory: int  # bytes of address space
    characters: int  # of output


def limits_for(size: int) -> Limits:
    """size: characters of the conversation as JSON."""
    seconds = 1 + size / 1e6
    return Limits(seconds, PATIENCE * seconds, memory=(1 << 29) + 64 * size, characters=10**6 + 20 * size)


class Worker:
    """Renders conversations with one template in a child process.

    A template that went beyond a limit is not run again: every later conversation gets the first fault at once.
    """

    def __init__(self, source: str, trials: list[dict]) -> None:
        """trials: conversations that a new child renders first. The template may refuse them, but must do no harm."""
        self.first_line = json.dumps([source, trials])
        self.fault: str | None = None
        self.process: subprocess.Popen | None = None
        self.pid = 0

    def start(self) -> str | None:
        """Compile the template in a new child and try it -> the template's fault, or None."""
        program = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C in the terminal must not reach the child; it ends when its parent ends
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # a stopped child does not empty a full pipe
        self.pid = os.getpid()
        self.stop = weakref.finalize(self, _stop, self.process)
        return self._ask(self.first_line).get("fault")

    def reply(self, data_json: str) -> dict:
        """Render one conversation; see `sandbox.reply`."""
        # A fork of this process needs its own child: two processes must not write into one pipe.
        if self.fault is None and (self.process is None or self.pid != os.getpid()):
            self.start()
        return {"fault": self.fault} if self.fault else self._ask(data_json)

    def _ask(self, line: str) -> dict:
        limits = limits_for(len(line))
        try:
            answer = _exchange(self.process, line.encode() + b"\n", limits.patience)
        except BaseException:  # after an interrupt the next question must not read this answer
            self.process.kill()
            self.stop()
            self.process = None
            raise
        if answer is None:
            self.process.kill()
            reply = {
                "fault": f"its process gave no answer for {limits.patience:.0f} s: stopped, or the machine too busy"
            }
        else:
            reply = json.loads(answer) if answer.endswith(b"\n") else {"fault": self._cause_of_death(limits)}
        if "fault" in reply:
            self.fault = reply["fault"]
            self.stop()
        return reply

    def _cause_of_death(self, limits: Limits) -> str:
        errors = " ".join(self.process.stderr.read().decode(errors="replace").split())
        if self.process.wait() == -signal.SIGPROF:
            return f"it ran for more than {limits.seconds:.0f} s of processor time"
        return f"its process ended with {self.process.returncode}: {errors[-300:]}"


def _exchange(process: subprocess.Popen, question: bytes, patience: float) -> bytes | None:
    """Write a line to the child -> its answer, without a line end if the child ended; None after `patience` seconds."""
    source, sink, deadline = process.stdout.fileno(), process.stdin.fileno(), time.monotonic() + patience

    def ready(end: int, event: int) -> bool:
        poller = select.poll()
        poller.register(end, event)
        return bool(poller.poll(max(0.0, 1000 * (deadline - time.monotonic()))))

    unsent, answer = memoryview(question), b""
    while unsent:
        try:
            unsent = unsent[os.write(sink, unsent) :]
        except BlockingIOError:  # the pipe is full
            if not ready(sink, select.POLLOUT):
                return None
        except BrokenPipeError:  # the child died, and its output ends
            break
    while not answer.endswith(b"\n"):
        if not ready(source, select.POLLIN):
            return None
        if not (part := os.read(source, 1 << 16)):
            break
        answer += part
    return answer


def _stop(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):  # the child died before it read a question
            pipe.close()
    process.wait()


def serve() -> None:
    """The child's side of the pipe."""
    from minirlhf.text.checkpoint_tokenizer import sandbox

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template = None
    for line in sys.stdin:
        limits = limits_for(len(line))
        with _bounded(limits):
            try:
                request = json.loads(line)
                if template is None:
                    template, reply = sandbox.try_out(*request, limits.characters)
                else:
                    reply = sandbox.reply(template, request, limits.characters)
            except MemoryError:
                reply = {"fault": f"it needs more than {limits.memory >> 20} MiB"}
        print(json.dumps(reply), flush=True)


@contextlib.contextmanager
def _bounded(limits: Limits) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, hard))
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # SIGPROF kills this process, inside C code too
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
