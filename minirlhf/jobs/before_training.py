"""Done between a trainer and its first step: log-probs of the reference, rollouts that are recorded or replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minirlhf.errors import InputError
from minirlhf.jobs.reference import precompute
from minirlhf.jobs.reward_flags import reward_flags_of
from minirlhf.runtime.distributed import say
from minirlhf.training.recorded import Recorder, Replay, recorded_steps


def begin(stage: Any, trainer: Any) -> None:
    """Prepare the trainer of a `PolicyStage` as the settings ask."""
    if getattr(stage.config, "precompute_ref_logps", False):
        precompute(stage, trainer)
    flags = reward_flags_of(stage.job.common)
    if flags.save_rollouts:
        trainer.sampler = Recorder(stage.folder / "rollouts", trainer)
    if flags.replay:
        folder, rescore = rollouts_in(flags.replay), flags.replay_scores == "new"
        trainer.sampler = Replay(folder, trainer, rescore)
        again = "their scores are computed anew, all else is as recorded" if rescore else "nothing is sampled or scored"
        say(f"replayed: {folder}, {len(recorded_steps(folder))} steps; {again}")


def rollouts_in(name: str) -> Path:
    """The folder of rollouts: the given folder, or `rollouts` in a stage's or a job's folder.

    Raises: InputError if none of them holds rollouts.
    """
    places = Path(name), Path(name) / "rollouts", *sorted(Path(name).glob("*/rollouts"))
    folder = next((path for path in places if recorded_steps(path)), None)
    if folder is None:
        raise InputError(f"--replay {name}: needed a folder with rollouts that --save_rollouts wrote, found none")
    return folder
