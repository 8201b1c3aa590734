"""The main job over ten seeds, as this processor computes it and as it computes without its newer instructions.

python tests/benchmarks/main_job.py                     # both columns, seeds 0-9: the table of docs/results.md
python tests/benchmarks/main_job.py --column avx2       # one column; a second terminal can run the other
python tests/benchmarks/main_job.py --seeds 0           # run nothing; print the table of the results in the folder

Each result is a file in the output folder. Stop whenever you like: the same command goes on.
Arguments after `--` go to the program: `-- --ppo.kl_coef 0.1`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "examples" / "ppo.py"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COLUMNS = {"default": {}, "avx2": AVX2}  # name -> variables of the environment
MEASURES = ("reward model", "gold", "grammatical", "KL", "distinct-2 / before", "MB", "processor s", "wall s")
BEST_IS_LOW = ("KL", "MB", "processor s", "wall s")  # the worst of these is the highest


def run(seed: int, column: str, arguments: list[str]) -> dict[str, float]:
    """Run the main job in a folder that is deleted afterwards -> its measures."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "job"
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = [sys.executable, str(PROGRAM), "--seed", str(seed), "--output", str(output), *arguments]
        subprocess.run(command, check=True, env=os.environ | COLUMNS[column])
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        found = json.loads((output / "summary.json").read_text())
        timings = (output / "ppo" / "timings.jsonl").read_text().splitlines()
    after = found["after"]
    distinct = after["distinct_2"] / found["before"]["distinct_2"]
    peak = max(json.loads(line)["memory_mb"] for line in timings)
    values = (found["reward_model_accuracy"], after["gold_reward"], after["grammatical"], found["kl"], distinct)
    return dict(zip(MEASURES, (*values, peak, seconds, found["seconds"]), strict=True))


def table(results: dict[tuple[str, int], dict[str, float]]) -> str:
    """A row for each result; then the worst, the mean and the standard deviation of each column and of both."""
    lines = [f"| column | seed | {' | '.join(MEASURES)} |", "|---" * (2 + len(MEASURES)) + "|"]

    def add(column: str, name: object, values: dict[str, float]) -> None:
        numbers = [f"{values[m]:.0f}" if m.endswith(("s", "MB")) else f"{values[m]:.3f}" for m in MEASURES]
        lines.append(f"| {column} | {name} | {' | '.join(numbers)} |")

    for (column, seed), values in results.items():
        add(column, seed, values)
    for column in [*COLUMNS, "both"]:
        chosen = [values for (its, _), values in results.items() if column in (its, "both")]
        if len(chosen) > 1:
            add(column, "worst", {m: (max if m in BEST_IS_LOW else min)(v[m] for v in chosen) for m in MEASURES})
            add(column, "mean", {m: statistics.mean(v[m] for v in chosen) for m in MEASURES})
            add(column, "deviation", {m: statistics.stdev(v[m] for v in chosen) for m in MEASURES})
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/main_job", type=Path, help="folder of the results")
    parser.add_argument("--seeds", default=10, type=int, help="number of seeds, from 0")
    parser.add_argument("--column", choices=COLUMNS, help="run this column only")
    parser.add_argument("arguments", nargs="*", help="arguments of the program")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = {(column, seed): f"{column}-{seed}.json" for column in COLUMNS for seed in range(100)}
    for seed in range(options.seeds):
        for column in COLUMNS if options.column is None else [options.column]:
            path = options.output / files[column, seed]
            if not path.exists():
                path.write_text(json.dumps(run(seed, column, options.arguments)))
    paths = {key: options.output / name for key, name in files.items()}
    print(table({key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}))


if __name__ == "__main__":
    main()
