"""Run Python code that a policy wrote, in a child process with limits: for rewards by unit tests, and as a tool.

The limits hold against mistakes: endless loops, fork bombs, gigabytes, deleted files, calls to the network. They are no
wall against an attack on the kernel. The code reads each file that you may read, and it can use devices, such as a GPU,
and named pipes. For code that may mean harm, use a virtual machine.
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
    may keep the processor busy, `megabytes` of memory for each process, files of at most 16 MB, and a temporary folder,
    which is deleted. Numerical libraries use one thread. Hashes are the same in each run, so a program that prints a
    set prints the same text. Addresses are too, except where the machine refuses it, as Docker does.

    Args:
        output_bytes: the stdout and stderr that are returned; the rest of stdout, and the beginning of stderr, are cut.
        isolated: without network, without Unix sockets that have a name, with a /proc of its own processes alone, with
            all files read-only except in the temporary folder, and with at most 32 processes and threads together.
            False: the limits above only, so the code may send, delete and start all that you may.
    Raises: InputError if a step before the program fails, so that no fault of the machine looks like the program's.
        Linux 5.14 can isolate on x86_64 and aarch64, where namespaces are allowed.
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
        report.write(b"the child process ended before the program")  # emptied by the child when the program starts
        report.flush()
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
        stdout, stderr = (_text(file, folder) for file in (out, err))
        timed_out = status == -signal.SIGXCPU
        report.seek(0)
        if (reason := report.read().decode()) and not timed_out:
            raise InputError(_refusal(isolated, reason))
        error = f"ran longer than {seconds:g} s" if timed_out else _reason(status, _decoded(stderr[-output_bytes:]))
        return Result(_decoded(stdout[:output_bytes]), error, timed_out)


@functools.cache
def check_isolation() -> None:
    """Raise InputError if the machine cannot isolate a program, or its Python does not run so; before a long job."""
    if error := run_python("", seconds=60).error:
        raise InputError(
            f"run_python: needed a Python that runs the empty program when it is isolated, got {shown(error[-200:])}; "
            f"all users must be able to read {sys.executable} and its packages"
        )


def _refusal(isolated: bool, reason: str) -> str:
    needed, remedy = "a machine that lets a process limit itself", "raise the limits of this process (ulimit)"
    if isolated:
        needed = "a machine that lets a process shut itself in"
        remedy = (
            "allow namespaces of users (sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a container with "
            "CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH), or allow code that can use the network and your files: "
            "isolated=False"
        )
    return f"run_python: needed {needed}, got {shown(reason)}; {remedy}"


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
