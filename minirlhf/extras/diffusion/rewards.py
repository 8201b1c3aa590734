"""Rewards of pictures, and their gold measures.

A gold measure is the true aim of a reward. It is reported and never trained on, so it shows if a reward was fooled.
A reward is a function (pictures [B, 1, 16, 16], labels [B]) -> scores [B].
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minirlhf.extras.diffusion.drawings import DIGITS, NAMES, SIZE, drawn
from minirlhf.extras.diffusion.scoring import ImageReward
from minirlhf.runtime.randomness import seed_everything

SEVEN = NAMES.index("7")
WITHOUT_GRADIENT = ("size",)  # rewards that are no function for autograd
WITHOUT_LABEL = ("seven",)  # rewards whose only prompt is the empty prompt
# Classifier -> steps of its training, drawings, share of broken drawings (their label is 0).
CLASSIFIERS = {"gold": (600, 4096, 0.4), "proxy": (200, 512, 0.0)}


class Goal(NamedTuple):
    """A reward, the measure that it stands for, and the prompts to train on."""

    reward: ImageReward
    gold: ImageReward
    prompts: tuple[str, ...]


def ink(pictures: Tensor, label: Tensor) -> Tensor:
    """The mean darkness, from 0 (paper) to 1 (all ink); differentiable."""
    return ((pictures.clamp(-1, 1) + 1) / 2).flatten(1).mean(1)


def small_size(pictures: Tensor, label: Tensor) -> Tensor:
    """Minus the number of bytes of the picture in 16 greys, compressed by zlib; it has no gradient.

    It stands for the size of a JPEG in Black et al. 2023, section 5.1.
    """
    greys = ((pictures.detach().clamp(-1, 1) + 1) * 7.5).round().to(torch.uint8).cpu()
    sizes = [-float(len(zlib.compress(bytes(grey.flatten().tolist()), 9))) for grey in greys]
    return torch.tensor(sizes, device=pictures.device)


def seven_by(classifier: nn.Module) -> ImageReward:
    """The classifier's log-probability of a 7, in nats; differentiable."""

    def seven(pictures: Tensor, label: Tensor) -> Tensor:
        return classifier(pictures).log_softmax(-1)[:, SEVEN]

    return seven


def is_seven_by(classifier: nn.Module) -> ImageReward:
    """1 if the classifier's first choice is a 7, else 0."""
    return lambda pictures, label: (classifier(pictures).argmax(-1) == SEVEN).to(pictures.dtype)


def as_asked_by(classifier: nn.Module) -> ImageReward:
    """1 if the classifier's first choice is the drawing that the prompt names, else 0."""
    return lambda pictures, label: (classifier(pictures).argmax(-1) == label).to(pictures.dtype)


def goal_of(name: str, seed: int, device: torch.device) -> Goal:
    """The goal that `--reward` names; its classifiers are trained now."""
    gold = trained(GoldClassifier(), "gold", seed).to(device)
    goals: dict[str, Callable[[], Goal]] = {
        "ink": lambda: Goal(ink, as_asked_by(gold), DIGITS),
        "size": lambda: Goal(small_size, as_asked_by(gold), DIGITS),
        "seven": lambda: Goal(
            seven_by(trained(FoolableClassifier(), "proxy", seed).to(device)),
            is_seven_by(gold),
            ("",),
        ),
    }
    return goals[name]()


class FoolableClassifier(nn.Sequential):
    """A small MLP: it reads single pixels, so pictures that are no digits can fool it."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIZE * SIZE, 48), nn.ReLU(), nn.Linear(48, len(NAMES)))


class GoldClassifier(nn.Sequential):
    """Convolutions, trained on noisy pictures and on broken drawings, so that a bar alone is no 7."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * (SIZE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, len(NAMES)),
        )  # fmt: skip


def trained(classifier: nn.Module, name: str, seed: int) -> nn.Module:
    """Train a classifier on drawings of its own -> frozen. The result is a function of the seed.

    name: a key of CLASSIFIERS.
    """
    steps, pictures, share = CLASSIFIERS[name]
    seed_everything(seed)
    for layer in classifier:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    images, label = drawn([(i,) for i in range(pictures)], seed, name)
    adamw = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(pictures, (64,))
        seen, target = images[rows], label[rows]
        if share:
            is_broken = torch.rand(64) < share
            seen = torch.where(is_broken[:, None, None, None], broken(seen), seen)
            seen = seen + 0.2 * torch.rand(64, 1, 1, 1) * torch.randn_like(seen)
            target = target.masked_fill(is_broken, 0)
        adamw.zero_grad()
        F.cross_entropy(classifier(seen), target).backward()
        adamw.step()
    return classifier.requires_grad_(False)


def broken(pictures: Tensor) -> Tensor:
    """Drawings that are no drawings any more [B, 1, 16, 16]: the upper or lower part is erased, or all ink is faint, or
    two drawings lie on each other.
    """
    kind, cut = torch.randint(4, (len(pictures), 1, 1, 1)), torch.randint(6, 10, (len(pictures), 1, 1, 1))
    row = torch.arange(SIZE)[:, None]
    upper, lower = (torch.where(erased, -1.0, pictures) for erased in (row < cut, row >= cut))
    faint, double = 0.25 * (pictures + 1) - 1, torch.maximum(pictures, pictures.roll(1, 0))
    return torch.where(kind == 0, upper, torch.where(kind == 1, lower, torch.where(kind == 2, faint, double)))
