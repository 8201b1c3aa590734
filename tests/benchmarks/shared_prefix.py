"""One GRPO update on completions of long prompts: the prompt computed once per group, against once per completion.

python tests/benchmarks/shared_prefix.py [--prompt 512] [--group 8] [--new 64] [--prompts 1] [--repeats 3]

Shape S: 5.3M parameters. Each way runs in its own process, in turns. Seconds are wall-clock time; processor seconds
count both cores, and other programs disturb them less. Both are medians of updates 2 to 4. Memory is the peak of the
first update above the level before it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from minirlhf.algorithms.grpo import GRPOConfig, GRPOTrainer
from minirlhf.model import ModelConfig, Policy, Transformer, packing
from minirlhf.rollout import Rollout

S = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2}
S |= {"intermediate_size": 704, "vocab_size": 4096, "tie_word_embeddings": True, "max_position_embeddings": 2048}
WAYS = ("per completion", "per group")


def rollout_of(prompts: int, group: int, prompt: int, new: int) -> Rollout:
    torch.manual_seed(1)
    rows, shape = prompts * group, (prompts * group, prompt + new)
    ids = torch.randint(2, 4096, (prompts, prompt)).repeat_interleave(group, dim=0)
    ids = torch.cat((ids, torch.randint(2, 4096, (rows, new))), dim=1)
    completion = torch.arange(prompt + new).expand(shape) >= prompt
    numbers = torch.where(completion, -8.3, 0.0)
    return Rollout(
        input_ids=ids,
        attention_mask=torch.ones(shape, dtype=torch.bool),
        completion_mask=completion,
        logps=numbers,
        ref_logps=numbers,
        values=torch.zeros(shape),
        scores=torch.randn(rows),
        scores_by_function=torch.zeros(rows, 1),
        ended=torch.ones(rows, dtype=torch.bool),
        mass_kept=torch.ones(rows),
        completions=[""] * rows,
        lengths=[prompt + new] * rows,
    )


def status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(way: str, prompts: int, group: int, prompt: int, new: int) -> None:
    if way == WAYS[0]:
        packing.LEAST = sys.maxsize
    torch.manual_seed(0)
    config = GRPOConfig(batch_size=prompts, minibatch_size=prompts, group_size=group, epochs=1, kl_coef=0.0)
    policy = Policy(Transformer(ModelConfig(**S)))
    trainer = GRPOTrainer(policy, None, lambda prompts, texts, rows: [0.0], None, config)

    def update(size: int) -> dict[str, float]:
        rollout = rollout_of(prompts, group, size, new)
        advantages = torch.where(rollout.completion_mask, rollout.scores[:, None], 0)
        weights = torch.ones_like(advantages)
        return trainer.update(rollout, advantages, weights, [True] * len(rollout.lengths), range(prompts))

    update(65)  # warm-up: it allocates the optimizer's moments, and a short prompt does not raise the peak
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    level = status("VmRSS")
    metrics = update(prompt)
    memory, times = status("VmHWM") - level, []
    for _ in range(3):
        started, used = time.perf_counter(), time.process_time()
        update(prompt)
        times.append((time.perf_counter() - started, time.process_time() - used))
    seconds, used = map(statistics.median, zip(*times, strict=True))
    print(seconds, used, memory, metrics["loss"], metrics["grad_norm"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("prompt", 512), ("group", 8), ("new", 64), ("prompts", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--way")
    args = parser.parse_args()
    if args.way:
        return measure(args.way, args.prompts, args.group, args.prompt, args.new)
    sizes = [f"--{name}={getattr(args, name)}" for name in ("prompt", "group", "new", "prompts")]
    runs: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):  # in turns, so that a busy moment of the machine meets both
        for way, found in runs.items():
            command = [sys.executable, __file__, *sizes, f"--way={way}"]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append([float(x) for x in answer.stdout.split()])
    print(f"{args.prompts} x {args.group} completions, prompt {args.prompt}, {args.new} new tokens, shape S, fp32")
    medians = {way: [statistics.median(column) for column in zip(*found, strict=True)] for way, found in runs.items()}
    for way, (seconds, used, memory, loss, norm) in medians.items():
        print(
            f"prompt {way:<14}  {seconds:6.2f} s  {used:6.2f} processor s  {memory:6.0f} MiB  "
            f"loss {loss:.6f}  |grad| {norm:.6f}"
        )
    old, new = medians.values()
    print(f"faster: {old[0] / new[0]:.2f} x, processor time {old[1] / new[1]:.2f} x; memory {new[2] / old[2]:.2f}")


if __name__ == "__main__":
    main()
