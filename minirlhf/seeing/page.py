"""One HTML page that shows runs: `page_of(jobs)`. The page itself is page.html beside this file.

The page holds its data as JSON without any "<", so no text of a run can end the script element that holds it; the
script puts texts in as texts, never as HTML.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError
from minirlhf.foreign import SURROGATE
from minirlhf.seeing.doctor import Finding, examine
from minirlhf.seeing.images import images_of
from minirlhf.seeing.output import replaces
from minirlhf.seeing.reading import MOST_RUNS, SeenJob, SeenRun, read_job, run_folders
from minirlhf.seeing.series import Series
from minirlhf.seeing.story import sentences
from minirlhf.training.runs import differences
from minirlhf.training.vocabulary import METRICS

TEMPLATE = Path(__file__).with_name("page.html")
DOCS = Path(__file__).parents[2] / "docs"  # of a source checkout
TITLE = b"<title>minirlhf run page</title>"  # only a file with this title is overwritten
MOST_POINTS = 40_000  # of all curves
MOST_TEXT = 2_500_000  # bytes of all samples
LETTERS = 2000  # of a text; the middle of a longer text is left out
DEPTH = 6  # of lists in lists


def write_page(folders: Sequence[Path], path: Path) -> list[str]:
    """Write the page about these runs and pipelines -> the notes about files that are missing, broken or thinned out.

    Raises: InputError for a folder without a run, for more than 40 runs, and for a path that holds another file.
    """
    if (count := sum(len(list(run_folders(folder))) for folder in folders)) > MOST_RUNS:
        raise InputError(f"run page: needed at most {MOST_RUNS} runs on a page, got {count}; name fewer folders")
    jobs = [read_job(folder) for folder in folders]
    text = page_of(jobs, path.absolute().parent)
    with replaces(path, is_page) as part:
        part.write_text(text, encoding="utf-8")
    return [f"{run.folder}: {note}" for job in jobs for run in job.runs for note in run.notes]


def is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return TITLE in file.read(2000)


def page_of(jobs: Sequence[SeenJob], folder: Path | None = None) -> str:
    """folder: of the page, for links into docs/; without docs/ or a folder the page names its documents only."""
    runs = [run for job in jobs for run in job.runs]
    findings = [[[run.name, *finding_facts(each)] for run in job.runs for each in examine(run)] for job in jobs]
    fit_points(runs)
    fit_samples(runs)
    names = names_of([job.folder for job in jobs])
    labels = [
        name if name.endswith(run.name) else f"{name} {run.name}"
        for job, name in zip(jobs, names, strict=True)
        for run in job.runs
    ]
    stages = list(dict.fromkeys(map(stage_of, runs)))
    data = {
        "title": ", ".join(names),
        "docs": os.path.relpath(DOCS.parent, folder) if folder and DOCS.is_dir() else None,
        "jobs": [
            {**job_facts(job, name), "findings": found} for job, name, found in zip(jobs, names, findings, strict=True)
        ],
        "stages": stages,
        "runs": [run_facts(run, label, stages) for run, label in zip(runs, labels, strict=True)],
        "differences": [different(runs, labels, stage) for stage in stages],
        "words": METRICS,
    }
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("{{data}}")
    return before + as_json(data) + after


def job_facts(job: SeenJob, name: str) -> dict[str, Any]:
    summary = plain(job.summary)
    before, after = (part if isinstance(part := summary.pop(key, {}), dict) else {} for key in ("before", "after"))
    images = images_of(job.folder, job.notes)
    return {
        "name": name,
        "story": sentences(job),
        "notes": [f"{run.name}: {note}" for run in job.runs for note in run.notes] + job.notes,
        "measures": [[measure, before.get(measure), after.get(measure)] for measure in {**before, **after}],
        "rest": summary,
        "images": images,
    }


def finding_facts(finding: Finding) -> list[Any]:
    """[step, title, evidence, remedy, page of docs/]"""
    past = "" if finding.lasting else "; the last steps no longer show it"
    return [finding.step, finding.of.title, finding.evidence + past, finding.of.remedy, finding.of.docs]


def run_facts(run: SeenRun, label: str, stages: list[str]) -> dict[str, Any]:
    return {
        "label": label,
        "stage": stages.index(stage_of(run)),
        "folder": str(run.folder),
        "steps": run.steps,
        "planned": run.planned,
        "started": run.started,
        "starts": run.starts,
        "finished": run.finished,
        "seconds": run.seconds,
        "settings": plain({name: value for name, value in run.settings.items() if name not in ("output", "resume")}),
        "metrics": {name: points_of(series) for name, series in run.metrics.items()},
        "timings": {name: points_of(series) for name, series in run.timings.items()},
        "samples": [[step, rows] for step, rows in run.samples],
        "sampleSteps": run.sample_steps,
    }


def points_of(series: Series) -> dict[str, Any]:
    """{"x": steps, "y": means}, with "low" and "high" if a point stands for several steps."""
    points = {"x": [bucket.step for bucket in series.buckets], "y": [short(bucket.mean) for bucket in series.buckets]}
    if series.width > 1:
        points["low"] = [short(bucket.low) for bucket in series.buckets]
        points["high"] = [short(bucket.high) for bucket in series.buckets]
    return points


def different(runs: Sequence[SeenRun], labels: Sequence[str], stage: str) -> dict[str, Any]:
    """The settings that differ between the runs of a stage."""
    same = [(run, label) for run, label in zip(runs, labels, strict=True) if stage_of(run) == stage]
    return {"runs": [label for _, label in same], "settings": plain(differences([run for run, _ in same]))}


def fit_points(runs: Sequence[SeenRun]) -> None:
    """Join neighbouring points of the longest curves until all curves fit on the page."""
    curves = [series for run in runs for part in (run.metrics, run.timings) for series in part.values()]
    longest = max((len(series.buckets) for series in curves), default=0)
    while sum(len(series.buckets) for series in curves) > MOST_POINTS and longest > 1:
        for series in curves:
            if len(series.buckets) > longest // 2:
                series.halve()
        longest //= 2


def fit_samples(runs: Sequence[SeenRun]) -> None:
    """Shorten long texts; then leave out every second step of the largest run until all samples fit on the page."""
    for run in runs:
        run.samples = [(step, plain(rows)) for step, rows in run.samples]
    sizes = [len(as_json(run.samples).encode()) for run in runs]
    thinned = set()
    while sum(sizes) > MOST_TEXT:
        largest = sizes.index(max(sizes))
        samples = runs[largest].samples
        runs[largest].samples = samples[:-1:2] + samples[-1:] if len(samples) > 2 else []
        sizes[largest] = len(as_json(runs[largest].samples).encode())
        thinned.add(largest)
    for k in thinned:
        runs[k].notes.append(f"samples.jsonl is large: the samples of {len(runs[k].samples)} steps fit on the page")


def plain(value: Any, depth: int = 0) -> Any:
    """A value of a file as the page can hold it: long texts without their middle, other values than JSON's as text."""
    if isinstance(value, str):
        if len(value) <= LETTERS:
            return value
        half = LETTERS // 2
        return f"{value[:half]} [... {len(value) - LETTERS:,} letters ...] {value[-half:]}"
    if isinstance(value, list | dict) and depth == DEPTH:
        return f"[{len(value)} values]"
    if isinstance(value, list):
        return [plain(part, depth + 1) for part in value]
    if isinstance(value, dict):
        return {plain(str(key)): plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, bool | None) or (isinstance(value, int | float) and abs(value) < 2**53):
        return short(value) if isinstance(value, float) else value
    return plain(str(value))  # nan, a date of TOML


def short(value: float) -> float:
    """Six digits."""
    return float(f"{value:.6g}")


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def stage_of(run: SeenRun) -> str:
    return run.kind if run.kind != "-" else run.name


def as_json(value: Any) -> str:
    """JSON without "<". UTF-8 cannot write half a surrogate pair; a browser shows U+FFFD, so U+FFFD is written."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return SURROGATE.sub("\ufffd", text).replace("<", "\\u003c")
