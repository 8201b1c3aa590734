"""Python programs in forks of one process that has imported torch, because a new interpreter takes seconds to do so.

The process computes nothing and imports nothing of minirlhf, so that each fork begins like a new interpreter. It reads
commands from its stdin and writes their exit codes to its stdout, one line of JSON each. `Forks` starts it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path


def free_port() -> int:
    """A port below the range from which the system gives ports to connections of other tests that run now."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # a test may have seeded the module's own generator
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Forks:
    """Use it as a context manager: the process ends with the context. It starts with the first program."""

    server: subprocess.Popen | None = None

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        if self.server:
            self.server.communicate()

    def run(self, *commands: list, seconds: float = 600, env: list[dict] | None = None) -> list:
        """Run programs side by side, each as `python` would: [FILE, *arguments] or ["-c", CODE, *arguments].

        env: for each command, variables of its environment beside those of this process.
        Returns: subprocess.CompletedProcess of each.   Raises: TimeoutError if a program runs longer; all are killed.
        """
        if self.server is None:
            command = [sys.executable, __file__]
            self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with tempfile.TemporaryDirectory() as folder:
            files = [[str(Path(folder, f"{i}.{name}")) for name in ("out", "err")] for i in range(len(commands))]
            programs = [
                {"argv": [*map(str, argv)], "env": os.environ | more, "cwd": os.getcwd(), "out": out, "err": err}
                for argv, more, (out, err) in zip(commands, env or [{}] * len(commands), files, strict=True)
            ]
            self.server.stdin.write(json.dumps({"programs": programs, "seconds": seconds}) + "\n")
            self.server.stdin.flush()
            codes = json.loads(self.server.stdout.readline())
            texts = [[Path(file).read_text(encoding="utf-8", errors="replace") for file in pair] for pair in files]
        if None in codes:
            raise TimeoutError(f"{commands}: not ended after {seconds} s, exit codes {codes}, output {texts}")
        return [
            subprocess.CompletedProcess(argv, code, *pair)
            for argv, code, pair in zip(commands, codes, texts, strict=True)
        ]

    def ranks(self, *argv: object, world: int = 2, seconds: float = 600, **variables: str) -> list:
        """Run one program in `world` processes that find each other as under torchrun -> as `run`."""
        same = {**variables, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return self.run(*[[*argv]] * world, seconds=seconds, env=[{**same, "RANK": str(i)} for i in range(world)])


def serve() -> dict | None:
    """Start the programs of each line of stdin -> in a fork, its program; in the server, None at the end of stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for program in request["programs"]:
            if not (pid := os.fork()):
                return program
            pids.append(pid)
        print(json.dumps(codes_of(pids, time.monotonic() + request["seconds"])), flush=True)
    return None


def codes_of(pids: list[int], end: float) -> list[int | None]:
    """Exit codes; a negative code is a signal, None a process that was killed here because it ran too long."""
    codes = {}
    while len(codes) < len(pids):
        if late := time.monotonic() > end:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if found:
                codes[pid] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def become(program: dict) -> None:
    """Go on as a new interpreter that runs this program."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(program[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(program["env"])
    os.chdir(program["cwd"])
    sys.argv = program["argv"]
    code, folder = (sys.argv.pop(1), "") if sys.argv[0] == "-c" else (None, str(Path(sys.argv[0]).parent))
    sys.path[0] = folder
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if code is None:
        main.__file__ = sys.argv[0]
        code = Path(main.__file__).read_text(encoding="utf-8")
    exec(compile(code, getattr(main, "__file__", "<string>"), "exec"), main.__dict__)


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401  (an optimizer loads it)

    gc.freeze()  # a fork that looks for garbage copies no page of these objects
    if mine := serve():
        become(mine)
