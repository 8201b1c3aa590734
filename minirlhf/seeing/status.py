"""The state of a followed job in lines of at most 80 columns: stage, progress, time left, memory, numbers, samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirlhf.columns import printable, shortened
from minirlhf.seeing.following import Followed, FollowedRun
from minirlhf.seeing.story import duration
from minirlhf.training.progress import LABELS, EvaluationTable
from minirlhf.training.stage_plan import job_seconds_left

WIDTH = 80  # columns
BAR = 24  # columns
EIGHTHS = " ▏▎▍▌▋▊▉█"
SILENT = 60  # seconds and, in steps, the silence that is worth a word
SILENT_STEPS = 10
SAMPLES = 2  # that are shown
HEADLINE = ("score_mean",)  # of a step, in the table of evaluations
# Numbers of a step that are shown first; all others follow in the order of their file.
FIRST = ("loss", "score_mean", "accuracy", "kl", "entropy", "response_length", "margin")
LETTERS = 2000  # of a text that are read


def status(job: Followed, width: int = WIDTH) -> list[str]:
    """The present state: of the run that has started last."""
    if not job.runs:
        return [shortened(f"{printable(job.folder.name)}: no stage has begun yet", width)]
    run = job.runs[-1]
    lines = [_place(job, run), _time(job, run)]
    if run.memory:
        names = {"memory_mb": "memory", "gpu_memory_mb": "GPU memory"}
        lines.append(", ".join(f"{names[name]} {peak:,} MB" for name, peak in run.memory.items()) + " at the peak")
    if run.last:
        lines.append(_numbers(run))
    return [shortened(line, width) for line in (*lines, *_samples(run))]


def end(job: Followed) -> str:
    """How a job has ended that nobody works on, in one line."""
    open_runs = [run for run in job.runs if not run.finished]
    begun = {run.name for run in job.runs}
    missing = [name for name in job.stages if name not in begun]
    name = printable(job.folder.name)
    if open_runs:
        run = open_runs[-1]
        planned = "" if run.planned is None else f" of {run.planned:,}"
        text = f"{printable(run.name)} ended at step {run.step:,}{planned} before its last step"
    elif missing:
        text = f"ended before {printable(missing[0])}"
    else:
        text = f"finished in {duration(sum(run.seconds for run in job.runs))}"
    return shortened(f"{name}: {text}", WIDTH)


class Rows:
    """The tables of evaluations of a job: each call gives the lines that are new, below a header for each stage.

    most: rows of a stage at its first call.
    """

    def __init__(self, most: int = 20) -> None:
        self.most = most
        self._stages: dict[Path, _StageRows] = {}

    def new(self, job: Followed) -> list[str]:
        lines: list[str] = []
        for run in job.runs:
            stage = self._stages.setdefault(run.folder, _StageRows(run.name, self.most))
            lines += [line for row in stage.new(run) for line in row.split("\n")]
        return lines


class _StageRows:
    def __init__(self, name: str, most: int) -> None:
        self.table, self.most = EvaluationTable(name, HEADLINE), most
        self.step = 0  # of the last row
        self.has_ended = False

    def new(self, run: FollowedRun) -> list[str]:
        rows = [self.table.row(step, metrics) for step, metrics in run.evaluations if step > self.step]
        if self.step == 0 and len(rows) > self.most:
            note = f"{len(rows) - self.most:,} earlier evaluations of {printable(run.name)} are not shown"
            rows = [note, rows[0].split("\n")[0], *rows[-self.most :]]
        self.step = max([self.step, *(step for step, _ in run.evaluations)])
        if run.finished and not self.has_ended:
            self.has_ended = True
            rows += [trend] if (trend := self.table.trend()) else []
        return rows


def bar(share: float, width: int = BAR) -> str:
    """A share of `width` columns, in eighths of a column."""
    full, part = divmod(round(8 * width * min(1.0, max(0.0, share))), 8)
    return ("█" * full + EIGHTHS[part] * (part > 0)).ljust(width)


def _place(job: Followed, run: FollowedRun) -> str:
    stage = printable(run.name)
    if run.name in job.stages and len(job.stages) > 1:
        stage = f"stage {list(job.stages).index(run.name) + 1} of {len(job.stages)}: {stage}"
    if not run.planned:
        return f"{stage}: step {run.step:,}"
    return f"{stage} |{bar(run.step / run.planned)}| {run.step:,} of {run.planned:,} steps"


def _time(job: Followed, run: FollowedRun) -> str:
    parts = [duration(run.seconds)]
    if run.finished:
        parts.append("this stage has finished")
    elif (left := run.seconds_left) is not None:
        parts.append(f"about {duration(left)} left of the stage")
        whole = run.planned * run.seconds_of_step
        if (of_job := job_seconds_left(job.stages, run.name, whole, left)) is not None and of_job > left:
            parts.append(f"{duration(of_job)} of the job")
    if (pace := run.seconds_of_step) is not None:
        parts.append(f"{pace:.2g} s a step" if pace < 10 else f"{duration(pace)} a step")
        if job.going_on and not run.finished and run.silence > max(SILENT, SILENT_STEPS * pace):
            parts.append(f"no step for {duration(run.silence)}")
    return ", ".join(parts)


def _numbers(run: FollowedRun) -> str:
    numbers = {name: x for name, x in run.last.items() if _is_number(x) and not name.startswith("eval/")}
    names = [*(name for name in FIRST if name in numbers), *(name for name in numbers if name not in FIRST)]
    text = f"step {run.step:,}:"
    for name in names:
        more = f" {printable(LABELS.get(name, name))} {_number(numbers[name])},"
        if len(text) + len(more) > WIDTH + 1:
            break
        text += more
    return text.rstrip(",:")


def _samples(run: FollowedRun) -> Iterator[str]:
    """The last samples: a line of facts, then the prompt and the completion, a line each."""
    for row in run.samples[:SAMPLES]:
        facts = [f"{printable(name)} {_number(x)}" for name, x in row.items() if _is_number(x) and name != "step"]
        yield f"sample after {row['step'] + 1:,} steps: {', '.join(facts[:6])}".rstrip(": ")
        texts = [(name, text) for name, text in row.items() if isinstance(text, str)]
        for name, text in texts[:3]:
            yield f"  {printable(name)}: {printable(text[:LETTERS]) or '(empty)'}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
