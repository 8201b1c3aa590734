"""Contract 4: neither the processes, nor the strategy, nor the micro-batches change what a run learns."""

import json

import grid
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

# The default tier has tests/algorithms/test_two_processes.py: several trainers, with and without slices.
pytestmark = pytest.mark.slow
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64, five steps
SHARED = ["accumulation", "ddp-2"]


def trained(forks, folder, *arguments):
    (done,) = forks.run([grid.__file__, folder, *arguments], seconds=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def small(forks, tmp_path_factory):
    """PPO in one and two processes, and its mutations."""
    layouts = ",".join(["one", *SHARED])
    return trained(forks, tmp_path_factory.mktemp("small"), "ppo", "--layouts", layouts, "--mutations")


@pytest.fixture(scope="module")
def full(forks, tmp_path_factory):
    return trained(forks, tmp_path_factory.mktemp("full"), *grid.ALGORITHMS)


def parts(folder, cell, rank=0):
    """(weights, gradients, log, completions) of one process."""
    tensors = load_file(folder / f"{cell}-{rank}.safetensors")
    record = json.loads((folder / f"{cell}-{rank}.json").read_text())
    kinds = [
        {name.partition("/")[2]: x for name, x in tensors.items() if name.startswith(kind)}
        for kind in ("weights", "gradients")
    ]
    return *kinds, record["log"], record["completions"]


def check_cell(folder, algorithm, layout):
    weights, gradients, log, completions = parts(folder, f"{algorithm}-one")
    heard = []
    for rank in range(grid.LAYOUTS[layout].world):
        found = parts(folder, f"{algorithm}-{layout}", rank)
        assert_close(found[0], weights, **EXACT)
        assert gradients.keys() == found[1].keys() and gradients
        for name, gradient in gradients.items():
            assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        for ours, theirs in zip(found[2], log, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
        heard += found[3]
    assert sorted(map(tuple, heard)) == sorted(map(tuple, completions))


@pytest.mark.parametrize("layout", SHARED)
def test_ppo_learns_the_same_in_two_processes_and_by_accumulation(small, layout):
    check_cell(small, "ppo", layout)


def test_the_runs_learn_something(small):
    weights, gradients, log, completions = parts(small, "ppo-one")
    start = grid.tiny.weights(grid.made("ppo", grid.LAYOUTS["one"], grid.torch.float64))
    assert any((weights[name] - x).abs().max() > 1e-2 for name, x in start.items())
    assert len({row["kl_coef"] for row in log}) > 3 and len(set(map(tuple, completions))) > 20


@pytest.mark.parametrize("mutation", grid.MUTATIONS)
def test_a_broken_rule_shows(small, mutation):
    """The check of the grid fails for each mutation."""
    expected, _, _, completions = parts(small, "ppo-one")
    with pytest.raises(AssertionError):
        for rank in range(2):
            assert_close(parts(small, f"ppo-{mutation}", rank)[0], expected, **EXACT)


@pytest.mark.parametrize("layout", [name for name in grid.LAYOUTS if name != "one"])
@pytest.mark.parametrize("algorithm", grid.ALGORITHMS)
def test_the_grid(full, algorithm, layout):
    check_cell(full, algorithm, layout)
