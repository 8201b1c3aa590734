"""How long a checkpoint holds up the training loop: written in the loop, and written by a thread.

python tests/benchmarks/async_checkpoint.py [--megabytes 500] [--rounds 3] [--folder DIR]

The model has `--megabytes` of weights in fp32, and the optimizer has twice as much, so a checkpoint has three times as
many bytes. The table has the seconds that `Run.save` takes in the loop, and the seconds until the checkpoint is
complete. Seconds of the processor are without the disk and without other programs. Each round writes one checkpoint in
the loop and one by a thread, so that other work of the machine slows both down; the first round is not counted, because
a run makes the memory of its copies once. Bytes go to the disk of `--folder`, and each checkpoint is flushed.

The last lines are about the time while the thread writes. In every second round the loop makes steps of a small model;
in the other rounds it only wakes up again and again. If the thread held the lock of the interpreter, the loop would
sleep for as long.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
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
        policy = Policy(
            Transformer(ModelConfig(**shape | {"num_hidden_layers": max(1, round((megabytes - rest) / block))}))
        )
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, OptimizerConfig(), updates=1)
        for p in policy.parameters():
            self.optimizer.adamw.state[p] = {"step": torch.tensor(1.0), "exp_avg": p.detach() / 10}
            self.optimizer.adamw.state[p]["exp_avg_sq"] = p.detach().square()

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict()}


class Measured:
    """A run of its own for one way to write, and the seconds of each checkpoint."""

    def __init__(self, trainer: Still, folder: Path, rounds: int, asynchronous: bool) -> None:
        config = RunConfig(output=str(folder), async_save=asynchronous, keep=1)
        self.run = Run(config, trainer, [None] * rounds)
        self.held: list[float] = []  # [s] that `save` takes
        self.processor: list[float] = []  # [s] of the processor in `save`
        self.complete: list[float] = []  # [s] until the checkpoint is complete
        self.steps: list[float] = []  # [s] of each step of a small model meanwhile
        self.pause = 0.0  # [s] the longest time in which the loop did not run

    def save(self, step: Callable[[], float]) -> None:
        self.run.step += 1
        start, processor = time.perf_counter(), time.process_time()
        self.run.save()
        self.held.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - processor)
        while self.run.writing and self.run.writing.is_alive():
            if self.run.step % 2:
                self.steps.append(step())
            else:
                before = time.perf_counter()
                time.sleep(0.0005)
                self.pause = max(self.pause, time.perf_counter() - before)
        wait(self.run)
        self.complete.append(time.perf_counter() - start)


def small_step() -> Callable[[], float]:
    """A function that makes one step of a small model -> its seconds."""
    model = Policy(Transformer(ModelConfig(hidden_size=64, num_hidden_layers=4, vocab_size=256)))
    ids = torch.randint(0, 256, (4, 32))
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> float:
        start = time.perf_counter()
        model(ids, mask).logps.sum().backward()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="of the checkpoints; they are deleted at the end")
    options = parser.parse_args()
    torch.manual_seed(0)
    trainer, step = Still(options.megabytes), small_step()
    size = sum(p.nbytes for p in trainer.models["policy"].parameters()) / 1e6
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, contextlib.redirect_stdout(io.StringIO()):
        ways = {
            name: Measured(trainer, Path(folder) / name.replace(" ", "-"), options.rounds + 1, name == "by a thread")
            for name in ("in the loop", "by a thread")
        }
        alone = [step() for _ in range(20)]
        for _ in range(options.rounds + 1):
            for way in ways.values():
                way.save(step)
            alone += [step() for _ in range(10)]
    print(f"{size:.0f} MB of weights; median of {options.rounds}\n")
    print("| write | seconds in the loop | of the processor | seconds until complete |\n|---|---|---|---|")
    for name, way in ways.items():
        cells = (statistics.median(times[1:]) for times in (way.held, way.processor, way.complete))
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    loop, thread = ways.values()
    shares = [
        statistics.median(mine / whole for mine, whole in zip(times[1:], others[1:], strict=True))
        for times, others in ((thread.held, loop.held), (thread.processor, loop.processor))
    ]
    print("\nthe thread holds up the loop for {:.1%} of the write, by the processor's time {:.1%}".format(*shares))
    milliseconds = (1e3 * statistics.median(times) for times in (alone, thread.steps))
    print("a step takes {:.1f} ms while nothing is written, {:.1f} ms while the thread writes".format(*milliseconds))
    print(f"while the thread writes, the loop sleeps for at most {1e3 * thread.pause:.0f} ms")


if __name__ == "__main__":
    main()
