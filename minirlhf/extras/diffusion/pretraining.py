"""Pretraining of a denoiser on drawn pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.data.batches import Draw
from minirlhf.errors import check_range
from minirlhf.extras.diffusion.chain import denoising_loss, keyed_noise
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class PretrainingConfig(OptimizerConfig):
    steps: int = 1000  # [steps] one batch each
    batch_size: int = 64  # [pictures] per step, over all processes
    pictures: int = 8192  # [pictures] drawn for training
    no_label: float = 0.1  # [share] of pictures whose label is hidden: the model without condition, for guidance
    lr: float = 2e-3  # [per update] peak learning rate
    lr_final: float = 0.0  # [share of lr] learning rate of the last update

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", "batch_size", "pictures", least=1)
        check_range(self, "no_label", least=0, most=1)

    def steps_for(self, rows: int) -> int:
        return self.steps


class PretrainingTrainer:
    """Denoiser, pictures -> a denoiser that predicts the noise of noisy pictures.

    Args:
        pictures: [N, 1, H, W] from -1 to 1.   label: [N]. The row of a draw is a number of a picture.
        schedule: of the noise levels.
    """

    headline = ("loss",)
    best = ("eval/loss", "min")
    saved = ("optimizer",)

    def __init__(
        self,
        denoiser: nn.Module,
        pictures: Tensor,
        label: Tensor,
        schedule: str,
        config: PretrainingConfig,
        seed: int = 0,
    ) -> None:
        self.denoiser, self.wrapped, self.config, self.seed = denoiser, wrap(denoiser), config, seed
        self.pictures, self.label, self.schedule = pictures, label, schedule
        self.models = {"denoiser": denoiser}
        self.optimizer = Optimizer(self.models, config, config.steps)
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of pictures."""
        count = all_sum(torch.tensor(float(len(batch)), device=self.pictures.device))
        sums = Sums()
        for draws in micro_batches([batch], self.wrapped):
            losses = self.losses(draws)
            backward(losses.sum() / count)
            sums.add(count, loss=losses)
        return self.optimizer.step(sums)

    def losses(self, draws: list[Draw]) -> Tensor:
        """The denoising loss of each picture -> [B]. Level, noise and hidden labels are a function of the draws."""
        rows, keys = [draw.row for draw in draws], [(draw.epoch, draw.index) for draw in draws]
        columns = torch.tensor(keys).unbind(1)
        hidden = keyed_uniforms(self.seed, "hidden labels", *columns) < self.config.no_label
        label = self.label[rows].masked_fill(hidden.to(self.label.device), 0)
        uniforms = keyed_uniforms(self.seed, "levels", *columns)
        clean = self.pictures[rows]
        noise = keyed_noise(self.seed, "pretraining", keys, clean.shape[1:]).to(clean)
        return denoising_loss(self.wrapped, self.schedule, clean, label, uniforms, noise)

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)
