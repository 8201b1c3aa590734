"""Tests import the module `tiny` beside this file. Two processes train all its cases once for all tests."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """The folder with weights and metrics of two gloo processes (CASE-RANK.safetensors, .json) and their exit codes.

    The workers of pytest-xdist share it: the first worker that needs it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks_of_all_workers"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "codes.json").exists():
            folder.mkdir()
            ranks(folder)
    return folder


@pytest.fixture(scope="session")
def all_sharded(tmp_path_factory):
    """As `two_processes`, with every case in slices whose models have a base each."""
    import tiny

    cases = [case for case in tiny.CASES if case not in ("ppo_adapters", "ppo_4_bits")]
    return ranks(tmp_path_factory.mktemp("ranks"), SHARDED=",".join(cases), FEW=",".join(tiny.CASES))


def ranks(folder, **variables):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, **variables, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(HERE / "tiny.py"), "ranks", str(folder)]
    processes = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(2)]
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    (folder / "codes.json").write_text(json.dumps(codes))
    return folder
