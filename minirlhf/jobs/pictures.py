"""The page about a job, made at its end: page.html in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minirlhf.jobs.opened import Opened
from minirlhf.runtime.distributed import is_main, say


@contextmanager
def pictured(job: Opened) -> Iterator[None]:
    """At the end of the block, also after an error, write page.html if the job has made a step.

    A page that cannot be written ends no job: a line names the reason.
    """
    try:
        yield
    finally:
        if is_main() and any(path.stat().st_size for path in job.folder.glob("*/metrics.jsonl")):
            _write(job)


def _write(job: Opened) -> None:
    from minirlhf.seeing.page import write_page  # here, because a job that is refused draws nothing

    path = job.folder / "page.html"
    try:
        write_page([job.folder], path)
    except Exception as error:  # looking at a run must not end it
        say(f"no page about this job: {type(error).__name__}: {error}")
    else:
        say(f"curves and samples: {path}")
