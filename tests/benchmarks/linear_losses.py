"""Processor time and peak memory of the memory-lean losses against plain logits, forward and backward.

Each measurement runs in a process of its own. The processor time counts all threads; another program on the machine
lengthens it less than the time on the clock.

python tests/benchmarks/linear_losses.py [--tokens 2048] [--width 512] [--vocabulary 151936] [--repeats 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from minirlhf.losses import cross_entropy, fused_linear_loss, linear_token_logps, masked_mean, token_logps


def losses(kind: str, hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids, dtype=torch.bool)
    count = ids.numel()
    if kind == "fused":
        return fused_linear_loss(hidden, weight, ids, cross_entropy, mask=mask, count=count)[0]
    if kind == "linear":
        logps = linear_token_logps(hidden, weight, ids)
    else:
        logps = token_logps(torch.nn.functional.linear(hidden, weight), ids)
    mask[:, 0] = False
    return masked_mean(cross_entropy(logps), mask, count)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, tokens: int, width: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()  # in place: a copy would raise the peak
    ids = torch.randint(vocabulary, (1, tokens))
    small = [x.detach()[..., :64, :].clone().requires_grad_() for x in (hidden, weight)]
    losses(kind, *small, ids[:, :64] % 64).backward()  # warm-up, on copies: it must not raise the peak
    before, started = peak_mb(), time.process_time()
    loss = losses(kind, hidden, weight, ids)
    loss.backward()
    print(time.process_time() - started, peak_mb() - before, loss.item(), weight.grad.norm().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind")
    args = parser.parse_args()
    size = (args.tokens, args.width, args.vocabulary)
    if args.kind:
        return measure(args.kind, *size)
    found: dict[str, list[list[float]]] = {"plain": [], "linear": [], "fused": []}
    for _ in range(args.repeats):  # in turns, so that a busy moment of the machine meets all three
        for kind, runs in found.items():
            flags = [f"--tokens={size[0]}", f"--width={size[1]}", f"--vocabulary={size[2]}", f"--kind={kind}"]
            answer = subprocess.run([sys.executable, __file__, *flags], check=True, capture_output=True, text=True)
            runs.append([float(x) for x in answer.stdout.split()])
    print(f"{size[0]} tokens, width {size[1]}, vocabulary {size[2]}, fp32, {torch.get_num_threads()} threads")
    seconds, memory = (
        {kind: statistics.median(run[i] for run in runs) for kind, runs in found.items()} for i in (0, 1)
    )
    for kind, runs in found.items():
        ratio = statistics.median(run[0] / plain[0] for run, plain in zip(runs, found["plain"], strict=True))
        share = memory[kind] / memory["plain"]
        print(
            f"{kind:<7} {seconds[kind]:6.2f} s ({ratio:.2f})  {memory[kind]:6.0f} MiB ({share:.3f})  "
            f"loss {runs[0][2]:.6f}  |grad| {runs[0][3]:.6f}"
        )


if __name__ == "__main__":
    main()
