"""Some parameters of an optimizer, such as PPO's value function, learn at their own rate, or alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from minirlhf.training.optimizer import Optimizer


def give_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Train these parameters with the peak learning rate `lr`; the schedule is the same for all parameters."""
    own, groups = {id(p) for p in parameters}, optimizer.adamw.param_groups
    for group in list(groups):
        chosen = [p for p in group["params"] if id(p) in own]
        group["params"] = [p for p in group["params"] if id(p) not in own]
        if chosen:
            optimizer.adamw.add_param_group({**group, "params": chosen, "scale": lr / optimizer.config.lr})
    groups[:] = [group for group in groups if group["params"]]


def drop_gradients_except(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop all other gradients, so that the next step changes `parameters` only."""
    kept_ids = {id(p) for p in parameters}
    for p in optimizer.parameters.values():
        if id(p) not in kept_ids:
            p.grad = None
