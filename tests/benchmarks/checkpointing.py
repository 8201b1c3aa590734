"""Time and memory of a forward and a backward pass with activation checkpointing.

python tests/benchmarks/checkpointing.py [--shape S] [--rows 16] [--repeats 5]

kept: bytes that the forward keeps.   peak: most bytes of tensors at a time, gradients included, without weights.
time: seconds of the processor over those without checkpointing, the median of pairs taken in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from step_memory import InUse, shape_of

from minirlhf.jobs.models import EVERY
from minirlhf.model import Transformer
from minirlhf.model.transformer import Trunk


def seconds(trunk: Trunk, ids: torch.Tensor, every: int) -> float:
    trunk.gradient_checkpointing = every
    start = time.process_time()
    trunk(ids).square().mean().backward()
    trunk.zero_grad(set_to_none=True)
    return time.process_time() - start


def memory(trunk: Trunk, ids: torch.Tensor, every: int) -> tuple[int, int]:
    """-> (bytes that the forward keeps, most bytes at a time)."""
    trunk.gradient_checkpointing = every
    with InUse() as counted:
        hidden = trunk(ids)
        kept = counted.bytes
        hidden.square().mean().backward()
    trunk.zero_grad(set_to_none=True)
    return kept, counted.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S")
    parser.add_argument("--rows", type=int, default=16, help="of 128 tokens")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = shape_of(options.shape)
    trunk, ids = Transformer(config).model, torch.randint(2, config.vocab_size, (options.rows, 128))
    seconds(trunk, ids, 0)
    times = [{name: seconds(trunk, ids, every) for name, every in EVERY.items()} for _ in range(options.repeats)]
    print("| | kept | peak | time |\n|---|---|---|---|")
    for name, every in EVERY.items():
        kept, peak = memory(trunk, ids, every)
        ratio = statistics.median(row[name] / row["none"] for row in times)
        print(f"| {name} | {kept / 1e6:.0f} MB | {peak / 1e6:.0f} MB | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
