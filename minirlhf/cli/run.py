"""`minirlhf run`: list and show runs, find the best run, read samples, follow and draw runs.

minirlhf run list runs                                # steps, time, metric, differences, checkpoints
minirlhf run best runs                                # the best run and its checkpoint, by the runs' own metric
minirlhf run best runs --metric eval/gold_reward      # by another metric
minirlhf run show runs/ppo-001                        # settings, metrics, checkpoints, samples
minirlhf run samples runs/ppo-001                     # the newest samples: who wrote what, in colours
minirlhf run page runs/ppo-001 runs/ppo-002           # one HTML page: curves, samples, settings
minirlhf run watch runs/ppo-001                       # follow a run from another terminal
minirlhf run plot runs/ppo-001 runs/ppo-002           # curves in the terminal
minirlhf run csv runs/ppo-001 -o metrics.csv          # all numbers as a table for other programs
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minirlhf.cli.run_pictures import add_pictures, show_pictures
from minirlhf.columns import aligned, printable, shortened, wrapped
from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.training.fields import as_text
from minirlhf.training.progress import EvaluationTable
from minirlhf.training.runs import FoundRun, better, differences, flat, runs_below, samples_of
from minirlhf.training.vocabulary import METRICS

WIDTH = 80  # columns
NAME = 25  # columns of the name of a run in a table
MOST_ROWS = 20  # evaluations that are shown of one run
# The metric of a run in the list: the run's own best_metric, or the first of these that the run has.
USUAL = ("eval/gold_reward", "eval/model_reward", "eval/accuracy", "eval/loss", "score_mean", "accuracy", "loss")


def list_runs(folder: Path, metric: str | None = None, mode: str | None = None) -> str:
    runs, damaged = _found(folder)
    if metric and not any(metric in run.curves for run in runs):
        raise _no_metric(metric, runs)
    names = {id(run): _name(run, folder) for run in runs}
    rows = []
    for run in runs:
        own, own_mode = _own_metric(run)
        chosen = metric or own
        best = ("-", "-")
        if chosen in run.curves:
            value, step = run.curves[chosen].best(mode or (own_mode if chosen == own else better(chosen)))
            best = _number(value), str(step)
        rows.append([names[id(run)], _steps(run), _time(run.seconds), shortened(printable(chosen or "-"), 18), *best])
    parts = [aligned(["run", "steps", "time", "metric", "best", "at step"], rows)]
    for kind in dict.fromkeys(run.kind for run in runs):
        same = [run for run in runs if run.kind == kind]
        if different := differences(same):
            lines = [_difference(name, values, [names[id(run)] for run in same]) for name, values in different.items()]
            parts.append("\n".join([f"settings that differ between the runs of {printable(kind)}", *lines]))
    parts.append("\n".join(["checkpoints", *(_indented(names[id(run)] + ": ", _checkpoints(run)) for run in runs)]))
    return "\n\n".join([*parts, *_skipped(damaged)])


def best_run(folder: Path, metric: str | None = None, mode: str | None = None) -> str:
    """The run with the best value of a metric at any step, then all others in their order.

    metric: None compares the runs that share their own best metric, for each such metric.
    """
    runs, damaged = _found(folder)
    if metric and not any(metric in run.curves for run in runs):
        raise _no_metric(metric, runs)
    wanted = {(metric, mode or better(metric)): runs} if metric else {}
    for run in [] if metric else runs:
        own, own_mode = _own_metric(run)
        wanted.setdefault((own, mode or own_mode), []).append(run)
    if not (known := {goal: same for goal, same in wanted.items() if goal[0]}):
        raise InputError(f"{folder}: needed a run with a metric, got none that has made a step; wait for its first")
    parts = [_best_of(same, *goal, folder) for goal, same in known.items()]
    without = [_name(run, folder) for run in wanted.get((None, mode or "max"), ())]
    more = [_indented("without a metric: ", ", ".join(without))] if without else []
    return "\n\n".join(["\n\n\n".join(parts), *more, *_skipped(damaged)])


def _own_metric(run: FoundRun) -> tuple[str | None, str]:
    """-> (the metric that decides a run's best step, "max" or "min"); (None, "max") for a run without a step."""
    own = run.settings.get("run.best_metric")
    chosen = next((name for name in (own, *USUAL) if name in run.curves), next(iter(run.curves), None))
    own_mode = run.settings.get("run.best_mode") if chosen == own else None
    return chosen, own_mode or (better(chosen) if chosen else "max")


def _best_of(runs: Sequence[FoundRun], metric: str, mode: str, folder: Path) -> str:
    having = [run for run in runs if metric in run.curves]
    having.sort(key=lambda run: run.curves[metric].best(mode)[0], reverse=mode == "max")
    value, step = having[0].curves[metric].best(mode)
    first = having[0]
    saved = first.folder / "checkpoints" / f"step-{step}"
    kept = f"of that step none is left; the run has {_checkpoints(first)}"
    text = [  # a path stands whole on a line, so that it can be copied
        f"{printable(metric)} {_number(value)} after {step} steps",
        f"run:        {printable(str(first.folder))}",
        f"checkpoint: {printable(str(saved)) if step in first.checkpoints else kept}",
    ]
    rows = []
    for run in having:
        value, step = run.curves[metric].best(mode)
        saved = "yes" if step in run.checkpoints else "no"
        rows.append(
            [_name(run, folder), _number(value), str(step), saved, _number(run.curves[metric].last), _steps(run)]
        )
    header = ["run", f"{'highest' if mode == 'max' else 'lowest'}", "at step", "saved", "last", "steps"]
    without = [_name(run, folder) for run in runs if metric not in run.curves]
    more = [_indented(f"without {printable(metric)}: ", ", ".join(without))] if without else []
    return "\n\n".join(["\n".join(text), aligned(header, rows), *more])


def show_runs(folder: Path) -> str:
    """A run, or each run of a pipeline."""
    runs, damaged = _found(folder)
    direct = [run for run in runs if run.folder in (folder, *folder.glob("*"))]
    if not direct:
        names = ", ".join(str(run.folder) for run in runs[:5])
        raise InputError(f"{folder}: needed a run or a pipeline, found runs further below; name one of them: {names}")
    if len(direct) > 10:
        raise InputError(f"{folder}: holds {len(direct)} runs; name one of them, or use minirlhf run list")
    defaults = _defaults()
    return "\n\n\n".join([*(_shown(run, defaults) for run in direct), *_skipped(damaged)])


def _shown(run: FoundRun, defaults: dict[str, Any]) -> str:
    facts = [f"{_steps(run)} steps", "finished" if run.finished else "not finished"]
    facts += [_time(run.seconds)] if run.seconds else []
    facts += [f"{run.memory_mb:,} MB at the peak"] if run.memory_mb else []
    parts = [f"{printable(str(run.folder))}\n  {', '.join(facts)}"]
    changed = [
        _indented(f"{printable(name)} = ", f"{_value(value)} (default: {_value(defaults[name])})")
        if name in defaults
        else _indented(f"{printable(name)} = ", _value(value))
        for name, value in run.settings.items()
        if name not in ("output", "resume") and not (name in defaults and defaults[name] == value)
    ]
    parts.append("\n".join(["settings that differ from the defaults", *(changed or ["  none"])]))
    if run.evaluations:
        parts.append(_evaluations(run))
    if run.curves:
        rows = [
            [shortened(printable(name), NAME), *map(_number, (curve.last, curve.lowest[0], curve.highest[0])),
             METRICS.get(name.removeprefix("eval/"), ("",))[0]]
            for name, curve in run.curves.items()
        ]  # fmt: skip
        parts.append(aligned(["metric", "last", "lowest", "highest", "unit"], rows))
    parts.append("\n".join(["checkpoints", _indented("", _checkpoints(run))]))
    if samples := samples_of(run.folder)[0]:
        lines = [_sample(row) for row in samples[:4]]
        parts.append(f"samples after {samples[0]['step'] + 1} steps\n" + "\n\n".join(lines))
    return "\n\n".join(parts)


def _evaluations(run: FoundRun) -> str:
    """The table that the terminal showed; at most 20 rows, evenly spaced."""
    rows, count = run.evaluations, min(MOST_ROWS, len(run.evaluations))
    chosen = [rows[k * (len(rows) - 1) // max(1, count - 1)] for k in range(count)]
    shape = EvaluationTable(shortened(printable(run.folder.name), 12), ("score_mean",))
    lines = [shape.row(row["step"] + 1, {k: x for k, x in row.items() if k != "step"}) for row in chosen]
    lines += [trend] if (trend := shape.trend()) else []
    title = "evaluations" if count == len(rows) else f"{count} of {len(rows)} evaluations"
    return "\n".join([title, *lines])


def _sample(row: dict[str, Any]) -> str:
    lines = []
    for name, value in row.items():
        if name != "step" and not isinstance(value, list):  # the completion is the text of all turns and all tokens
            text = printable(value) if isinstance(value, str) else _number(value)
            lines.append(_indented(f"{shortened(printable(name), 20)}: ", shortened(text, 4 * WIDTH) or "(empty)"))
    return "\n".join(lines)


def settings_classes() -> dict[str, type]:
    """Table of config.toml -> dataclass of its settings, for every algorithm."""
    from minirlhf import algorithms  # here, because it needs torch
    from minirlhf.jobs.settings import PipelineConfig, sections

    own = {
        "ppo": algorithms.PPOConfig,
        "grpo": algorithms.GRPOConfig,
        "dpo": algorithms.DPOConfig,
        "unpaired": algorithms.UnpairedConfig,
        "online_dpo": algorithms.OnlineDPOConfig,
        "distillation": algorithms.DistillationConfig,
        "process_reward": algorithms.ProcessRewardConfig,
    }
    classes: dict[str, type] = {}
    for name, config in own.items():
        classes |= sections(name, config, job=PipelineConfig, after=("sft", "reward"))
    return classes


def _defaults() -> dict[str, Any]:
    """Full name of a setting -> its default, as config.toml would have it. A program may have other defaults."""
    from minirlhf.training.settings import settings_to_toml

    return flat(tomllib.loads(settings_to_toml({name: cls() for name, cls in settings_classes().items()})))


def _found(folder: Path) -> tuple[list[FoundRun], list[str]]:
    """Raises: InputError if the folder has no whole run."""
    runs, damaged = runs_below(folder)
    if not runs:
        why = f"; skipped: {damaged[0]}" if damaged else "; a run has config.toml and metrics.jsonl"
        raise InputError(f"{folder}: needed a folder with runs in it, found none{why}")
    return runs, damaged


def _no_metric(metric: str, runs: Iterable[FoundRun]) -> InputError:
    known = dict.fromkeys(name for run in runs for name in run.curves)
    close = nearest(metric, known) if known else ""
    return InputError(f"--metric: no run has {shown(metric)}{close or '; metrics: ' + (', '.join(known) or 'none')}")


def _name(run: FoundRun, folder: Path) -> str:
    name = str(run.folder.relative_to(folder)) if run.folder != folder else str(folder)
    return shortened(printable(name), NAME)


def _steps(run: FoundRun) -> str:
    return f"{run.steps}" if run.finished or run.planned in (None, run.steps) else f"{run.steps}/{run.planned}"


def _time(seconds: float | None) -> str:
    if seconds is None:  # the run has no timings.jsonl
        return "-"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return (
        f"{hours}h {minutes % 60:02}m"
        if hours
        else f"{minutes}m {int(seconds) % 60:02}s"
        if minutes
        else f"{seconds:.0f}s"
    )


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return printable(str(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(value: Any) -> str:
    return "not set" if value is None else printable(as_text(value)) or '""'


def _difference(name: str, values: Sequence[Any], names: Sequence[str]) -> str:
    """ "seed: 0 (a, b), 1 (c)"."""
    groups: dict[str, list[str]] = {}
    for value, run in zip(values, names, strict=True):
        groups.setdefault(_value(value), []).append(run)
    return _indented(
        f"{printable(name)}: ", "; ".join(f"{value} ({', '.join(each)})" for value, each in groups.items())
    )


def _checkpoints(run: FoundRun) -> str:
    saved = [f"step-{step} (best)" if step == run.best else f"step-{step}" for step in run.checkpoints]
    saved += ["model"] if run.finished else []
    return ", ".join(saved + [f"{printable(name)} (incomplete)" for name in run.incomplete]) or "none"


def _indented(first: str, text: str) -> str:
    """Lines of at most 80 columns, indented by 2; the lines after the first are indented by 6."""
    lines = wrapped(first + text, WIDTH - 6)
    return "\n".join([f"  {lines[0]}", *(f"      {line}" for line in lines[1:])])


def _skipped(damaged: Sequence[str]) -> list[str]:
    return (
        ["\n".join(["skipped, because a file is damaged", *(_indented("", line) for line in damaged)])]
        if damaged
        else []
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "minirlhf run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "list | best | show | samples | page | watch | plot | csv"
    commands = top.add_subparsers(dest="command", required=True, metavar=names)
    modes = {
        "choices": ("max", "min"),
        "help": "the better end of the metric; default: min for losses and KL, else max",
    }
    listing = commands.add_parser("list", help="every run below a folder")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    listing.add_argument("--metric", help="such as eval/gold_reward; default: a usual metric of each run")
    listing.add_argument("--mode", **modes)
    best = commands.add_parser("best", help="the run with the best value of a metric, and its checkpoint")
    best.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    best.add_argument("--metric", help="such as eval/gold_reward; default: the metric that decides a run's best step")
    best.add_argument("--mode", **modes)
    showing = commands.add_parser("show", help="settings, metrics, checkpoints and samples of a run")
    showing.add_argument("folder", type=Path, metavar="DIR", help="a run, or the folder of a pipeline")
    samples = commands.add_parser("samples", help="the samples of a run: who wrote what")
    samples.add_argument("folder", type=Path, metavar="DIR", help="a run, or the folder of a pipeline")
    samples.add_argument("--step", type=int, help="samples after this number of steps; default: the last samples")
    samples.add_argument("--n", type=int, default=4, help="samples of each run, at most")
    add_pictures(commands)
    return top


def main(arguments: list[str]) -> None:
    asked = parser().parse_args(arguments)
    match asked.command:
        case "list":
            print(list_runs(asked.folder, asked.metric, asked.mode))
        case "best":
            print(best_run(asked.folder, asked.metric, asked.mode))
        case "show":
            print(show_runs(asked.folder))
        case "samples":
            from minirlhf.cli.run_samples import show_samples

            print(show_samples(asked.folder, asked.step, asked.n))
        case _:
            show_pictures(asked)
