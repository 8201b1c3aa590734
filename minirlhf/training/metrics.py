"""What a run writes down while it goes, and what the names in it mean."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minirlhf.training.checkpoint import write_whole

# name: (unit, meaning). Anchors of docs/metrics.md are these names.
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("-", "what the optimizer minimises; in PPO and GRPO its size says nothing, watch score_mean and kl"),
    "accuracy": ("share", "pairs that are ranked right, answers or steps judged right"),
    "policy_loss": ("score", "clipped surrogate; near 0 at every first minibatch, because advantages are whitened"),
    "value_loss": ("score^2", "half the squared error of the value function"),
    "kl": ("nats per sequence", "estimated KL(policy || reference); single batches may be negative"),
    "kl_coef": ("score per nat", "what a nat of KL costs"),
    "entropy": ("nats per token", "how undecided the policy is; a fall to 0 is a collapse"),
    "ratio": (
        "-",
        "pi / pi_old, mean over tokens and over the updates of a step; 1 at the first update, near it after",
    ),
    "clip_fraction": ("share", "tokens whose gradient the clip took away"),
    "approx_kl": ("nats per token", "how far the updates of this step have moved the policy"),
    "explained_variance": ("share", "of the returns, by the value function; 1 is perfect, 0 a constant, below 0 worse"),
    "score_mean": ("score", "mean of the reward function over the batch, before KL and missing-EOS penalty"),
    "score_std": ("score", "its spread over the batch"),
    "response_length": ("tokens", "mean length of the completions, EOS included"),
    "ended": ("share", "completions that ended by themselves (EOS or a stop string)"),
    "mass_kept": ("share", "probability that top-k / top-p left to sample from; 1 without truncation"),
    "updates": ("updates", "optimizer steps in this step; fewer when target_kl stopped it"),
    "margin": ("score", "mean of chosen minus rejected score; in DPO, of beta times the log-ratios"),
    "equal_groups": (
        "share",
        "groups whose completions all score the same: compared, they teach nothing",
    ),
    "entropy_coef": ("score per nat", "what a nat of entropy earns, if it adapts"),
    "chosen_reward": ("score", "DPO's implicit reward of the chosen answers; it usually falls, see #chosen_reward"),
    "rejected_reward": ("score", "that of the rejected ones; it should fall faster"),
    "chosen_logps": ("nats", "log-prob of the chosen answers (per token where the loss takes means)"),
    "rejected_logps": ("nats", "log-prob of the rejected ones"),
    "reward_mean": ("score", "mean implicit reward of single answers, liked and not"),
    "win_prob": ("share", "the judge's chance that the policy's answer beats its opponent's"),
    "on_policy": ("-", "1 if this step's answers were the student's own, 0 if the data's"),
    "router_loss": ("-", "how unevenly experts are used: num_experts_per_tok if evenly, up to num_experts if not"),
    "grad_norm": ("norm", "length of the gradient before clipping"),
    "lr": ("per update", "learning rate"),
}


def metrics_help() -> str:
    """The table of metrics that `--help` prints below the settings."""
    lines = ["metrics (explained in docs/metrics.md#NAME)"]
    lines += [f"  {name:<20}  [{unit}]  {meaning}" for name, (unit, meaning) in METRICS.items()]
    lines += ["  eval/NAME             the same, or what the task measures, on held-out rows"]
    return "\n".join(lines)


class Journal:
    """The files of one run that grow line by line: metrics, timings, samples, log.

    `metrics.jsonl` holds nothing that depends on the machine, so a run that was killed and resumed writes the same.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self.folder = folder
        self._last = time.perf_counter()
        for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl"):
            _drop_lines_from(folder / name, resumed_at)
        self._files = {
            name: (folder / name).open("a", encoding="utf-8")
            for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "log.txt")
        }

    def step(self, step: int, metrics: dict[str, float], samples: list[dict[str, Any]]) -> None:
        now = time.perf_counter()
        self._write("metrics.jsonl", {"step": step, **metrics})
        memory = {"memory_mb": peak_memory_mb()}
        if torch.cuda.is_available():
            memory["gpu_memory_mb"] = torch.cuda.max_memory_allocated() // 1_000_000
        self._write("timings.jsonl", {"step": step, "seconds": round(now - self._last, 4), **memory})
        for sample in samples:
            self._write("samples.jsonl", {"step": step, **sample})
        self._last = now

    def log(self, text: str, show: bool) -> None:
        """One line in log.txt and, if `show`, above the progress bar."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", file=self._files["log.txt"], flush=True)
        if show:
            tqdm.write(text, file=sys.stderr)

    def sync(self) -> None:
        """Have everything on the disk: a checkpoint must not outlive the lines of the steps before it."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def _write(self, name: str, row: dict[str, Any]) -> None:
        print(json.dumps(row, ensure_ascii=False), file=self._files[name], flush=True)


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1_000_000 if sys.platform == "darwin" else 1_000)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A small table for the terminal: first column left, others right; floats with three digits, None as a dash."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    cells = [header, *[[cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _drop_lines_from(path: Path, step: int) -> None:
    """Forget the lines of steps that will be trained again, and a line that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # a text may hold U+2028: no splitlines
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
    write_whole(path, "".join(kept))
