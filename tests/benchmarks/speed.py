"""Our speed and peak memory against transformers, trl and peft, on exactly the same work.

python tests/benchmarks/speed.py [--only sft,dpo] [--reps 5] [--threads 2] [--trl-path DIR]

Both sides have the same shapes, ids and lengths, in fp32. Each side is a process of its own, so its peak memory is its
own, and the two take turns step by step, so a busy moment of the machine meets both. The table shows medians. "Speed"
is the peer's time over ours, the median over the pairs of turns; "by processor" compares processor seconds, which
neighbours on the machine disturb less. Memory is the peak of the process, in brackets its rise once the models exist.

`pip install .[parity]` gives the peers. trl has a PPO trainer up to 1.12 only: `pip install --no-deps --target DIR
trl==1.12.0`, and then `--trl-path DIR`. On a busy machine `--threads 1` disturbs the figures least.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
WARM_UP = 2  # turns that are not counted


@dataclass(frozen=True)
class Row:
    work: str  # in words
    shape: str
    ours: str  # a function of speed_ours.py
    peer: str  # a function of speed_peers.py
    package: str  # that the peer needs
    options: dict = field(default_factory=dict)


TABLE = {
    "generate": Row("generate, 16 x (64 + 128)", "S", "sampling", "sampling", "transformers"),
    "generate-mixed": Row(
        "generate, 4 x 8, 8 to 128 tokens", "S", "sampling", "sampling", "transformers", {"mixed": True}
    ),
    "sft": Row("SFT, 8 x 256", "S", "sft", "sft", "trl"),
    "sft-mixed": Row("SFT, 8 rows of 32 to 256", "S", "sft", "sft", "trl", {"mixed": True}),
    "sft-m": Row("SFT, 8 x 256", "M", "sft", "sft", "trl"),
    "lora-m": Row("LoRA SFT, 8 x 256", "M", "sft", "sft", "peft", {"lora": True}),
    "dpo": Row("DPO, 4 pairs", "S", "dpo", "dpo", "trl"),
    "grpo": Row("GRPO, 4 x 8, 64 + 64", "S", "grpo", "grpo", "trl"),
    "grpo-mixed": Row("GRPO, 4 x 8, 8 to 64 tokens", "S", "grpo", "grpo", "trl", {"mixed": True}),
    "ppo": Row("PPO, four models, 16 x (64 + 64)", "S", "ppo", "ppo", "trl.experimental.ppo"),
    "ppo-trunk": Row(
        "PPO, value on the trunk, against four models", "S", "ppo", "ppo", "trl.experimental.ppo", {"trunk": True}
    ),
    "logps": Row("log-probs, against all logits", "V", "logps", "logps", "torch"),
    "logps-fused": Row("fused loss, against all logits", "V", "logps", "logps", "torch", {"fused": True}),
    "products-m": Row("SFT, 8 x 256, against its products alone", "M", "sft", "training_products", "torch"),
    "decode": Row("100 decode steps of 16 rows, against their products", "S", "decode", "decoding_products", "torch"),
    "decode-m": Row("100 decode steps of 16 rows, against their products", "M", "decode", "decoding_products", "torch"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLE), help=f"rows, with commas between: {', '.join(TABLE)}")
    parser.add_argument("--reps", type=int, default=5, help="counted turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-path", help="a folder with trl 1.12, for PPO")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in TABLE]:
        parser.error(f"--only: needed rows among {', '.join(TABLE)}, got {', '.join(unknown)}")
    print(machine(options.threads))
    print(HEAD, flush=True)
    for name in names:
        print(line(TABLE[name], *measure(name, options.reps, options.threads, options.trl_path)), flush=True)


def measure(name: str, reps: int, threads: int, trl_path: str | None) -> tuple[list[dict], list[dict] | None]:
    """-> the figures of our turns and of the peer's; None without the peer's package."""
    row, steps = TABLE[name], reps + WARM_UP
    path = [trl_path] if trl_path and row.peer == "ppo" else []
    sides = [Side("speed_ours.py", name, steps, threads, [])]
    if has(row.package, path):
        sides.append(Side("speed_peers.py", name, steps, threads, path))
    else:
        wanted = "--trl-path DIR with trl 1.12" if row.peer == "ppo" else "pip install .[parity]"
        print(f"{name}: ours alone, because {row.package} is not there; {wanted}", file=sys.stderr)
    for turn in range(steps):
        print(f"\r{name}: turn {turn + 1} of {steps} ", end="", file=sys.stderr, flush=True)
        for side in sides:
            side.take_turn()
    print("\r", end="", file=sys.stderr)
    figures = [side.end() for side in sides]
    return figures[0], figures[1] if len(figures) > 1 else None


def has(package: str, path: list[str]) -> bool:
    if package == "trl.experimental.ppo":
        return any((Path(folder) / package.replace(".", "/")).exists() for folder in path)
    return importlib.util.find_spec(package) is not None


class Side:
    """A process that works when it is its turn."""

    def __init__(self, script: str, name: str, steps: int, threads: int, path: list[str]) -> None:
        folders = [*path, str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": str(threads)}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- it lives as long as the process
        words = [sys.executable, str(HERE / script), name, str(steps), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(words, text=True, env=environment, **pipes)
        self.figures: list[dict] = []

    def take_turn(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"{' '.join(self.process.args)} failed:\n{self.log.read()[-2000:]}")
        self.figures.append(json.loads(answer))

    def end(self) -> list[dict]:
        """-> the figures of the turns that count."""
        self.process.stdin.close()
        self.process.wait()
        return self.figures[WARM_UP:]


def machine(threads: int) -> str:
    """The processor, its cores, and the versions of the packages."""
    names = [n for n in ("torch", "transformers", "trl", "peft", "accelerate") if importlib.util.find_spec(n)]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = found[0] if found else platform.processor()
    return (
        f"{processor}, {os.cpu_count()} cores, {threads} threads, fp32, Python {platform.python_version()}, {versions}"
    )


HEAD = """\
| work | shape | ours, s | tokens/s | peer, s | speed | by processor | peak MiB (rise) | peer's | peak over peer's |
|---|---|---|---|---|---|---|---|---|---|"""


def line(row: Row, ours: list[dict], peers: list[dict] | None) -> str:
    """A line of the table."""
    seconds, rate = median(turn["seconds"] for turn in ours), median(turn["tokens"] / turn["seconds"] for turn in ours)
    peak, rise = memory(ours)
    cells = [row.work, row.shape, f"{seconds:.3f}", f"{rate:,.0f}"]
    if peers is None:
        return f"| {' | '.join([*cells, *['-'] * 3, f'{peak:.0f} ({rise:.0f})', '-', '-'])} |"
    speed, processor = (
        median(b[name] / a[name] for a, b in zip(ours, peers, strict=True)) for name in ("seconds", "processor")
    )
    peer_peak, peer_rise = memory(peers)
    cells += [f"{median(turn['seconds'] for turn in peers):.3f}", f"{speed:.2f}", f"{processor:.2f}"]
    cells += [f"{peak:.0f} ({rise:.0f})", f"{peer_peak:.0f} ({peer_rise:.0f})", f"{peak / peer_peak:.2f}"]
    return f"| {' | '.join(cells)} |"


def memory(turns: list[dict]) -> tuple[float, float]:
    """-> the peak of the process and its rise during the turns, MiB."""
    return turns[-1]["peak"], turns[-1]["peak"] - turns[-1]["before"]


if __name__ == "__main__":
    main()
