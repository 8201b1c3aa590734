"""Settings that all algorithms on given rows share: number and size of the steps, and epochs."""

from __future__ import annotations

from dataclasses import dataclass

from minirlhf.errors import check_range
from minirlhf.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class OfflineConfig(OptimizerConfig):
    steps: int = 300  # [steps] one batch each
    max_epochs: float = 4.0  # [epochs] the run makes fewer steps if `steps` would mean more epochs
    batch_size: int = 64  # [rows] per step, over all processes; a pair is one row
    microbatch_tokens: int = 16_384  # [tokens] largest forward of one process, padding included

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "microbatch_tokens", least=1)
        check_range(self, "max_epochs", above=0)

    def steps_for(self, rows: int) -> int:
        """Steps of a run on this number of rows: `steps`, or fewer if they would make more than `max_epochs` epochs."""
        return max(1, round(min(self.steps, self.max_epochs * rows / self.batch_size)))
