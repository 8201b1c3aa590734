"""The end of a job: a table, samples side by side, summary.json."""

from __future__ import annotations

import json
import time

from minirlhf.evaluation.policies import Report
from minirlhf.jobs.opened import Opened
from minirlhf.runtime.distributed import is_main, say
from minirlhf.training.checkpoint import write_whole


def report(job: Opened, title: str, before: Report, after: Report, **extra: float | None) -> None:
    """Print the measures before and after a stage; write summary.json. extra: more numbers; None is not printed."""
    from minirlhf.evaluation.effect import comparison, summary  # here, so that the core loads no leaf
    from minirlhf.training.progress import evaluation_seconds

    seconds = time.perf_counter() - job.started
    if is_main():
        found = {"seconds": round(seconds, 1), **summary(before, after), **extra}
        write_whole(job.folder / "summary.json", json.dumps(found, indent=2) + "\n")
    say(f"\n{comparison(before, after, title)}\n")
    for name, value in extra.items():
        if value is not None:
            say(f"{name.replace('_', ' ')}: {value:.3f}")
    evaluations, steps = evaluation_seconds(job.folder)
    known = before.seconds + after.seconds
    share = (evaluations + known) / max(steps + known, 1e-9)
    say(f"{seconds:.0f} s, {share:.0%} of them for evaluations; everything is in {job.folder}", "quiet")
