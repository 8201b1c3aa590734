"""The stages that a job plans, and the time that is left of them. Needs no torch.

stages.json in a job's folder has the name of each stage and a rough number of seconds: its operations by the rate of a
usual processor (jobs/speed.py). The rough numbers alone may be off by a factor of ten. Their ratios are better, so the
measured pace of the present stage corrects the numbers of the later stages.
"""

from __future__ import annotations

import json
from pathlib import Path

STAGES = "stages.json"


def planned_stages(folder: Path) -> dict[str, float | None]:
    """Name -> rough seconds of the stages of the job in a folder, in their order. Empty without a whole file."""
    try:
        found = json.loads((folder / STAGES).read_bytes()[: 1 << 16])
        return {
            name: rough if type(rough) in (int, float) and 0 < rough < 1e12 else None for name, rough in found.items()
        }
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def job_seconds_left(stages: dict[str, float | None], name: str, whole: float, left: float) -> float | None:
    """The seconds that are left of a job in its stage `name`; None if a rough number is not known.

    whole: seconds of this stage at its present pace; `left` of them are left.
    """
    names = list(stages)
    own, *later = [stages[each] for each in names[names.index(name) :]] if name in stages else [None]
    if not later:
        return left
    return None if None in (own, *later) else left + whole * sum(later) / own
