"""The end of a job: a table, samples side by side, summary.json."""

from __future__ import annotations

import json
import time

from minirlhf.evaluation.policies import Report, comparison
from minirlhf.jobs.opened import Opened
from minirlhf.runtime.distributed import is_main, say
from minirlhf.training.checkpoint import write_whole

MEASURES = ("gold_reward", "model_reward", "grammatical", "length", "distinct_2")


def report(job: Opened, title: str, before: Report, after: Report, **extra: float | None) -> None:
    """Show what a stage changed, and write summary.json. extra: more numbers for both; None is not shown."""
    seconds = time.perf_counter() - job.started
    summary = {
        "seconds": round(seconds, 1),
        "before": {name: before.measures[name] for name in MEASURES},
        "after": {name: after.measures[name] for name in MEASURES},
        "kl": after.measures["kl"],
        **extra,
    }
    if is_main():
        write_whole(job.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    say(f"\n{comparison(before, after, title)}\n")
    for name, value in extra.items():
        if value is not None:
            say(f"{name.replace('_', ' ')}: {value:.3f}")
    say(f"{seconds:.0f} s; everything is in {job.folder}")
