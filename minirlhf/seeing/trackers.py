"""Programs that show the metrics of runs: `open_tracker(NAME, ...)`. Only the package of this name is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.seeing.tensorboard import EventFile

PROJECT = "minirlhf"  # name of the project, or of the experiment
PACKAGES = ("wandb", "trackio", "mlflow")
MLFLOW_MOST = 100  # settings in a call
NAMES = ("tensorboard", *PACKAGES)


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Tracked(NamedTuple):
    """The start of a run that trackers follow."""

    folder: Path  # of the run
    step: int  # number of steps that are done
    settings: dict[str, Any]  # full name, such as "ppo.lr" -> value

    @property
    def title(self) -> str:
        return "/".join(self.folder.absolute().parts[-2:])


def check_tracker(name: str) -> None:
    """Raise InputError for an unknown name, and for a package that is not installed."""
    if name not in NAMES:
        known = f"{', '.join(NAMES)} or FILE.py:FUNCTION"
        raise InputError(f"--tracker: needed {known}, got {shown(name)}{nearest(name, NAMES)}")
    if name in PACKAGES and importlib.util.find_spec(name) is None:
        raise InputError(f"--tracker {name}: needed the package {name}, which is not installed; pip install {name}")


def open_tracker(name: str, run: Tracked) -> Tracker:
    """name: one of NAMES."""
    if name == "tensorboard":
        return EventFile(run.folder / "tensorboard", run.step)
    return {"wandb": Wandb, "trackio": Trackio, "mlflow": MLflow}[name](run)


class Wandb:
    def __init__(self, run: Tracked) -> None:
        import wandb

        # reinit: a stage that stopped early has not closed its run
        options = {"dir": str(run.folder.absolute()), "group": run.folder.parent.name, "reinit": True}
        self.run = wandb.init(project=PROJECT, name=run.title, config=run.settings, **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    def __init__(self, run: Tracked) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=run.title, config=run.settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self.trackio.finish()


class MLflow:
    def __init__(self, run: Tracked) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.end_run()  # of a stage that stopped early
        mlflow.start_run(run_name=run.title)
        settings = [(name, str(value)[:250]) for name, value in run.settings.items()]
        for first in range(0, len(settings), MLFLOW_MOST):
            mlflow.log_params(dict(settings[first : first + MLFLOW_MOST]))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(
            {name: value for name, value in metrics.items() if type(value) in (int, float)}, step=step
        )

    def close(self) -> None:
        self.mlflow.end_run()
