"""How often the doctor is right: healthy runs and runs with each fault of the museum, into docs/doctor.md.

python tests/benchmarks/doctor.py --runs 20 [--folder runs/doctor]   # about 30 minutes; goes on where it was stopped
python tests/benchmarks/doctor.py --report                           # from the runs in the folder alone
"""

import argparse
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from minirlhf.seeing.doctor import RULES, examine  # noqa: E402 (after sys.path)
from minirlhf.seeing.reading import SeenRun, read_run  # noqa: E402
from tests.bugs.faults import FAULTS  # noqa: E402
from tests.museum import run  # noqa: E402

PAGE = ROOT / "docs" / "doctor.md"
MARK = "<!-- written by tests/benchmarks/doctor.py -->"
HEALTHY = ("ppo", "grpo", "sft", "reward_model", "dpo")  # programs of the museum
AT_ONCE = 5  # runs of one start of Python
TUNED = 10  # seeds below this number were looked at while thresholds were chosen


def make(folder: Path, runs: int) -> None:
    """Make the runs that are not in the folder yet; keep their texts, not their models."""
    kinds = [(f"healthy-{program}", program) for program in HEALTHY] + [(name, "") for name in FAULTS]
    for first in range(0, runs, AT_ONCE):
        for name, program in kinds:
            done, seeds = folder / name / f"done-{first}", range(first, min(runs, first + AT_ONCE))
            part = done.parent
            if done.exists() and all((part / f"seed-{seed}").exists() for seed in seeds):
                continue
            done.unlink(missing_ok=True)  # of an earlier start with fewer runs
            for seed in seeds:
                shutil.rmtree(part / f"seed-{seed}", ignore_errors=True)
            run(name, part, seed=first, runs=len(seeds), program=program)
            for heavy in (*part.glob("*/checkpoints"), *part.glob("*/model")):
                shutil.rmtree(heavy)
            done.touch()
            print(f"{name}: seeds {first} to {seeds[-1]}", flush=True)


def read(folder: Path) -> list[SeenRun]:
    return [read_run(path) for path in sorted(folder.glob("seed-*"))]


def report(folder: Path) -> str:
    healthy = {program: read(folder / f"healthy-{program}") for program in HEALTHY}
    alarms = Counter(each.rule for runs in healthy.values() for one in runs for each in examine(one))
    steps = sum(one.steps for runs in healthy.values() for one in runs)
    lines = [
        f"{sum(map(len, healthy.values()))} healthy runs ({', '.join(HEALTHY)}; {steps:,} steps) and "
        f"{counted(folder)} runs of each fault (seeds 0, 1, ...):",
        "",
        "| fault | its rule | found | at step (median) | found by any rule | other rules that fire |",
        "|---|---|---:|---:|---:|---|",
    ]
    found_at_all = made = 0
    for name, fault in FAULTS.items():
        runs = [examine(one) for one in read(folder / name)]
        own = [each.step for found in runs for each in found if each.rule == fault.rule]
        others = Counter(each.rule for found in runs for each in found if each.rule != fault.rule)
        found_at_all, made = found_at_all + sum(map(bool, runs)), made + len(runs)
        often = [rule for rule, count in others.most_common(2) if count > len(runs) / 2]
        cells = [name, f"`{fault.rule}`" if fault.rule else "none", f"{len(own)}/{len(runs)}" if fault.rule else "-"]
        cells += [f"{statistics.median(own):.0f}" if own else "-", f"{sum(map(bool, runs))}/{len(runs)}"]
        lines.append(f"| {' | '.join([*cells, ', '.join(often) or '-'])} |")
    lines += ["", "| rule | faults that it names | false alarms | per 1,000 healthy steps |", "|---|---:|---:|---:|"]
    for rule in RULES:
        named = sum(fault.rule == rule for fault in FAULTS.values())
        lines.append(f"| `{rule}` | {named or '-'} | {alarms[rule]} | {1000 * alarms[rule] / steps:.2f} |")
    count, total = sum(map(len, healthy.values())), sum(alarms.values())
    fair = sum(len(runs[TUNED:]) for runs in healthy.values())
    lines += [
        "",
        f"In all, {found_at_all} of {made} runs with a fault get a finding ({found_at_all / made:.0%}).",
        f"{count} healthy runs have {total} false alarms, {1000 * total / steps:.2f} in 1,000 steps.",
    ]
    if fair and not total:
        bound = f"so with 95% confidence fewer than {3 / fair:.0%} of such runs get one."
        lines.append(f"{fair} of them have seeds that chose no threshold; {bound}")
    return "\n".join(lines)


def counted(folder: Path) -> str:
    """ "20", or "5 to 10" if the benchmark was stopped."""
    counts = sorted({len(list((folder / name).glob("seed-*"))) for name in FAULTS})
    return " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "doctor")
    parser.add_argument("--report", action="store_true", help="make no run")
    asked = parser.parse_args()
    if not asked.report:
        make(asked.folder, asked.runs)
    figures = report(asked.folder)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARK)
    after = rest.partition(MARK)[2]
    PAGE.write_text(f"{before}{MARK}\n\n{figures}\n\n{MARK}{after}", encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
