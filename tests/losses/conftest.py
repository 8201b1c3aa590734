"""Figures printed by another library's loss functions (TRL), copied by value into golden.json, 12 digits of float64.

inputs: what the figures were computed from. core, ppo_v0_11_4: TRL v0.11.4. ppo_v2: its rewritten PPO trainer, later.
grpo_1_16: the GRPO trainer of 1.16 (eps 0.2; 2 accumulation steps, 40 tokens in the batch). policy_family: the other
losses of that trainer, and its advantages. reward: the reward trainer, margins included. A test that leaves part of a
figure out says why: the versions do not agree with each other.
"""

import json
from pathlib import Path

import pytest
import torch


def _tensors(x, name=""):
    if isinstance(x, dict):
        return {key: _tensors(value, key) for key, value in x.items()}
    if not isinstance(x, list):
        return x
    return torch.tensor(x, dtype=torch.bool if "mask" in name.split("_")[:2] else torch.float64)


@pytest.fixture(scope="session")
def golden():
    return _tensors(json.loads(Path(__file__).with_name("golden.json").read_text()))
