"""The doctor during a run: each of its findings is said once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from minirlhf.columns import printable, wrapped
from minirlhf.runtime.distributed import shows

WIDTH = 76  # columns of a line; the lines after the first are indented
TIMES = 20  # the doctor looks at a run, so that long files are not read often


def warner(folder: Path, steps: int) -> Callable[[int, dict[str, float]], None]:
    """A function for `Run.on_metrics`: it reads the run's folder about 20 times in a run of `steps` steps.

    A fault of the doctor ends no run: a line names it.
    """
    said: set[str] = set()

    def warn(step: int, metrics: dict[str, float]) -> None:
        if (step + 1) % max(1, steps // TIMES) or not shows():
            return
        from minirlhf.seeing.doctor import examine  # here, because a job that is refused asks no doctor
        from minirlhf.seeing.reading import read_run

        try:
            found = {each.rule: f"{each.of.title}: {each.evidence}" for each in examine(read_run(folder))}
        except Exception as error:  # looking at a run must not end it
            found = {"fault": f"cannot read this run: {type(error).__name__}: {error}"}
        for name in [name for name in found if name not in said]:
            text = printable(f"doctor: {folder.name}: {found[name]}; see minirlhf doctor {folder}")
            tqdm.write("\n    ".join(wrapped(text, WIDTH)), file=sys.stderr)
        said.update(found)

    return warn
