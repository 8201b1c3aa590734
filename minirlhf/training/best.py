"""The metric of `--run.best_metric`, which decides the best checkpoint instead of the algorithm's own."""

from __future__ import annotations

from typing import Any

from minirlhf.errors import InputError
from minirlhf.nearest import nearest


def goal(config: Any, evaluation: dict[str, float]) -> tuple[str, str]:
    """-> (metric, "min" or "max").   Raises: InputError if the evaluation has no such metric.

    config: a `RunSettings`.
    """
    name = config.best_metric
    if name not in evaluation:
        known = ", ".join(evaluation) or "none"
        raise InputError(
            f"run.best_metric: needed a metric of evaluations, got {name}{nearest(name, evaluation)}; they have {known}"
        )
    return name, config.best_mode or ("min" if name.endswith("loss") else "max")


def check_metric(run: Any) -> None:
    """Evaluate a `Run` once before its first step, so that a metric that does not exist is refused now."""
    if run.evaluate is None:
        raise InputError("run.best_metric: this run makes no evaluations; leave it out")
    goal(run.config, {f"eval/{name}": value for name, value in run.evaluate().items()})
    run.trainer.samples = []
