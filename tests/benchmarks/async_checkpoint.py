"""How long a checkpoint holds up the training loop: written in the loop, and written by a thread.

python tests/benchmarks/async_checkpoint.py [--megabytes 500] [--rounds 3] [--folder DIR]

The model has `--megabytes` of weights in fp32, and the optimizer has twice as much, so a checkpoint has three times as
many bytes. The table has the seconds that `Run.save` takes in the loop, and the seconds until the checkpoint is
complete. The loop does nothing else, so the thread has a core of its own if the machine has two. Bytes go to the disk
of `--folder`, and each checkpoint is flushed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch

from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.training import Run, RunConfig
from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.saving import wait


class Still:
    """A trainer with a model and a filled optimizer. It never takes a step."""

    headline, best, samples = (), ("none", "max"), []

    def __init__(self, megabytes: int) -> None:
        width, vocab_size = 1024, 8000
        shape = {"hidden_size": width, "vocab_size": vocab_size, "num_attention_heads": 8, "num_key_value_heads": 8}
        shape |= {"intermediate_size": 4 * width, "num_hidden_layers": 1}
        rest, block = 4e-6 * vocab_size * width, 4e-6 * 16 * width**2  # [MB]; embedding and head are one matrix
        policy = Policy(Transformer(ModelConfig(**shape | {"num_hidden_layers": round((megabytes - rest) / block)})))
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, OptimizerConfig(), updates=1)
        for p in policy.parameters():
            self.optimizer.adamw.state[p] = {"step": torch.tensor(1.0), "exp_avg": p.detach() / 10}
            self.optimizer.adamw.state[p]["exp_avg_sq"] = p.detach().square()

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict()}


def measure(trainer: Still, folder: Path, rounds: int, asynchronous: bool) -> tuple[list[float], list[float]]:
    """(seconds that `save` takes, seconds until the checkpoint is complete) of each round."""
    config = RunConfig(output=str(folder), async_save=asynchronous, keep=1)
    held, complete = [], []
    with contextlib.redirect_stdout(io.StringIO()):
        run = Run(config, trainer, [None] * rounds)
        for step in range(1, rounds + 1):
            run.step, start = step, time.perf_counter()
            run.save()
            held.append(time.perf_counter() - start)
            wait(run)
            complete.append(time.perf_counter() - start)
    return held, complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="of the checkpoints; they are deleted at the end")
    options = parser.parse_args()
    torch.manual_seed(0)
    trainer = Still(options.megabytes)
    size = sum(p.nbytes for p in trainer.models["policy"].parameters()) / 1e6
    print(f"{size:.0f} MB of weights; median of {options.rounds}\n")
    print("| write | seconds in the loop | seconds until complete |\n|---|---|---|")
    medians = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, asynchronous in (("in the loop", False), ("by a thread", True)):
            times = measure(trainer, Path(folder) / name.replace(" ", "-"), options.rounds, asynchronous)
            medians[name] = statistics.median(times[0])
            print(f"| {name} | {medians[name]:.2f} | {statistics.median(times[1]):.2f} |", flush=True)
    print(f"\nthe thread holds up the loop for {medians['by a thread'] / medians['in the loop']:.1%} of the write")


if __name__ == "__main__":
    main()
