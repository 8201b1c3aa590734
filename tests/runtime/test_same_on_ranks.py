"""Processes that begin with other settings, files or code end with one line, and none of them waits."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scaling"))

import ranks

from minirlhf.errors import InputError
from minirlhf.jobs.inputs import fingerprints
from minirlhf.runtime import same_on_ranks
from minirlhf.runtime.distributed import process_group, rank


def told(folder, act):
    """Do `act` in two processes -> the InputError of each."""
    for code in ranks.wait(ranks.fork(2, _run, folder, act), 60):
        assert code == 0
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


def _run(folder, act):
    with process_group(torch.device("cpu")):
        try:
            act()
            error = None
        except InputError as caught:
            error = str(caught)
        (folder / f"{rank()}.json").write_text(json.dumps(error))


def check(**settings):
    return same_on_ranks.check_same_settings_on_ranks(settings)


def other_code():
    if rank():
        same_on_ranks.platform = SimpleNamespace(python_version=lambda: "2.7.18")
    check()


def other_files():
    os.chdir(f"rank-{rank()}")
    fingerprints({"job": SimpleNamespace(data="same.jsonl,rows.jsonl")})


CASES = {
    "the same": (lambda: check(seed=1, device=f"cuda:{rank()}", **{"ppo.lr": 0.1}), None),
    "a setting": (lambda: check(seed=1, **{"ppo.lr": 0.1 + rank()}), "rank 1: ppo.lr is 1.1, but rank 0 has 0.1; "),
    "a flag": (lambda: check(**({"policy": "a"} if rank() else {})), "rank 1: policy is 'a', but rank 0 has not set; "),
    "code": (other_code, "rank 1: the version of Python is '2.7.18', but rank 0 has '3."),
    "data": (other_files, "rank 1: the content of rows.jsonl is 'sha256 "),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_difference_is_named_on_all_ranks(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        (tmp_path / f"rank-{number}").mkdir()
        (tmp_path / f"rank-{number}" / "same.jsonl").write_text('{"text": "a"}\n')
        (tmp_path / f"rank-{number}" / "rows.jsonl").write_text(f'{{"text": "{number}"}}\n')
    act, expected = CASES[case]
    first, second = told(tmp_path, act)
    assert first == second
    if expected is None:
        assert first is None
    else:
        assert first.startswith(expected)
        assert first.endswith("start all processes with the same settings, files and code")
