"""A learning rate of their own for some parameters."""

import torch
from torch import nn
from torch.testing import assert_close

from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.own_rate import give_rate


def trained(own_lr=None, updates=3):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    config = OptimizerConfig(lr=0.1, warmup=0.0, weight_decay=0.1, max_grad_norm=1e9)
    optimizer = Optimizer({"net": net}, config, updates)
    if own_lr is not None:
        give_rate(optimizer, net[1].parameters(), own_lr)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.arange(6.0).view(2, 3)).square().sum().backward()
    metrics = optimizer.step({"loss": torch.tensor(1.0)})
    return [(p - old).detach() for p, old in zip(net.parameters(), before, strict=True)], metrics, optimizer


def test_adams_first_step_is_the_rate_so_the_chosen_parameters_move_by_their_own_rate():
    plain, _, _ = trained()
    own, metrics, _ = trained(own_lr=0.2)
    for i, (a, b) in enumerate(zip(plain, own, strict=True)):
        assert_close(b, a * (2 if i >= 2 else 1))  # the second Linear moves twice as far
    assert metrics["lr"] == 0.1  # the metric is the rate of the others


def test_the_rate_of_all_others_changes_nothing_and_the_state_is_kept_by_name():
    (plain, _, _), (same, _, optimizer) = trained(), trained(own_lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert sorted(optimizer.state_dict()["moments"]) == ["net.0.bias", "net.0.weight", "net.1.bias", "net.1.weight"]
    assert all(group["params"] for group in optimizer.adamw.param_groups)
