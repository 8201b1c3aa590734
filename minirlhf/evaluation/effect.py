"""The effect of a stage: the measures of a policy before and after it."""

from __future__ import annotations

from typing import Any

from minirlhf.evaluation.columns import side_by_side
from minirlhf.evaluation.policies import MEASURES, Report
from minirlhf.training.table import table


def summary(before: Report, after: Report) -> dict[str, Any]:
    """The measures in summary.json: {"before": {...}, "after": {...}, "kl": number}."""
    names = [name for name, label in MEASURES.items() if label and name != "kl"]  # the KL before a stage is 0
    return {
        "before": {name: before.measures[name] for name in names},
        "after": {name: after.measures[name] for name in names},
        "kl": after.measures["kl"],
    }


def comparison(before: Report, after: Report, stage: str) -> str:
    """The effect of a stage: a table of the known measures, then samples side by side."""
    labels = MEASURES | {"model_reward": after.reward_label}
    rows = [[label, before.measures[name], after.measures[name]] for name, label in labels.items() if label]
    known = [row for row in rows if row[1:] != [None, None]]
    header = ["on held-out prompts", f"before {stage}", f"after {stage}"]
    return f"{table(header, known)}\n\n{side_by_side(before.prompts, before.completions, after.completions)}"
