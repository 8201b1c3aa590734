"""Stop runs in one layout, resume them in another, and compare them with a run of one process that never stopped.

python tests/scaling/moved.py [--runs ppo,grpo] [--moves fsdp-2:one,one:fsdp-2]

A run of 8 steps in float64 stops after step 3, where it has a checkpoint. The exit code is 0 if the final weights of
every run differ by at most 1e-9 from the weights of the whole run, and its metrics by at most 1e-6 relatively.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import grid
import ranks
import tiny
from safetensors.torch import load_file

from minirlhf.runtime.distributed import process_group

MOVES = ("fsdp-2:one", "one:fsdp-2", "fsdp-2:ddp-2", "ddp-2:fsdp-2", "ddp-2:one", "one:ddp-2", "fsdp-2:fsdp-4")
BOUND = 1e-9


def part(kind: str, layout: str, folder: Path, stop: int | None, resume: bool = False) -> None:
    """One process of a part of a run."""
    torch.set_num_threads(1)
    options = {"dtype": torch.float64, "resume": resume}
    with process_group(torch.device("cpu")), grid.using(grid.LAYOUTS[layout].strategy):
        if stop:
            tiny.stop_at(stop, folder, kind, **options)
        else:
            tiny.go_on(kind, folder, **options)


def run(kind: str, layout: str, *args: object) -> None:
    ranks.run(grid.LAYOUTS[layout].world, part, kind, layout, *args)


def difference(folder: Path, whole: Path) -> tuple[float, float]:
    """(the largest difference of a weight, the largest relative difference of a metric) of two finished runs."""
    found, expected = (load_file(path / "model/model.safetensors") for path in (folder, whole))
    assert found.keys() == expected.keys()
    weights = max(float((found[name] - x).abs().max()) for name, x in expected.items())
    logs = [[json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (folder, whole)]
    assert [row.keys() for row in logs[0]] == [row.keys() for row in logs[1]]
    pairs = [(mine[name], row[name]) for mine, row in zip(*logs, strict=True) for name in row]
    return weights, max(abs(x - y) / max(abs(y), 1.0) for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="ppo,grpo")
    parser.add_argument("--moves", default=",".join(MOVES))
    options, equal = parser.parse_args(), True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = ["| run | stops in | goes on in | weights | metrics |", "|---|---|---|---|---|"]
        for kind in options.runs.split(","):
            run(kind, "one", folder / kind, None)
            for move in options.moves.split(","):
                first, second = move.split(":")
                moved = folder / f"{kind}-{first}-{second}"
                run(kind, first, moved, 4)
                run(kind, second, moved, None, True)
                weights, metrics = difference(moved, folder / kind)
                equal &= weights <= BOUND and metrics <= 1e-6
                table.append(f"| {kind} | {first} | {second} | {weights:.1e} | {metrics:.1e} |")
    print("\n".join(table))
    sys.exit(not equal)


if __name__ == "__main__":
    main()
