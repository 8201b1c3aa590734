"""Sums, flags and values over two gloo processes; the same calls in one process without a group."""

import json

import pytest
import torch
from torch import nn

from minirlhf.runtime import distributed
from minirlhf.runtime.parallel.wrapping import gradient_sync
from minirlhf.runtime.vectors import gather_vectors

from ..forks import free_port

PROGRAM = """
import json, sys, torch
from minirlhf.runtime import distributed as d
from minirlhf.runtime.parallel.wrapping import gradient_sync
from minirlhf.runtime.sharing import in_order
from minirlhf.runtime.vectors import gather_vectors
torch.set_num_threads(1)
with d.process_group(torch.device("cpu")):
    rank = d.rank()
    x = torch.tensor([1.0 + rank, 10.0], requires_grad=True)
    total = d.all_sum(x)
    result = {"rank": rank, "world": d.world_size(), "main": d.is_main(), "sum": total.tolist(), "x": x.tolist()}
    result["sum_grad"] = total.requires_grad
    result["any"] = [d.any_rank(flag) for flag in (False, rank == 1, True)]
    value = {"text": "\\u00e9" * (1 + 9 * rank), "row": [rank, None, 1.5], "empty": []}
    result["gathered"] = d.gather(value)
    vectors = [torch.arange(3.0 * rank).half(), torch.zeros(0), torch.arange(3 - rank)]
    result["vectors"] = [[part.tolist() for part in gather_vectors(x)] for x in vectors]
    result["rows"] = [list(d.local_rows(range(n))) for n in (6, 5, 1)]
    result["in order"] = [in_order(d.local_rows([*range(n)])) for n in (6, 5, 1, 0)]
    # rank r holds rows r and 2 + r of y = w x; the loss is their sum over the global count of 4
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, float(rank))  # unequal: DDP copies the weights of rank 0
    wrapped, rows = d.wrap(layer), [1.0 + rank, 3.0 + rank]
    for i, row in enumerate(rows):
        with gradient_sync(wrapped, i == 1):
            d.backward(wrapped(torch.tensor([[row]])).sum() / 4)
        result.setdefault("grads", []).append(layer.weight.grad.item())
    result["weight"] = layer.weight.item()
    result["wrapped"] = type(wrapped).__name__
    d.barrier()
result["left"] = not torch.distributed.is_initialized()
print(json.dumps(result))
"""


LEAVING = """
import os, sys, torch
from minirlhf.runtime import distributed as d
torch.set_num_threads(1)
def train():
    with d.process_group(torch.device("cpu")):
        models = [d.wrap(torch.nn.Linear(64, 64)) for _ in range(2)]  # they outlive the group
        for _ in range(3):
            d.backward(sum(model(torch.randn(8, 64)).sum() for model in models))
            d.all_sum(torch.ones(10))
        d.barrier()
        d.all_sum(torch.ones(3))
for port in sys.argv[1:]:
    os.environ["MASTER_PORT"] = port
    train()
"""


def test_leaving_right_after_a_collective_does_not_hang(forks):
    done = forks.ranks("-c", LEAVING, *(free_port() for _ in range(8)))
    assert [process.returncode for process in done] == [0, 0], done


@pytest.fixture(scope="module")
def two(forks):
    return [json.loads(process.stdout.splitlines()[-1]) for process in forks.ranks("-c", PROGRAM)]


def test_ranks_join_a_group_and_leave_it(two):
    assert [(r["rank"], r["world"], r["main"], r["left"]) for r in two] == [(0, 2, True, True), (1, 2, False, True)]


def test_all_sum_is_the_sum_on_every_rank_and_leaves_its_input_alone(two):
    for result in two:
        assert result["sum"] == [3, 20] and result["x"] == [1 + result["rank"], 10] and not result["sum_grad"]


def test_any_rank_is_true_if_one_rank_is(two):
    assert all(result["any"] == [False, True, True] for result in two)


def test_gather_keeps_the_order_of_ranks_and_ragged_values(two):
    expected = [{"text": "é" * n, "row": [rank, None, 1.5], "empty": []} for rank, n in ((0, 1), (1, 10))]
    assert all(result["gathered"] == expected for result in two)


def test_vectors_are_gathered_in_the_order_of_ranks_empty_vectors_too(two):
    expected = [[[], [0, 1, 2]], [[], []], [[0, 1, 2], [0, 1]]]
    assert all(result["vectors"] == expected for result in two)


def test_local_rows_are_every_second_row_and_come_back_in_order(two):
    assert [result["rows"] for result in two] == [[[0, 2, 4], [0, 2, 4], [0]], [[1, 3, 5], [1, 3], []]]
    assert all(result["in order"] == [[*range(n)] for n in (6, 5, 1, 0)] for result in two)


def test_backward_through_the_wrapper_gives_every_rank_the_gradient_of_the_joined_batch(two):
    # d/dw sum(w x) / 4 = (1 + 2 + 3 + 4) / 4 = 2.5, exchanged in the last micro-batch; before that, the local 2 * x / 4
    assert [result["grads"] for result in two] == [[0.5, 2.5], [1.0, 2.5]]
    assert [(result["weight"], result["wrapped"]) for result in two] == [(0, "DistributedDataParallel")] * 2


def test_one_process_needs_no_group():
    x, layer = torch.ones(2, requires_grad=True), nn.Linear(1, 1)
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
    assert distributed.all_sum(x).equal(torch.ones(2)) and not distributed.all_sum(x).requires_grad
    assert gather_vectors(torch.ones(2))[0].equal(torch.ones(2))
    assert distributed.gather({"a": 1}) == [{"a": 1}] and distributed.local_rows([1, 2, 3]) == [1, 2, 3]
    assert (distributed.any_rank(True), distributed.any_rank(False)) == (True, False)
    assert distributed.wrap(layer) is layer and distributed.is_main() and distributed.barrier() is None
    with gradient_sync(layer, False):
        distributed.backward(layer(torch.ones(1, 1)).sum())
    assert layer.weight.grad.item() == 1


@pytest.mark.parametrize(("count", "expected"), [(None, False), ("0", False), ("1", True)])
def test_the_restart_count_of_torchrun_tells_a_restart(monkeypatch, count, expected):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert distributed.restarted() is expected
