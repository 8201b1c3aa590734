"""Tests import the module `tiny` beside this file. Two processes train its cases once for all tests."""

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def two_processes(forks, tmp_path_factory):
    """The folder with weights and metrics of two gloo processes (CASE-RANK.safetensors, .json) and their exit codes.

    The workers of pytest-xdist share it: the first worker that needs it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks_of_all_workers"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "codes.json").exists():
            folder.mkdir()
            train_as_ranks(forks, folder)
    return folder


@pytest.fixture(scope="session")
def all_cases(forks, tmp_path_factory):
    """As `two_processes`, with every case, also in slices."""
    import tiny

    every = ",".join(tiny.CASES)
    return train_as_ranks(forks, tmp_path_factory.mktemp("ranks"), COPIED=every, SHARDED=every, FEW=every)


def train_as_ranks(forks, folder, **variables):
    done = forks.ranks(HERE / "tiny.py", "ranks", folder, **variables)
    (folder / "codes.json").write_text(json.dumps([process.returncode for process in done]))
    (folder / "errors.txt").write_text("".join(process.stderr for process in done))
    return folder
