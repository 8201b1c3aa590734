"""Memory of a process under FSDP: weights, gradients and optimizer state, with 1, 2 and 4 processes.

python tests/benchmarks/sharded_memory.py [--width 512] [--layers 8] [--processes 1,2,4] [--mode fsdp] [--train all]

Each process makes the model on the meta device, shards it, and makes two updates: of all weights, or of adapters on a
frozen base, which `qlora` holds in 4 bits. The figures are those of the process with the most memory:

tensors: bytes of the slices of trained weights, gradients and optimizer state after the updates. They are 16 bytes a
         weight / N plus rows of padding: the constant. Adapters are whole on each process.
frozen:  bytes of the slices of frozen weights.
peak:    the largest resident set since the imports (VmHWM), minus the resident set after the imports. It also has the
         gathered blocks, activations, and the buffers of gloo.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scaling"))

import ranks

from minirlhf.adapters.quantised import quantised_slices
from minirlhf.model import LoRAConfig, ModelConfig, Policy, Transformer, apply_lora, quantise_linears
from minirlhf.runtime.distributed import backward, process_group, rank, world_size, wrap
from minirlhf.runtime.parallel.copies import moved, placed
from minirlhf.runtime.parallel.sharding import shard
from minirlhf.runtime.parallel.strategy import Strategy, current, using
from minirlhf.training.optimizer import Optimizer, OptimizerConfig

CPU = torch.device("cpu")


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def held(x: torch.Tensor) -> int:
    return (x.to_local() if hasattr(x, "to_local") else x).nbytes


def adapted(policy: Policy, train: str) -> Policy:
    if train == "lora":
        policy = placed(policy, CPU, own=True)
    elif train == "qlora":
        policy = moved(policy, quantised_slices) if current().shards else quantise_linears(policy)
    return policy if train == "all" else apply_lora(policy, LoRAConfig())


def measure(shape: dict, mode: str, train: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(CPU), using(Strategy(mode if world_size() > 1 else "ddp")):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        start = resident("VmRSS")
        with torch.device("meta"):
            policy = Policy(Transformer(ModelConfig(**shape)))
        if current().shards:
            shard(policy, CPU)
        policy.to_empty(device=CPU)
        with torch.no_grad():
            for p in policy.parameters():
                (p.to_local() if hasattr(p, "to_local") else p).normal_(std=0.02)
        policy = adapted(policy, train)
        wrapped = wrap(policy)
        optimizer = Optimizer({"policy": policy}, OptimizerConfig(), 2)
        ids = torch.arange(1, 33)[None] + rank()
        for _ in range(2):
            out = wrapped(ids, torch.ones_like(ids, dtype=torch.bool))
            backward(-out.logps.sum() / (32 * world_size()))
            gradients = sum(held(p.grad) for p in policy.parameters() if p.grad is not None)
            optimizer.step({"loss": out.logps.sum().detach()})
        tensors = gradients + sum(held(p) for p in policy.parameters() if p.requires_grad)
        states = optimizer.adamw.state.values()
        tensors += sum(held(x) for state in states for x in state.values() if isinstance(x, torch.Tensor))
        figures = {"weights": sum(p.numel() for p in policy.parameters() if p.requires_grad), "tensors": tensors}
        figures["frozen"] = sum(held(p) for p in policy.parameters() if not p.requires_grad)
        figures["peak"] = resident("VmHWM") - start
        (folder / str(rank())).write_text(json.dumps(figures))


def figures(shape: dict, mode: str, train: str, world: int) -> dict[str, int]:
    """The greatest figures of the processes."""
    with tempfile.TemporaryDirectory() as folder:
        ranks.run(world, measure, shape, mode, train, Path(folder), seconds=600)
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return {name: max(row[name] for row in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--mode", default="fsdp", choices=["ddp", "fsdp"])
    parser.add_argument("--train", default="all", choices=["all", "lora", "qlora"])
    options = parser.parse_args()
    shape = {"hidden_size": options.width, "num_hidden_layers": options.layers, "vocab_size": options.vocab_size}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 3 * options.width}
    worlds = [int(number) for number in options.processes.split(",")]
    print("| processes | tensors MB | of 16 bytes a weight | 1/N | frozen MB | peak MB |\n|---|---|---|---|---|---|")
    for world in worlds:
        row = figures(shape, options.mode, options.train, world)
        whole = 16 * row["weights"]
        share, expected = row["tensors"] / whole, 1 / world if options.mode == "fsdp" else 1
        tensors, frozen, peak = (row[name] / 1e6 for name in ("tensors", "frozen", "peak"))
        print(f"| {world} | {tensors:.1f} | {share:.4f} | {expected:.4f} | {frozen:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
