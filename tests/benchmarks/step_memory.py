"""Memory of a step: planned by `minirlhf plan`, and measured in a process of its own.

python tests/benchmarks/step_memory.py [--shapes S,M] [--algorithms sft,dpo,grpo,ppo] [--checkpointing 2]

in use:   the most bytes of tensors that exist at a time, counted operator by operator.
resident: the greatest resident memory of the process (VmHWM) in two steps, minus the resident memory before the models
          are made. Libraries are loaded and have taken a step of a tiny model before.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data.batches import Draw, EncodedRow
from minirlhf.jobs.footprint import FP32, Footprint, Step, footprint
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.model.footprint import parameters
from minirlhf.model.policy import copy_of

FIELDS = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
FIELDS += ["intermediate_size"]
SHAPES = {
    "tiny": (64, 32, 1, 4, 2, 64),
    "small": (2048, 64, 3, 4, 2, 160),
    "S": (4096, 256, 6, 8, 2, 704),
    "M": (32_000, 768, 12, 12, 4, 2048),
}
ROWS = {"tiny": 2, "S": 16, "M": 4, "small": 8}  # of SFT and PPO; half as many pairs, a quarter as many groups of 8
PROMPT, NEW, GROUP = 64, 64, 8
TOKENIZER = SimpleNamespace(
    pad_id=0,
    eos_ids=(1,),
    decode=lambda ids: "",
    decode_completions=lambda completions: ["" for _ in completions],
    backend=SimpleNamespace(decode=lambda ids, skip_special_tokens: ""),  # of samples
)


def shape_of(name: str) -> ModelConfig:
    return ModelConfig(**dict(zip(FIELDS, SHAPES[name], strict=True)))


def reward(prompts: list, completions: list, rows: list) -> list[float]:
    return [float(i % 3) for i in range(len(completions))]


def rows_of(algorithm: str, shape: str) -> int:
    return {"dpo": ROWS[shape] // 2, "grpo": max(1, ROWS[shape] // 4)}.get(algorithm, ROWS[shape])


def work(algorithm: str, shape: str, micro: int, checkpointing: Any) -> tuple[Any, list[Draw]]:
    """A trainer and a batch of rows of PROMPT + NEW tokens."""
    torch.manual_seed(0)
    config, n = shape_of(shape), rows_of(algorithm, shape)
    policy = Policy(Transformer(config), value_head=algorithm == "ppo")
    policy.transformer.model.gradient_checkpointing = checkpointing
    answers = {"sft": 1, "dpo": 2}.get(algorithm, 0)
    ids = lambda count: torch.randint(2, config.vocab_size, (count,)).tolist()  # noqa: E731
    rows = [EncodedRow({"prompt": ""}, ids(PROMPT), tuple(ids(NEW) for _ in range(answers))) for _ in range(n)]
    size = {"batch_size": n, "microbatch_tokens": micro}
    sampling = size | {"minibatch_size": n, "epochs": 1, "max_tokens": NEW}
    models = policy, copy_of(policy)
    if algorithm == "sft":
        trainer = SFTTrainer(policy, TOKENIZER, SFTConfig(**size), 10)
    elif algorithm == "dpo":
        trainer = DPOTrainer(*models, TOKENIZER, DPOConfig(**size), 10)
    elif algorithm == "grpo":
        trainer = GRPOTrainer(*models, reward, TOKENIZER, GRPOConfig(**sampling, group_size=GROUP, kl_coef=0.04))
    else:
        trainer = PPOTrainer(*models, reward, TOKENIZER, PPOConfig(**sampling))
    return trainer, [Draw(row, i, 0, i) for i, row in enumerate(rows)]


def plan(algorithm: str, shape: str, micro: int, checkpointing: Any) -> Footprint:
    config, n = shape_of(shape), rows_of(algorithm, shape)
    sides = {"dpo": 2, "grpo": GROUP}.get(algorithm, 1)
    rows, sampled = n * sides, n * sides if algorithm in ("grpo", "ppo") else 0
    most = max(1, micro // (PROMPT + NEW))
    step = Step(PROMPT, NEW, rows, min(rows, most), sides, shared=sides > 1, partial=True, sampled=sampled)
    weights = FP32 * parameters(config) * (1 if algorithm == "sft" else 2)
    return footprint(config, step, weights=weights, trained=parameters(config), every=checkpointing)


class InUse(TorchDispatchMode):
    """Counts the bytes of all tensors that operators return, as long as they exist."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.is_mkldnn:  # a packed weight has no storage that torch knows
                holder, size = x, x.nbytes
            elif isinstance(x, torch.Tensor):
                holder, size = x.untyped_storage(), x.untyped_storage().nbytes()
            else:
                continue
            if holder not in self.known:
                self.known.add(holder)
                self.change(size)
                weakref.finalize(holder, self.change, -size)
        return result

    def change(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def in_use(algorithm: str, shape: str, micro: int, checkpointing: Any = False) -> int:
    with InUse() as counted:
        trainer, draws = work(algorithm, shape, micro, checkpointing)
        for _ in range(2):  # the first step makes the moments
            trainer.step(draws)
    return counted.peak


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(algorithm: str, shape: str, micro: int, checkpointing: Any) -> int:
    """The growth of the resident memory, in bytes."""
    torch.set_num_threads(1)
    trainer, draws = work(algorithm, "tiny", micro, checkpointing)
    trainer.step(draws)
    del trainer, draws
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    trainer, draws = work(algorithm, shape, micro, checkpointing)
    for _ in range(2):
        trainer.step(draws)
    return resident("VmHWM") - before


def measured(*arguments: Any) -> int:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="S,M")
    parser.add_argument("--algorithms", default="sft,dpo,grpo,ppo")
    parser.add_argument("--micro", type=int, default=16_384)
    parser.add_argument("--checkpointing", type=int, default=0, help="compute every n-th block again; 0: none")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return print(measure(*json.loads(options.measure)))
    print(
        "| | in use, planned | counted | resident, planned | measured | planned / measured |\n|---|---|---|---|---|---|"
    )
    for shape in options.shapes.split(","):
        for algorithm in options.algorithms.split(","):
            work = algorithm, shape, options.micro, options.checkpointing
            planned, counted, peak = plan(*work), in_use(*work), measured(*work)
            cells = [f"{size / 1e6:.0f} MB" for size in (planned.in_use, counted, planned.total, peak)]
            print(f"| {algorithm} {shape} | {' | '.join(cells)} | {planned.total / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
