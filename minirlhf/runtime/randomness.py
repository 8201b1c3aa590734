"""Random numbers as a pure function of a key, so no generator's state must be saved or sent between ranks."""

from __future__ import annotations

import random
import zlib

import numpy
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer: splitmix64's increment
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices). Weight initialisation draws from torch's generator."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def splitmix64(x: Tensor) -> Tensor:
    """Scramble int64 x; products overflow and wrap.

    Steele et al. 2014, "Fast splittable pseudorandom number generators", Fig. 10.
    """
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def keyed_uniforms(seed: int, stream: str, *keys: Tensor | int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), float64 (on mps: float32), in the shape of the broadcast keys.

    The same (seed, stream, keys) gives the same number on any device, in any batch, on any rank.

    Args:
        seed:   any integer.
        stream: name of the purpose ("ppo", "shuffle"), so that two purposes never share noise.
        keys:   int64 tensors or ints that broadcast: draw, prompt index, sample index, token position.
    """
    home = "cpu" if torch.device(device).type == "mps" else device  # Apple's mps has no float64
    state = splitmix64(torch.tensor(seed % 2**63, device=home)) ^ zlib.crc32(stream.encode())
    state = splitmix64(state)
    for key in keys:
        state = splitmix64(state ^ torch.as_tensor(key, dtype=torch.int64, device=home))
    if home == device:
        return _shift(state, 11).double() * 2.0**-53
    return (_shift(state, 40).float() * 2.0**-24).to(device)


def permutation(n: int, seed: int, stream: str, epoch: int) -> list[int]:
    """range(n) in random order, a pure function of the arguments."""
    return keyed_uniforms(seed, stream, epoch, torch.arange(n)).argsort(stable=True).tolist()


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right. torch's >> keeps the sign bit, so it is masked away."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
