"""Most tokens of a process above the mean of all processes, for rows dealt by index and by length.

python tests/benchmarks/dealing.py [--rows 64] [--batches 200] [--seed 0]

The processes wait for the one with the most tokens, so the number is the share of time that they lose. Lengths of rows
are log-normal (median 150 tokens, at most 2,048), or those of the task reviews.
"""

from __future__ import annotations

import argparse
import random

from minirlhf.data.dealing import deal, even_counts
from minirlhf.tasks import reviews

PROCESSES = (2, 4, 8)


def spread(rng: random.Random) -> int:
    return max(1, min(2048, round(150 * rng.lognormvariate(0, 0.9))))


def excess(lengths: list[int], hands: list[list[int]]) -> float:
    """The most tokens of a process, divided by the mean, minus 1."""
    tokens = [sum(lengths[row] for row in hand) for hand in hands]
    return max(tokens) * len(tokens) / sum(tokens) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="of a minibatch")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    texts = [len(row["response"].split()) for row in reviews.sft_rows(2000, options.seed)]
    kinds = {"log-normal": lambda: spread(rng), "reviews (words)": lambda: rng.choice(texts)}
    print("| lengths | processes | by index | by length |\n|---|---|---|---|")
    for kind, draw in kinds.items():
        batches = [[draw() for _ in range(options.rows)] for _ in range(options.batches)]
        for n in PROCESSES:
            by_index = [[*range(r, options.rows, n)] for r in range(n)]
            before = sum(excess(batch, by_index) for batch in batches) / len(batches)
            after = sum(excess(batch, deal(batch, even_counts(options.rows, n))) for batch in batches) / len(batches)
            print(f"| {kind} | {n} | {before:.1%} | {after:.1%} |")


if __name__ == "__main__":
    main()
