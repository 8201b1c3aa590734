"""The estimators on hand-worked and enumerated distributions, and the coefficient's controllers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import AdaptiveKLController, FixedKLController, kl_k1, kl_k2, kl_k3, masked_mean, masked_sum

ESTIMATORS = {"kl_k1": kl_k1, "kl_k2": kl_k2, "kl_k3": kl_k3}
log_probs = st.floats(-50, 0)
few = settings()


def test_by_hand():
    # p = 1/2, q = 1/4: d = ln 2 = 0.693147; d^2 / 2 = 0.240227; 1/2 - 1 + 0.693147 = 0.193147
    # p = 1/4, q = 1/2: d = -0.693147;        d^2 / 2 = 0.240227; 2 - 1 - 0.693147 = 0.306853
    logps, ref_logps = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    assert_close(kl_k1(logps, ref_logps=ref_logps), torch.tensor([[0.693147, -0.693147]]))
    assert_close(kl_k2(logps, ref_logps=ref_logps), torch.tensor([[0.240227, 0.240227]]))
    assert_close(kl_k3(logps, ref_logps=ref_logps), torch.tensor([[0.193147, 0.306853]]))


def test_golden(golden):
    # v0.11.4 calls k1 "kl" and k2 "mse"; both are elementwise, so padding agrees too. v2's k3 is a sum per row
    old, ref, v0, v2 = golden["inputs"]["old"], golden["inputs"]["ref"], golden["ppo_v0_11_4"], golden["ppo_v2"]
    assert_close(kl_k1(old, ref_logps=ref), v0["kls_kl"])
    assert_close(kl_k2(old, ref_logps=ref), v0["kls_mse"])
    mask = ~v2["k3_whiten0"]["padding_mask"]
    for name in ("k1", "k3"):
        kl = masked_sum(ESTIMATORS[f"kl_{name}"](old, ref_logps=ref), mask) / len(mask)
        assert kl.item() == pytest.approx(v2[f"{name}_whiten0"]["kl_sum_mean"])
    grpo = masked_mean(kl_k3(golden["inputs"]["logp"], ref_logps=ref), golden["inputs"]["mask"])
    assert grpo.item() == pytest.approx(golden["grpo_1_16"]["grpo_kl"]["kl"])


def enumerated():
    """A distribution over 6 tokens with gradient, a fixed reference, and KL(p || q) and KL(q || p) exactly."""
    logits, q = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    logits.requires_grad_()
    logps, ref_logps = logits.log_softmax(-1), q.log_softmax(-1)
    forward, reverse = (logps.exp() * (logps - ref_logps)).sum(), (ref_logps.exp() * (ref_logps - logps)).sum()
    return logits, logps, ref_logps, forward, reverse


@pytest.mark.parametrize("name", ["kl_k1", "kl_k3"])
def test_k1_and_k3_are_unbiased(name):
    _, logps, ref_logps, kl, _ = enumerated()
    assert_close((logps.exp() * ESTIMATORS[name](logps, ref_logps=ref_logps)).sum(), kl)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_expected_gradient_as_a_loss_is_the_one_in_the_docstring(name):
    # tokens are drawn from p, which is not differentiated: k1 gives 0, k2 the KL's gradient, k3 that of KL(q || p)
    logits, logps, ref_logps, forward, reverse = enumerated()
    loss = (logps.exp().detach() * ESTIMATORS[name](logps, ref_logps=ref_logps)).sum()
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    target = {"kl_k1": 0 * forward, "kl_k2": forward, "kl_k3": reverse}[name]
    assert_close(got, torch.autograd.grad(target, logits)[0])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradient(name):
    logps, ref_logps = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    inputs = (logps.clone().requires_grad_(), ref_logps.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: ESTIMATORS[name](a, ref_logps=b), inputs)


@few
@given(log_probs, log_probs)
def test_k2_and_k3_are_never_negative(a, b):
    logps, ref_logps = torch.tensor([[a]]), torch.tensor([[b]])
    assert kl_k2(logps, ref_logps=ref_logps) >= 0 and kl_k3(logps, ref_logps=ref_logps) >= 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_log_probs_give_0(name):
    logps = torch.tensor([[0.0, -1.0, -1e4]])
    assert not ESTIMATORS[name](logps, ref_logps=logps).any()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("a, b", [(-1e4, 0.0), (0.0, -1e4)])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(name, a, b):
    logps = torch.tensor([[a]], requires_grad=True)
    kl = ESTIMATORS[name](logps, ref_logps=torch.tensor([[b]]))
    kl.backward()
    assert kl.isfinite().all() and logps.grad.isfinite().all()


def test_k3_is_bounded_at_exp_20():
    # d = -20: exp(20) - 1 - 20 = 485165195.41 - 21
    kl = kl_k3(torch.tensor([[-20.0, -25.0]], dtype=torch.float64), ref_logps=torch.zeros(1, 2, dtype=torch.float64))
    assert kl[0, 0].item() == pytest.approx(485165174.41, rel=1e-9)
    assert kl[0, 1].item() == pytest.approx(kl[0, 0].item(), rel=1e-7)


@few
@given(st.floats(-100, 100))
def test_k2_and_k3_never_push_away_from_the_reference(d):
    for estimator in (kl_k2, kl_k3):
        logps = torch.tensor([[d]], dtype=torch.float64, requires_grad=True)
        estimator(logps, ref_logps=torch.zeros(1, 1, dtype=torch.float64)).backward()
        assert logps.grad.item() * d >= 0  # uphill is where |d| grows


def test_a_token_the_policy_cannot_produce_gives_a_large_number_not_infinity():
    kl = kl_k3(torch.tensor([[float("-inf")]]), ref_logps=torch.tensor([[0.0]]))
    assert 4e8 < kl.item() < 5e8


@pytest.mark.parametrize("name", ESTIMATORS)
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match=rf"^{name}: needed .* \{{'logps': \(2, 3\), 'ref_logps': \(2, 1\)\}}"):
        ESTIMATORS[name](torch.zeros(2, 3), ref_logps=torch.zeros(2, 1))


def test_fixed_controller_stays():
    kl = FixedKLController(0.3)
    kl.update(100.0, 64)
    assert kl.coef == 0.3 and kl.state_dict() == {"coef": 0.3}


def test_adaptive_controller_by_hand():
    # error 7.5 / 6 - 1 = 0.25 is clipped to 0.2, and 6.6 / 6 - 1 = 0.1 is not; n / horizon = 0.5
    kl = AdaptiveKLController(1.0, target=6, horizon=100)
    kl.update(7.5, 50)
    assert kl.coef == pytest.approx(1.1)  # 1 * (1 + 0.2 * 0.5)
    kl.update(6.6, 50)
    assert kl.coef == pytest.approx(1.155)  # 1.1 * (1 + 0.1 * 0.5)
    kl.update(0.0, 50)
    assert kl.coef == pytest.approx(1.0395)  # 1.155 * (1 - 0.2 * 0.5)
    kl.update(6.0, 50)
    assert kl.coef == pytest.approx(1.0395)  # on target


def test_adaptive_controller_golden(golden):
    kl, coefs = AdaptiveKLController(0.2, target=6, horizon=10000), []
    for measured in (3, 6, 7, 12, 0):
        kl.update(measured, 256)
        coefs.append(kl.coef)
    assert coefs == pytest.approx(golden["ppo_v0_11_4"]["adaptive_kl"].tolist(), rel=1e-10)
    assert coefs == pytest.approx([0.198976, 0.198976, 0.199825, 0.200848, 0.199820], abs=5e-7)


@pytest.mark.parametrize("make", [FixedKLController, lambda init: AdaptiveKLController(init, 6, 100)])
def test_controller_resumes_where_it_stopped(make):
    first, second = make(0.2), make(0.9)
    first.update(9.0, 10)
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.update(5.0, 10)
    assert first.coef == second.coef


@pytest.mark.parametrize("target, horizon", [(0, 100), (-1, 100), (float("nan"), 100), (6, 0), (6, -5)])
def test_adaptive_controller_refuses_a_target_or_horizon_of_0(target, horizon):
    with pytest.raises(ValueError, match=f"^AdaptiveKLController: .* must be > 0, got {target} and {horizon}$"):
        AdaptiveKLController(0.1, target=target, horizon=horizon)


@pytest.mark.parametrize(("target", "horizon"), [(0.5, 1), (1, 0.5)])
def test_small_targets_and_horizons_are_allowed(target, horizon):
    assert AdaptiveKLController(0.1, target, horizon).coef == 0.1
