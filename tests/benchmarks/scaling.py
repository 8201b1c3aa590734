"""Steps of PPO and SFT with several processes: seconds, processor seconds, and bytes a process holds.

python tests/benchmarks/scaling.py [--processes 1,2] [--modes ddp,fsdp] [--steps 4] [--width 256]

Every layout trains the same model on the same batches. The first step is not counted. "Speed" is the time of one
process divided by the time of this layout; N processes on N free cores would reach N. Processor seconds are those of
all processes together: what is above one process's is the price of the exchange.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scaling"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import grid
import ranks
import tiny

from minirlhf.algorithms import PPOConfig, PPOTrainer, SFTConfig, SFTTrainer
from minirlhf.model import Policy
from minirlhf.runtime.distributed import barrier, local_rows, process_group, rank


def trainer(algorithm: str, width: int, steps: int):
    shape = {"hidden_size": width, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 3 * width}
    policy = Policy(tiny.transformer(dtype=torch.float32, layers=4, scale=1.0, **shape), value_head=algorithm == "ppo")
    if algorithm == "sft":
        return SFTTrainer(policy, tiny.tokenizer(), SFTConfig(batch_size=64, microbatch_tokens=2048), steps)
    config = PPOConfig(steps=steps, batch_size=64, minibatch_size=32, max_tokens=32, microbatch_tokens=2048)
    return PPOTrainer(policy, tiny.near(policy), tiny.likes_e, tiny.tokenizer(), config)


def measure(algorithm: str, mode: str, width: int, steps: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")), grid.using({"mode": mode} if mode == "fsdp" else None):
        trained, batches = trainer(algorithm, width, steps + 1), tiny.batches(64, steps + 1, n=256)
        trained.step(local_rows(batches[0]))
        barrier()
        start, used = time.perf_counter(), time.process_time()
        for step in range(1, steps + 1):
            trained.step(local_rows(batches[step]))
        barrier()
        seconds = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
        (folder / str(rank())).write_text(json.dumps({name: value / steps for name, value in seconds.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--modes", default="ddp,fsdp")
    parser.add_argument("--algorithms", default="sft,ppo")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    print("| algorithm | processes | strategy | seconds a step | speed | processor seconds a step |")
    print("|---|---|---|---|---|---|")
    for algorithm in options.algorithms.split(","):
        alone = None
        for world in map(int, options.processes.split(",")):
            for mode in ["none"] if world == 1 else options.modes.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    arguments = (algorithm, mode, options.width, options.steps, Path(folder))
                    ranks.run(world, measure, *arguments, seconds=1200)
                    found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
                seconds, used = max(row["seconds"] for row in found), sum(row["processor"] for row in found)
                alone = alone or seconds
                figures = f"{seconds:.2f} | {alone / seconds:.2f} | {used:.2f}"
                print(f"| {algorithm} | {world} | {mode} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
