"""The benchmark against peers still runs: our side of every row, on a tiny shape, and the table of made-up figures."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import speed
import speed_cuda
import speed_ours
import speed_work

from minirlhf.generation.slots import Slots


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(Slots, "__init__", Slots.__init__)  # some rows put their lengths into it
    for name, size in {"LENGTH": 40, "PROMPT": 4, "NEW": 9, "ROLLOUT": 9, "BATCH": 4, "CALLS": 2}.items():
        monkeypatch.setattr(speed_work, name, size)


@pytest.mark.parametrize("name", speed.TABLE)
def test_our_side_of_each_row(name):
    row = speed.TABLE[name]
    step = getattr(speed_ours, row.ours)("XS", 2, **row.options)
    assert step() > 0 and step() > 0


@pytest.mark.parametrize("shape", ["S", "M"])
def test_both_sides_have_equally_many_weights(shape):
    spec = speed_work.SHAPES[shape]
    D, E, K, inner = spec["hidden"], spec["hidden"] // spec["heads"], spec["kv_heads"], spec["intermediate"]
    layer = (D + 2 * K * E) * (D + 1) + D * D + 3 * D * inner + 2 * D  # q, k, v with biases; o; MLP; two norms
    with torch.device("meta"):
        weights = sum(p.numel() for p in speed_ours.transformer(shape).parameters())
    assert weights == spec["layers"] * layer + D * (spec["vocab"] + 1)


def test_the_table_compares_turn_by_turn():
    def turns(*seconds, peak):
        figures = {"tokens": 100, "peak": peak, "before": 40.0}
        return [{"seconds": s, "processor": 2 * s, **figures} for s in seconds]

    ours, peers = turns(1.0, 2.0, 4.0, peak=50.0), turns(2.0, 6.0, 8.0, peak=200.0)
    cells = [cell.strip() for cell in speed.line(speed.TABLE["sft"], ours, peers).strip("|").split("|")]
    assert cells == ["SFT, 8 x 256", "S", "2.000", "50", "6.000", "2.00", "2.00", "50 (10)", "200 (160)", "0.25"]
    assert "| - | - | - | 50 (10) | - | - |" in speed.line(speed.TABLE["sft"], ours, None)
    assert all(row.count("|") == 11 for row in (speed.HEAD.splitlines()[0], speed.line(speed.TABLE["sft"], ours, None)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_the_benchmark_of_a_gpu_refuses_a_machine_without_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed_cuda.py"])
    with pytest.raises(SystemExit) as end:
        speed_cuda.main()
    assert end.value.code == 2 and "needed a GPU" in capsys.readouterr().err
