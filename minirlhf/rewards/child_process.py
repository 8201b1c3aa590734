"""Run Python code that a policy wrote, in a child process with limits: for rewards by unit tests, and as a tool.

The limits hold against mistakes: endless loops, fork bombs, gigabytes, deleted files, calls to the network. They are no
wall against an attack on the kernel, and the code reads each file that you may read. For code that may mean harm, use
a virtual machine.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

from minirlhf.errors import InputError, shown

START = Path(__file__).with_name("child_start.py")


class Result(NamedTuple):
    """The end of a program: its output, and why it failed.

    error: "" if the program ended with exit code 0. Else the text that it wrote to stderr, or one sentence.
    """

    stdout: str
    error: str = ""
    timed_out: bool = False


def run_python(
    code: str,
    *,
    stdin: str = "",
    seconds: float = 5.0,
    megabytes: int = 256,
    output_bytes: int = 10_000,
    isolated: bool = True,
) -> Result:
    """Run a program with this Python and its packages, without environment variables and without folders of the user.

    The program has `seconds` of processor time (rounded up), four times as long by the clock because other programs
    may keep the processor busy, `megabytes` of memory for each process, files of at most 16 MB, 32 processes, and a
    temporary folder, which is deleted. Its hashes and its addresses are the same in each run, so a program that prints
    a set or an object prints the same text.

    Args:
        output_bytes: the stdout and stderr that are returned; the rest of stdout, and the beginning of stderr, are cut.
        isolated: without network, without a sight of other processes, and with all files read-only, except in the
            temporary folder. False: the limits above only, so the code may send and delete all that you may.
    Raises: InputError if the machine cannot isolate (Linux 5.12 can, where namespaces are allowed).
    """
    if not (0 < seconds < math.inf and megabytes >= 1 and output_bytes >= 1):
        got = f"{seconds}, {megabytes} and {output_bytes}"
        raise InputError(f"run_python: needed seconds, megabytes and output_bytes above 0, got {got}")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        given, out, err, report = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        Path(folder, "program.py").write_text(code, encoding="utf-8", errors="replace")
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        numbers = (report.fileno(), int(isolated), math.ceil(seconds), math.ceil(megabytes))
        command = [sys.executable, "-I", "-S", str(START), folder, *map(str, numbers)]
        child = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, env={}, pass_fds=[report.fileno()], start_new_session=True
        )
        try:
            status = child.wait(timeout=4 * seconds)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        report.seek(0)
        if reason := report.read().decode():
            raise InputError(
                f"run_python: needed a machine that lets a process shut itself in, got {shown(reason)}; allow "
                "namespaces of users (sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a container with "
                "CAP_SYS_ADMIN), or allow code that can use the network and your files: isolated=False"
            )
        stdout, stderr = (_text(file, folder) for file in (out, err))
        timed_out = status == -signal.SIGXCPU
        error = f"ran longer than {seconds:g} s" if timed_out else _reason(status, _decoded(stderr[-output_bytes:]))
        return Result(_decoded(stdout[:output_bytes]), error, timed_out)


@functools.cache
def check_isolation() -> None:
    """Raise InputError if the machine cannot isolate a program; for use before a long job."""
    run_python("")


def _reason(status: int, written: str) -> str:
    if status >= 0:
        return (written.strip() or f"ended with exit code {status}") if status else ""
    return f"{written.strip()}\nkilled by {signal.Signals(-status).name}".strip()


def _text(file: IO[bytes], folder: str) -> bytes:
    """All that a program wrote, without the name of its temporary folder, which differs from run to run."""
    file.seek(0)
    return file.read().replace(f"{folder}/".encode(), b"")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")
