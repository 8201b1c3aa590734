"""Settings that all algorithms on given rows share: number and size of the steps, and epochs."""

from __future__ import annotations

from dataclasses import dataclass

from minirlhf.errors import InputError, check_range
from minirlhf.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class OfflineConfig(OptimizerConfig):
    steps: int = 300  # [steps] one batch each
    max_epochs: float = 4.0  # [epochs] the run makes fewer steps if `steps` would mean more epochs
    epochs: float | None = None  # [epochs] length of the run, instead of steps and max_epochs
    batch_size: int = 64  # [rows] per step, over all processes; a pair is one row
    microbatch_tokens: int = 16_384  # [tokens] largest forward of one process, padding included

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "microbatch_tokens", least=1)
        check_range(self, "max_epochs", "epochs", above=0, most=1_000_000)
        if self.epochs and (self.steps, self.max_epochs) != (type(self).steps, type(self).max_epochs):
            raise InputError(f"{type(self).__name__}: epochs decides alone; leave out steps and max_epochs")

    def steps_for(self, rows: int) -> int:
        """Steps of a run on this number of rows: `epochs`, or `steps` but at most `max_epochs` epochs."""
        steps = (self.epochs or self.max_epochs) * rows / self.batch_size
        return max(1, round(steps if self.epochs else min(self.steps, steps)))
