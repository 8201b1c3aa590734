"""docs/museum: README.md with a section for each fault, and quiz.html. Both are made from the benchmark's runs."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from minirlhf.seeing.doctor import examine
from minirlhf.seeing.page import as_json
from minirlhf.seeing.reading import SeenRun, read_run

from .fault import Fault
from .faults import FAULTS

TEMPLATE = Path(__file__).with_name("quiz.html")
WATCHED = {"ppo": "score_mean", "grpo": "score_mean", "sft": "loss", "reward_model": "accuracy", "dpo": "accuracy"}
SMOOTH = 5  # steps of a moving mean
SAMPLED = ["score_mean", "kl", "entropy", "response_length", "ended", "approx_kl", "clip_fraction", "grad_norm"]
CHARTS = {  # program -> the metrics that the quiz draws
    "ppo": [*SAMPLED, "explained_variance", "policy_loss"],
    "grpo": [*SAMPLED, "equal_groups", "loss"],
    "sft": ["loss", "eval/loss", "entropy", "grad_norm", "lr"],
    "reward_model": ["loss", "accuracy", "margin", "grad_norm", "eval/loss", "eval/accuracy"],
    "dpo": ["loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "grad_norm", "eval/accuracy"],
}
HEAD = """# The bug museum

Each room shows a fault of RLHF code as a change of one line. Faults marked "seen" were real faults of other projects;
the others are slips that are easily made. A fault is never an option of the package: `tests/museum.py` copies the
package into a temporary folder, changes the line there, and runs the copy on a task of the size of
[letter_e](../../examples/letter_e.py), where a random network learns to write the letter e and to end.

```text
python tests/museum.py dead_critic --seed 1      # the change, a run with it, and the doctor's findings
python tests/museum.py dead_critic --test        # the test that catches it, on the copy
python tests/benchmarks/doctor.py --runs 20      # runs with all faults, into runs/doctor
python tests/museum.py --page runs/doctor        # writes this page and the quiz
```

Test yourself: open [quiz.html](quiz.html) in a browser. It shows the curves of a run, and asks for the fault.

*Hides until* is the step from which on the score (PPO, GRPO), loss (SFT) or accuracy (pairs) of a run lies outside the
range of the healthy runs, as a median over its runs. So long, somebody who watches this metric alone sees nothing. The
healthy runs have the default settings: if a fault has others, such as a temperature of 0.6, the step tells of both.
*Doctor* is the rule of the [doctor](../doctor.md) that should see the fault, and the number of runs in which it does.

"""
ROOM = """## {name}

*{title}.*
`minirlhf/{file}`, {program}{settings}; {seen}.

```diff
{diff}
```

{effect}

- Hides until: {hides}.
- Test: `{test}`
- Doctor: {doctor}.

"""


def values_of(run: SeenRun, metric: str) -> list[tuple[int, float]]:
    series = run.metrics.get(metric)
    return [(bucket.step, bucket.mean) for bucket in series.buckets] if series else []


def smoothed(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Step -> the mean of the last `SMOOTH` values."""
    values = [value for _, value in points]
    return {step: statistics.fmean(values[max(0, k - SMOOTH + 1) : k + 1]) for k, (step, _) in enumerate(points)}


def seen_from(run: SeenRun, healthy: Sequence[SeenRun], metric: str) -> int | None:
    """The step from which on the metric lies outside the range of the healthy runs; None: it ends inside."""
    curve, others = smoothed(values_of(run, metric)), [smoothed(values_of(one, metric)) for one in healthy]
    inside = [step for step, x in curve.items() if min(o[step] for o in others) <= x <= max(o[step] for o in others)]
    later = [step for step in curve if step > max(inside, default=0)]
    return later[0] if later else None


def room(name: str, fault: Fault, runs: Sequence[SeenRun], healthy: Sequence[SeenRun]) -> str:
    steps = [seen_from(run, healthy, WATCHED[fault.program]) for run in runs]
    found = sum(any(each.rule == fault.rule for each in examine(run)) for run in runs)
    unseen = steps.count(None) > len(steps) / 2
    late = statistics.median([step if step else max(run.steps for run in runs) for step in steps])
    return ROOM.format(
        name=name,
        title=fault.title[0].upper() + fault.title[1:],
        file=fault.file,
        program=fault.program,
        settings="".join(f", with {setting}" for setting in fault.settings),
        seen="seen in other code" if fault.real else "a likely slip",
        diff="\n".join(
            f"{sign} {line}" for sign, text in (("-", fault.old), ("+", fault.new)) for line in lines_of(text)
        ),
        effect="\n".join(textwrap.wrap(fault.effect, 118)),
        hides="the end" if unseen else f"step {late:.0f} of {max(run.steps for run in runs)}",
        test=fault.test,
        doctor=f"`{fault.rule}`, {found} of {len(runs)} runs" if fault.rule else "no rule sees it",
    )


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def museum(healthy: dict[str, list[SeenRun]], faulty: dict[str, list[SeenRun]]) -> str:
    return HEAD + "".join(room(name, f, faulty[name], healthy[f.program]) for name, f in FAULTS.items()).rstrip() + "\n"


def quiz(healthy: dict[str, list[SeenRun]], faulty: dict[str, list[SeenRun]]) -> str:
    """The page: for each program the ranges of its healthy runs, for each fault the curves of its first run."""
    data = {"healthy": {}, "rooms": []}
    for program, runs in healthy.items():
        data["healthy"][program] = {name: band(runs, name) for name in CHARTS[program]}
    for name, fault in FAULTS.items():
        curves = {metric: rounded(values_of(faulty[name][0], metric)) for metric in CHARTS[fault.program]}
        shown = {"name": name, "program": fault.program, "title": fault.title, "effect": fault.effect, "curves": curves}
        shown |= {"file": fault.file, "old": lines_of(fault.old), "new": lines_of(fault.new)}
        data["rooms"].append(shown | {"rule": fault.rule, "test": fault.test})
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("{{data}}")
    return before + as_json(data) + after


def band(runs: Sequence[SeenRun], metric: str) -> list[list[float]]:
    """[step, lowest, highest] of the healthy runs at each step."""
    columns = [dict(values_of(run, metric)) for run in runs]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    return [[step, *(float(f"{edge(c[step] for c in columns):.4g}") for edge in (min, max))] for step in steps]


def rounded(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    return [[step, float(f"{value:.4g}")] for step, value in points]


def write(folder: Path, runs: Path) -> None:
    """Write README.md and quiz.html into `folder`, from the benchmark's folder of runs."""
    of = {path.name: [read_run(seed) for seed in sorted(path.glob("seed-*"))] for path in runs.iterdir()}
    healthy = {program: of[f"healthy-{program}"] for program in WATCHED}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(museum(healthy, of), encoding="utf-8")
    (folder / "quiz.html").write_text(quiz(healthy, of), encoding="utf-8")
