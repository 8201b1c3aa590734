"""The labels and the noise of a batch: a pure function of its draws, so a run resumes exactly."""

from __future__ import annotations

from torch import Tensor, nn, tensor

from minirlhf.data.batches import Draw
from minirlhf.extras.diffusion.chain import keyed_noise


def starts(
    batch: list[Draw], samples: int, steps: int, shape: tuple[int, ...], seed: int, stream: str, denoiser: nn.Module
) -> tuple[Tensor, Tensor]:
    """-> (label [B], noise [B, steps + 1, *shape]) with B = len(batch) * samples, in dtype and device of the denoiser.

    The row of a draw is a label. The samples of a draw stand side by side.
    """
    like = next(denoiser.parameters())
    label = tensor([draw.row for draw in batch for _ in range(samples)], device=like.device)
    keys = [(draw.epoch, draw.index, sample) for draw in batch for sample in range(samples)]
    return label, keyed_noise(seed, stream, keys, (steps + 1, *shape)).to(like)
