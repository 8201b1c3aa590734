"""Train every cell of a grid: algorithm x layout. A layout is a number of processes, a strategy, and settings.

python grid.py FOLDER ppo sft ...              the whole grid of these algorithms
python grid.py FOLDER ppo --layouts one,fsdp-2 these layouts only
python grid.py FOLDER ppo --mutations          and each mutation, in two processes under DDP

Each process writes CELL-RANK.safetensors and .json: weights after five steps in float64, gradients of the first update
in fp32, metrics, and the completions that its reward function saw.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import ranks
import tiny

from minirlhf.data.dealing import dealt
from minirlhf.losses import masking
from minirlhf.runtime import distributed
from minirlhf.runtime.distributed import process_group

STEPS = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layout:
    world: int
    strategy: dict | None = None  # arguments of Strategy; None: one process, or DDP
    settings: dict = field(default_factory=dict)  # of the algorithm


LAYOUTS = {
    "one": Layout(1),
    "accumulation": Layout(1, settings={"microbatch_tokens": 1}),  # each row is a micro-batch
    "ddp-2": Layout(2),
    "ddp-4": Layout(4),
    "zero2-2": Layout(2, {"mode": "fsdp", "reshard_after_forward": False}),
    "fsdp-2": Layout(2, {"mode": "fsdp"}),
    "fsdp-2-whole": Layout(2, {"mode": "fsdp", "gather": "whole"}),
    "fsdp-2-layers": Layout(2, {"mode": "fsdp", "gather": "layers"}),
    "fsdp-4": Layout(4, {"mode": "fsdp"}),
    "hsdp-2x2": Layout(4, {"mode": "hsdp", "replicas": 2}),
}


def ppo(dtype: torch.dtype, reward: Callable, **settings):
    """Whitened rewards and advantages, an adaptive KL coefficient: all statistics that need every process."""
    defaults = {"kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 100, "kl_coef": 0.3}
    defaults |= {"microbatch_tokens": 24, "whiten_rewards": True, "steps": STEPS}  # one or two rows a micro-batch
    return tiny.ppo(dtype, reward=reward, **defaults | settings)


ALGORITHMS: dict[str, Callable] = {
    "sft": lambda dtype, reward, **settings: tiny.sft(dtype, STEPS, **settings),
    "dpo": lambda dtype, reward, **settings: tiny.dpo(dtype, STEPS, **settings),
    "ppo": ppo,
    "grpo": lambda dtype, reward, **settings: tiny.grpo(dtype, reward, steps=STEPS, **settings),
}


# Mutations: each breaks the rule of its name in the way that a careless change would.


class Unwrapped(torch.nn.parallel.DistributedDataParallel):
    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def _own_mean(x: Tensor, mask: Tensor, count: object = None, *, mean: Callable = masking.masked_mean) -> Tensor:
    """The mean over this micro-batch of this process. The average over processes is then an average of averages."""
    return mean(x, mask) / distributed.world_size()


def _own_sum(x: Tensor) -> Tensor:
    """The sum of this process, as if all processes had the same."""
    return x.detach() * distributed.world_size()


MUTATIONS: dict[str, tuple[str, object]] = {
    "forward through .module": ("torch.nn.parallel.DistributedDataParallel", Unwrapped),
    "average of averages": ("minirlhf.algorithms.ppo.masked_mean", _own_mean),
    "local whitening": ("minirlhf.algorithms.ppo.moments_of_all", masking.masked_moments),
    "local KL": ("minirlhf.rollout.statistics.all_sum", _own_sum),
    "noise by place": ("minirlhf.algorithms.ppo.PPOTrainer.collect", None),
}


@contextlib.contextmanager
def mutated(name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    target, value = MUTATIONS[name]
    if name == "noise by place":  # the number of a prompt in its process, not in the data
        value = _numbered_locally
    with mock.patch(target, value):
        yield


def _numbered_locally(trainer, batch, *, collect: Callable = tiny.PPOTrainer.collect):
    return collect(trainer, [draw._replace(index=i) for i, draw in enumerate(batch)])


@contextlib.contextmanager
def using(strategy: dict | None) -> Iterator[None]:
    if strategy is None:
        yield
        return
    from minirlhf.runtime.parallel import strategy as room

    with room.using(room.Strategy(**strategy)):
        yield


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def made(algorithm: str, layout: Layout, dtype: torch.dtype, reward: Callable = tiny.likes_e):
    """A trainer; its reference model is sharded like its policy."""
    trainer = ALGORITHMS[algorithm](dtype, reward, **layout.settings)
    reference = getattr(trainer, "ref_policy", None)
    if reference is not None and layout.strategy and layout.strategy["mode"] != "ddp":
        from minirlhf.runtime.parallel.sharding import is_sharded, shard

        assert is_sharded(trainer.policy)
        shard(reference, CPU)
    return trainer


def train(algorithm: str, name: str, folder: Path, mutation: str | None = None) -> None:
    """One cell, in one of the processes of its layout."""
    layout, heard = LAYOUTS[name], []

    def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        heard.extend(zip(prompts, completions, strict=True))
        return tiny.likes_e(prompts, completions, rows)

    file = folder / f"{algorithm}-{mutation or name}-{os.environ['RANK']}"
    with using(layout.strategy), mutated(mutation):
        trainer = made(algorithm, layout, torch.float64, reward)
        log = tiny.train(trainer, tiny.batches(8, STEPS))
        tensors = {f"weights/{key}": whole(x) for key, x in tiny.weights(trainer).items()}
        if not mutation:
            trainer = made(algorithm, layout, torch.float32)
            found, _ = tiny.gradients(trainer, dealt(tiny.batches(8, STEPS)[0], trainer.config))
            tensors |= {f"gradients/{key}": whole(x) for key, x in found.items()}
    save_file(tensors, file.with_name(file.name + ".safetensors"))
    file.with_name(file.name + ".json").write_text(json.dumps({"log": log, "completions": heard}))


def train_all(cells: list[tuple], folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(CPU):
        for cell in cells:
            train(*cell[:2], folder, *cell[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("algorithms", nargs="+", choices=ALGORITHMS)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="with commas between them")
    parser.add_argument("--mutations", action="store_true")
    options = parser.parse_args()
    layouts = options.layouts.split(",")
    for world in sorted({LAYOUTS[name].world for name in layouts}):
        cells = [(a, name) for a in options.algorithms for name in layouts if LAYOUTS[name].world == world]
        if options.mutations and world == 2:
            cells += [("ppo", "ddp-2", mutation) for mutation in MUTATIONS]
        ranks.run(world, train_all, cells, options.folder, seconds=600)


if __name__ == "__main__":
    main()
