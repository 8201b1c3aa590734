"""Checks of the parts that a caller passes to `PPOTrainer`."""

from __future__ import annotations

from typing import Any

from minirlhf.algorithms.on_policy import check_stop_token
from minirlhf.errors import InputError
from minirlhf.model.policy import Policy, ValueModel, check_reference


def check_parts(policy: Policy, ref_policy: Policy, reward: Any, value_model: ValueModel | None, config: Any) -> None:
    """Raise InputError if a part is missing or contradicts another.   reward: a reward or an environment."""
    check_reference("PPOTrainer", policy, ref_policy)
    if value_model is None and policy.value_head is None:
        raise InputError("PPOTrainer: needed a policy with value_head=True or a value_model, got neither")
    if value_model is not None and policy.value_head is not None:
        raise InputError("PPOTrainer: needed one value function, got a value_head and a value_model; leave one out")
    if reward is None:
        raise InputError("PPOTrainer: needed a reward or an environment, got neither")
    check_stop_token("PPOTrainer", config, policy.transformer.config.vocab_size)
