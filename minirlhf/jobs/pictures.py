"""For those who watch a job: stages.json at its beginning, and page.html at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minirlhf.jobs.checks import own_stage, stages_of
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.speed import seconds_of_stages
from minirlhf.runtime.distributed import is_main, say
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.stage_plan import STAGES


@contextmanager
def pictured(job: Opened, after: tuple[str, ...]) -> Iterator[None]:
    """Write stages.json at the beginning of the block, and page.html at its end.

    after: the stages before the program's own.
    """
    if is_main():
        _announce(job, after)
    with page_at_end(job.folder):
        yield


@contextmanager
def page_at_end(folder: Path) -> Iterator[None]:
    """At the end of the block, also after an error, write page.html if the job in the folder has made a step.

    A page that cannot be written ends no job: a line names the reason.
    """
    try:
        yield
    finally:
        if is_main() and any(path.stat().st_size for path in folder.glob("*/metrics.jsonl")):
            _write(folder)


def _announce(job: Opened, after: tuple[str, ...]) -> None:
    try:
        rough = seconds_of_stages(job, after)
    except Exception as error:  # an estimate must not end a job
        say(f"the time left of later stages is not known: {type(error).__name__}: {error}")
        rough = dict.fromkeys([*stages_of(job, after), own_stage(job)])
    write_whole(job.folder / STAGES, json.dumps(rough) + "\n")


def _write(folder: Path) -> None:
    from minirlhf.seeing.page import write_page  # here, because a job that is refused draws nothing

    path = folder / "page.html"
    try:
        write_page([folder], path)
    except Exception as error:  # looking at a run must not end it
        say(f"no page about this job: {type(error).__name__}: {error}")
    else:
        say(f"curves and samples: {path}")
