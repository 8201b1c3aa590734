"""The metric that decides the best checkpoint: of `--run.best_metric`, or the algorithm's own."""

from __future__ import annotations

import math
from typing import Any

from minirlhf.errors import InputError
from minirlhf.nearest import nearest
from minirlhf.training.runs import better


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
    return name, config.best_mode or better(name)


def new_best(run: Any, evaluation: dict[str, float], best: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """-> (whether this evaluation of a `Run` is better than all before, the best evaluation from now on).

    best: {"step", "value", "since"}, empty before the first evaluation. since: number of evaluations after the best.
    """
    name, direction = goal(run.config, evaluation) if run.config.best_metric else run.trainer.best
    value = evaluation.get(name)
    if value is None or math.isnan(value):
        return False, best
    sign = 1 if direction == "max" else -1
    if best and sign * value <= sign * best["value"]:
        return False, {**best, "since": best["since"] + 1}
    return True, {"step": run.step, "value": value, "since": 0}


def check_metric(run: Any) -> None:
    """Evaluate a `Run` once before its first step, so that a metric that does not exist is refused now.

    Raises: InputError for such a metric, also if it is the algorithm's own and the run has to know the best step.
    """
    config, own = run.config, run.trainer.best[0]
    flag = next(name for name in ("best_metric", "patience", "final") if getattr(config, name))
    if run.evaluate is None:
        raise InputError(f"run.{flag}: this run makes no evaluations; leave it out")
    evaluation = {f"eval/{name}": value for name, value in run.evaluate().items()}
    run.trainer.samples = []
    if config.best_metric:
        goal(config, evaluation)
    elif own not in evaluation:
        raise InputError(
            f"run.{flag}: the best step is that of {own}, which these evaluations do not measure; set run.best_metric "
            f"to a metric of {', '.join(evaluation) or 'none'}"
        )
