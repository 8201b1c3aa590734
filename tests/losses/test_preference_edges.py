"""Bugs of the past at the edges of the preference losses, one test each."""

import math

import pytest
import torch
from torch.testing import assert_close

from minirlhf.losses import (
    alphapo_loss,
    aot_unpaired_loss,
    discopop_loss,
    exo_loss,
    kto_loss,
    linear_distillation_loss,
    nash_md_loss,
    xpo_bonus,
)


def test_alphapo_is_finite_where_its_reward_overflows():
    # equal answers: margin 0 - gamma 0.5, -log sigmoid(-0.5) = 0.974077
    logps = torch.tensor([-1e4], requires_grad=True)
    loss = alphapo_loss(logps, torch.tensor([-1e4]))
    loss.backward()
    assert_close(loss.detach(), torch.tensor([0.974077]))
    assert logps.grad.isfinite().all()


def test_kto_keeps_the_type_of_its_input_and_the_digits_of_its_weights():
    # x = kl: 0.7 (1 - 1/2)
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.zeros(2, dtype=dtype)
        weights = {"desirable_weight": 0.7, "undesirable_weight": 0.7}
        losses = kto_loss(x, desirable=torch.tensor([True, False]), kl=0.0, **weights)
        assert_close(losses, torch.tensor([0.35, 0.35], dtype=dtype))


def test_exo_knows_its_smoothing_in_bf16():
    # m = 0: 1/2 (ln 1/2 - ln 0.999) + 1/2 (ln 1/2 - ln 0.001) = 2.761231
    losses = exo_loss(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16))
    assert_close(losses.float(), torch.tensor([2.761231]), rtol=0.01, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="^discopop_loss: temperature must be > 0"):
        discopop_loss(torch.zeros(1), torch.zeros(1), temperature=temperature)
    hidden, weight, mask = torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="^linear_distillation_loss: temperature must be > 0"):
        linear_distillation_loss(
            hidden, weight, teacher_hidden=hidden, teacher_weight=weight, mask=mask, temperature=temperature
        )


def test_coefficients_are_not_negative_and_no_nan():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="^xpo_bonus: alpha must be at least 0, got nan"):
        xpo_bonus(x, mask=mask, alpha=math.nan)
    with pytest.raises(ValueError, match="^nash_md_loss: beta must be at least 0, got -1"):
        nash_md_loss(x, ref_logps=x, mask=mask, win_prob=torch.tensor([0.5]), beta=-1)


def test_aot_takes_a_batch_of_numbers_only():
    with pytest.raises(ValueError, match=r"^aot_unpaired_loss: needed log-ratios \[B\], got \(3, 1\)"):
        aot_unpaired_loss(torch.zeros(3, 1), torch.zeros(3, 1))


def test_discopop_pushes_an_undecided_pair_the_wrong_way():
    # f(m) = (1 - g) softplus(-m) + g exp(-m), g = sigmoid(20 m). At 0: g = 1/2, g' = 5,
    # f' = 5 (1 - ln 2) - 1/2 * 1/2 - 1/2 = 0.784264, times beta 0.1 for the chosen log-ratio
    chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    discopop_loss(chosen, torch.zeros(1, dtype=torch.float64)).backward()
    assert_close(chosen.grad, torch.tensor([0.0784264], dtype=torch.float64), rtol=1e-5, atol=0)
