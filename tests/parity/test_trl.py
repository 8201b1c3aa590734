"""The same numbers and gradients as TRL 1.16's trainers on random inputs, wherever the two mean the same loss.

Its losses are inside its trainers' methods. They are called on an object that has just what the method reads, in
evaluation mode (no accumulation), with the log-probs in the place of a model. Where TRL goes another way than the paper
the test says so and compares the rest.
"""

import functools
import os
import types
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # or it warns about half of what is compared here
pytest.importorskip("trl", reason='compares with TRL (pip install -e ".[parity]")')

from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from minirlhf.losses import (
    AdaptiveEntropyController,
    alpha_link,
    alphapo_loss,
    aot_paired_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    apo_zero_unpaired_loss,
    bco_pair_loss,
    bradley_terry_loss,
    cispo_policy_loss,
    cpo_loss,
    cross_entropy,
    desensitised_logps,
    dft_loss,
    discopop_loss,
    dpo_loss,
    dpo_sigmoid_loss,
    exo_loss,
    forward_kl_link,
    gdpo_advantages,
    generalised_js,
    gmpo_policy_loss,
    group_advantages,
    gspo_policy_loss,
    high_entropy_mask,
    hinge_dpo_loss,
    ipo_loss,
    js_link,
    kl_k3,
    kto_kl,
    kto_loss,
    linear_distillation_loss,
    masked_mean,
    mean_logps,
    nca_loss,
    orpo_loss,
    ppo_policy_loss,
    ratio_diagnostics,
    reinforce_policy_loss,
    reward_centering_loss,
    rloo_advantages,
    robust_dpo_loss,
    sapo_policy_loss,
    sequence_mean,
    simpo_loss,
    sppo_hard_loss,
    sum_logps,
    token_entropy,
    token_logps,
    truncated_importance_weights,
    vespo_policy_loss,
    weighted_scores,
    whiten_judged,
    wpo_weights,
)

pytestmark = pytest.mark.parity

B, T, V = 6, 9, 13
MASK = (torch.arange(T) > 2) & (torch.arange(T) < torch.tensor([9, 5, 7, 4, 8, 6])[:, None])  # three prompt tokens
PAIR_MASK = torch.cat([MASK, MASK.flip(0)])  # chosen, rejected


class StandIn(SimpleNamespace):
    """Has what a method of a trainer reads; what is not given is None, that is, off."""

    def __getattr__(self, name):
        return None


def alone(value, **_):
    """A gather, a reduce or a pad over one process."""
    return value


ACCELERATOR = StandIn(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    gather=alone,
    gather_for_metrics=alone,
    reduce=alone,
    pad_across_processes=alone,
    sync_gradients=True,
)


def trainer(**attributes):
    common = {"accelerator": ACCELERATOR, "model": StandIn(training=False), "args": StandIn()}
    metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    return StandIn(**common | {"_metrics": metrics, "_total_train_tokens": 0, "_tp_size": 1} | attributes)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_probs(seed, rows=B):
    """[rows, T] log-probs of a policy that has moved away from another seed's by some tenths of a nat; 0 elsewhere."""
    mask = MASK.repeat(rows // B, 1)
    return torch.where(mask, -1.5 + 0.5 * randn(0, rows, T).tanh() + 0.4 * randn(seed, rows, T), 0).clamp(max=0)


def leaf(x):
    return x.detach().clone().requires_grad_()


def same(function, other, *inputs):
    """Two scalar losses of the same leaves: value and gradients."""
    results = []
    for f in (function, other):
        leaves = [leaf(x) for x in inputs]
        loss = f(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert any(grad.abs().max() > 1e-5 for grad in results[1][1:])
    for got, want in zip(*results, strict=True):
        assert_close(got, want, atol=1e-6, rtol=1e-6, check_dtype=False)


# The policy-gradient family


def policy_inputs(seed):
    advantages = randn(seed + 3, B)
    return log_probs(seed + 1), log_probs(seed + 2), advantages, advantages[:, None].expand(B, T)


def grpo_trainer(logps, entropy, settings, kind=GRPOTrainer):
    args = {
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    }
    common = {"importance_sampling_level": "token", "top_entropy_quantile": 1.0, "max_completion_length": 20}
    common |= {"beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "loss_type": "grpo"}
    self = trainer(**common | settings)
    self.args = StandIn(**args | settings)
    self._get_per_token_logps_and_entropies = lambda *_, **__: (logps, entropy, None)
    self.get_gamma_weights = GRPOTrainer.get_gamma_weights
    self.get_high_entropy_mask = types.MethodType(GRPOTrainer.get_high_entropy_mask, self)
    return self


def grpo_inputs(old_logps, advantages, **more):
    ids = torch.zeros(B, 0, dtype=torch.long)
    parts = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": MASK.long(), "completion_mask": MASK.long()}
    counts = {"num_items_in_batch": torch.tensor(50.0)}
    return {**parts, **counts, "old_per_token_logps": old_logps, "advantages": advantages, **more}


def per_row(losses):
    return sequence_mean(losses, MASK)


def per_token(losses):
    return masked_mean(losses, MASK)


def of_50(losses):
    return masked_mean(losses, MASK, count=50)


def gspo(logps, **policy):
    return gspo_policy_loss(logps, mask=MASK, **policy)


def vespo(logps, **policy):
    return vespo_policy_loss(logps, mask=MASK, **policy)


HIGH, SEQUENCE = {"epsilon_high": 0.28}, {"importance_sampling_level": "sequence"}
FAMILY = {
    "grpo": ({}, ppo_policy_loss, per_row),
    "token mean (bnpo)": ({"loss_type": "bnpo"}, ppo_policy_loss, per_token),
    "dr_grpo": ({"loss_type": "dr_grpo"}, ppo_policy_loss, functools.partial(masked_mean, mask=MASK, count=B * 20)),
    "dapo": ({"loss_type": "dapo"} | HIGH, functools.partial(ppo_policy_loss, clip_eps_high=0.28), of_50),
    "dual clip": ({"delta": 1.3}, functools.partial(ppo_policy_loss, dual_clip=1.3), per_row),
    # its epsilon_high is the bound itself, ours what is above 1
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        functools.partial(cispo_policy_loss, clip_eps_high=0.3),
        of_50,
    ),
    "sapo": ({"loss_type": "sapo"}, sapo_policy_loss, per_row),
    "vespo": ({"loss_type": "vespo"}, vespo, of_50),
    "gspo": (SEQUENCE, functools.partial(gspo, clip_eps=0.2), per_row),
    "gspo, tight": (
        {"epsilon_low": 0.03, "epsilon_high": 0.04} | SEQUENCE,
        functools.partial(gspo, clip_eps=0.03, clip_eps_high=0.04),
        per_row,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings, surrogate, average", FAMILY.values(), ids=FAMILY)
def test_policy_losses(seed, settings, surrogate, average):
    logps, old_logps, advantages, columns = policy_inputs(seed)

    def ours(logps):
        return average(surrogate(logps, old_logps=old_logps, advantages=columns))

    def theirs(logps):
        self = grpo_trainer(logps, torch.zeros(B, T), settings)
        return GRPOTrainer._compute_loss(self, None, grpo_inputs(old_logps, advantages))

    same(ours, theirs, logps)


def test_kl_in_the_loss():
    logps, old_logps, advantages, columns = policy_inputs(0)
    ref_logps = log_probs(9)

    def ours(logps):
        losses = ppo_policy_loss(logps, old_logps=old_logps, advantages=columns)
        return per_row(losses + 0.3 * kl_k3(logps, ref_logps=ref_logps))

    def theirs(logps):
        self = grpo_trainer(logps, torch.zeros(B, T), {"beta": 0.3})
        return GRPOTrainer._compute_loss(self, None, grpo_inputs(old_logps, advantages, ref_per_token_logps=ref_logps))

    same(ours, theirs, logps)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_only_tokens_of_high_entropy(share):
    logps, old_logps, advantages, columns = policy_inputs(0)
    entropy = torch.where(MASK, randn(5, B, T).abs(), 0).float()  # its threshold is taken in float32

    def ours(logps):
        losses = ppo_policy_loss(logps, old_logps=old_logps, advantages=columns)
        return of_50(losses * high_entropy_mask(entropy, MASK, share))

    def theirs(logps):
        self = grpo_trainer(logps, entropy, {"loss_type": "dapo", "top_entropy_quantile": share})
        return GRPOTrainer._compute_loss(self, None, grpo_inputs(old_logps, advantages))

    same(ours, theirs, logps)


def test_clip_fraction():
    logps, old_logps, advantages, columns = policy_inputs(1)
    self = grpo_trainer(logps, torch.zeros(B, T), HIGH)
    GRPOTrainer._compute_loss(self, None, grpo_inputs(old_logps, advantages))
    (wanted,) = self._metrics["eval"]["clip_ratio/region_mean"]
    seen = ratio_diagnostics(logps, old_logps=old_logps, advantages=columns, clip_eps_high=0.28)["clip_fraction"]
    assert 0 < wanted < 1
    assert per_token(seen).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_gmpo(seed):
    logps, old_logps, advantages, columns = policy_inputs(seed)

    def ours(logps):
        return per_row(gmpo_policy_loss(logps, old_logps=old_logps, advantages=columns, mask=MASK, clip_eps=0.1))

    def theirs(logps):
        self = grpo_trainer(logps, torch.zeros(B, T), {"epsilon_low": 0.1, "epsilon_high": 0.1})
        return GMPOTrainer._compute_loss(self, None, grpo_inputs(old_logps, advantages))

    same(ours, theirs, logps)


@pytest.mark.parametrize("on_policy", [True, False])
def test_rloo(on_policy):
    # its ratio is that of the whole completion; on policy its gradient is REINFORCE's, the sum over tokens
    logps, old_logps, advantages, columns = policy_inputs(0)
    old_logps = logps if on_policy else old_logps

    def ours(logps):
        if on_policy:
            return masked_mean(reinforce_policy_loss(logps, advantages=columns), MASK, count=B)
        sums = {"old_logps": sum_logps(old_logps, MASK), "advantages": advantages}
        return ppo_policy_loss(sum_logps(logps, MASK), **sums, clip_eps=0.5).mean()

    def theirs(logps):
        self = grpo_trainer(logps, torch.zeros(B, T), {"epsilon_low": 0.5, "epsilon_high": 0.5})
        inputs = grpo_inputs(None, advantages) | {"old_logps": (old_logps * MASK).sum(1)}
        loss = RLOOTrainer._compute_loss(self, None, inputs)
        return loss - loss.detach() + ours(logps).detach() if on_policy else loss  # the value is mean A there

    same(ours, theirs, logps)


def test_entropy_bonus():
    target, delta = 1.0, 0.1
    args = {"entropy_target": target, "entropy_coef_delta": delta, "entropy_coef_max": 9.0, "entropy_coef_min": 0.0}
    self = grpo_trainer(torch.zeros(B, T), torch.zeros(B, T), args)
    self.model, self.current_gradient_accumulation_steps = StandIn(training=True), 1
    self._entropy_bonus_enabled = self.use_adaptive_entropy = True
    self.entropy_coef, self._last_world_entropy = 0.15, 0.0  # ours pays from the first update on
    controller = AdaptiveEntropyController(0.15, target, delta)
    for entropy in (0.5, 0.9, 1.4, 1.3, 1.2, 1.1, 1.6, 0.2, 0.9):
        entropies = torch.full((B, T), entropy, dtype=torch.float64)
        self._get_per_token_logps_and_entropies = lambda *_, e=entropies, **__: (torch.zeros(B, T), e, None)
        loss = GRPOTrainer._compute_loss(self, None, grpo_inputs(torch.zeros(B, T), torch.zeros(B)))
        assert loss.item() == pytest.approx(-controller.coef * entropy, abs=1e-6)
        controller.update(entropy)
    assert self.entropy_coef == pytest.approx(controller.level)


# Advantages


def scored(kind, scores, weights, **settings):
    """What a trainer makes of [N, F] scores of completions of one token, in groups of 4."""
    rows, functions = scores.shape
    defaults = {"num_generations_eval": 4, "num_iterations": 1, "beta": 0.0, "scale_rewards": "group"}
    names = [str(i) for i in range(functions)]
    logs = {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": {}}
    rewards = {"reward_funcs": names, "reward_func_names": names, "reward_weights": weights}
    self = trainer(
        **defaults | {"multi_objective_aggregation": "sum_then_normalize"} | settings,
        **rewards,
        _tokenizer=StandIn(pad_token_id=0),
        _logs=logs,
        _pending_extra_logs={},
        _pending_metrics={},
    )
    self.args = StandIn(steps_per_generation=1, gradient_accumulation_steps=1)
    prompts, completions, texts = [[1]] * rows, [[2]] * rows, ["x"] * rows
    sampled = settings.get("sampled", torch.zeros(rows, 1)).tolist()
    written = {GRPOTrainer: (None, texts, sampled, {}, None, None), RLOOTrainer: (texts,)}[kind]
    self._generate = lambda _: (prompts, completions, *written)
    self._calculate_rewards = lambda *_: scores.clone()
    logps = settings.get("logps", torch.zeros(rows, 1))
    self._get_per_token_logps_and_entropies = lambda *_, **__: (logps, None, None)
    return kind._generate_and_score_completions(self, [{"prompt": "y"}] * rows)


def score_table(seed=0):
    """[12, 3]: groups of 4, three functions; holes, a row that nobody judges, a group of equal scores."""
    scores = randn(seed, 12, 3)
    scores[8:] = scores[8]
    scores[1, 0] = scores[6, 2] = scores[5] = torch.nan
    return scores, torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(scale):
    scores, weights = score_table()
    theirs = scored(GRPOTrainer, scores, weights, scale_rewards=scale)["advantages"]
    assert_close(group_advantages(weighted_scores(scores, weights), 4, scale), theirs, atol=1e-6, rtol=1e-6)


def test_gdpo_advantages():
    scores, weights = score_table()
    theirs = scored(GRPOTrainer, scores, weights, multi_objective_aggregation="normalize_then_sum")["advantages"]
    assert_close(whiten_judged(gdpo_advantages(scores, weights, 4)), theirs, atol=1e-6, rtol=1e-6)


def test_rloo_advantages():
    scores, weights = score_table()
    theirs = scored(RLOOTrainer, scores, weights)["advantages"]
    assert_close(rloo_advantages(weighted_scores(scores, weights), 4), theirs, atol=1e-6, rtol=1e-6)
    theirs = scored(RLOOTrainer, scores, weights, normalize_advantages=True)["advantages"]
    judged = ~scores.isnan().all(-1)
    ours = rloo_advantages(weighted_scores(scores, weights), 4).masked_fill(~judged, torch.nan)
    assert_close(whiten_judged(ours), theirs, atol=1e-6, rtol=1e-6)


def test_truncated_importance_weights():
    logps, sampled = randn(1, 12, 1), randn(2, 12, 1)
    vllm = {"use_vllm": True, "vllm_importance_sampling_correction": True, "vllm_importance_sampling_clip_max": 2.0}
    vllm |= {"vllm_importance_sampling_mode": "token_truncate", "sampled": sampled, "logps": logps}
    theirs = scored(GRPOTrainer, *score_table(), **vllm)["importance_sampling_ratio"]
    assert (theirs == 2).any() and (theirs < 2).any()
    ours = truncated_importance_weights(logps, sampler_logps=sampled)
    assert_close(ours, theirs, atol=1e-6, rtol=1e-6, check_dtype=False)


# Preferences


def outputs(logps, collision=None):
    """What a model of TRL's says: [B, T - 1] or [2 B, T - 1] for the tokens after the first, 0 outside the labels."""
    mask = MASK if len(logps) == B else PAIR_MASK
    logps, zeros = torch.where(mask, logps, 0)[:, 1:], torch.zeros(len(logps), T - 1)
    top = zeros.bool()
    more = {"entropy": zeros, "mean_logits": zeros, "is_top1": top, "label_mask": top}
    return StandIn(log_probs=logps, log_sum_sq_probs=None if collision is None else collision[:, 1:], **more)


def pairs(seed, spread=1.0):
    """[2 B, T] log-probs of policy and reference."""
    return [torch.where(PAIR_MASK, spread * x, 0) for x in (log_probs(seed + 1, 2 * B), log_probs(seed + 2, 2 * B))]


def theirs_dpo(logps, ref_logps, loss_type="sigmoid", collision=None, **settings):
    common = {"beta": 0.5, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "loss_weights": [1.0]}
    self = trainer(**common | {"loss_types": [loss_type], "ref_model": lambda **_: outputs(ref_logps)} | settings)
    self.args = StandIn(discopop_tau=0.05)
    ids = PAIR_MASK.long()
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids}
    return DPOTrainer._compute_loss(self, lambda **_: outputs(logps, collision), inputs, False)


def sums(logps):
    return sum_logps(logps, PAIR_MASK).chunk(2)


def means(logps):
    return mean_logps(logps, PAIR_MASK).chunk(2)


def ratios(logps, ref_logps, reduce=sums):
    """Log-ratios of chosen and rejected, [B] each."""
    return [x - y for x, y in zip(reduce(logps), reduce(ref_logps), strict=True)]


def four(logps, ref_logps):
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return dict(zip(names, (*sums(logps), *sums(ref_logps)), strict=True))


DPO = {
    "sigmoid": (dpo_sigmoid_loss, sums, {}),
    "sigmoid_norm": (dpo_sigmoid_loss, means, {}),
    "hinge": (hinge_dpo_loss, sums, {}),
    "ipo": (ipo_loss, means, {}),  # of means there, of sums in the paper
    "exo_pair": (exo_loss, sums, {"label_smoothing": 0.1}),
    "nca_pair": (nca_loss, sums, {}),
    "robust": (robust_dpo_loss, sums, {"label_smoothing": 0.2}),
    "bco_pair": (bco_pair_loss, sums, {}),  # without the running shift
    "sppo_hard": (sppo_hard_loss, sums, {}),
    "aot_unpaired": (aot_unpaired_loss, sums, {"label_smoothing": 0.1}),
    "apo_zero": (apo_zero_loss, sums, {}),
    "apo_down": (apo_down_loss, sums, {}),
    "discopop": (discopop_loss, sums, {}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DPO)
def test_dpo_losses(name, seed):
    loss, reduce, options = DPO[name]
    logps, ref_logps = pairs(seed)

    def ours(logps):
        return loss(*ratios(logps, ref_logps, reduce), beta=0.5, **options).mean()

    same(ours, lambda logps: theirs_dpo(logps, ref_logps, name, **options), logps)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_four_sums(smoothing):
    logps, ref_logps = pairs(3)
    same(
        lambda logps: aot_paired_loss(**four(logps, ref_logps), beta=0.5, label_smoothing=smoothing).mean(),
        lambda logps: theirs_dpo(logps, ref_logps, "aot", label_smoothing=smoothing),
        logps,
    )
    same(
        lambda logps: dpo_loss(**four(logps, ref_logps), beta=0.5).mean(),
        lambda logps: theirs_dpo(logps, ref_logps),
        logps,
    )


F_DIVERGENCES = {
    "forward_kl": (forward_kl_link, {}),
    "js_divergence": (js_link, {}),
    # its coefficient is 1 - alpha
    "alpha_divergence": (functools.partial(alpha_link, alpha=0.3), {"f_alpha_divergence_coef": 0.7}),
}


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_f_divergences(name, loss_type):
    link, options = F_DIVERGENCES[name]
    logps, ref_logps = pairs(5, spread=0.3)
    if name == "alpha_divergence":  # float32 only, there
        logps, ref_logps = logps.float(), ref_logps.float()
    loss = DPO[loss_type][0]
    same(
        lambda logps: loss(*map(link, ratios(logps, ref_logps)), beta=0.5).mean(),
        lambda logps: theirs_dpo(logps, ref_logps, loss_type, f_divergence_type=name, **options),
        logps,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_length_desensitised_dpo(alpha):
    logps, ref_logps = pairs(6)

    def reduce(logps):
        (chosen, rejected), (mask, other) = logps.chunk(2), PAIR_MASK.chunk(2)
        return (
            desensitised_logps(chosen, mask, other_mask=other, alpha=alpha),
            desensitised_logps(rejected, other, other_mask=mask, alpha=alpha),
        )

    same(
        lambda logps: dpo_sigmoid_loss(*ratios(logps, ref_logps, reduce), beta=0.5).mean(),
        lambda logps: theirs_dpo(logps, ref_logps, ld_alpha=alpha),
        logps,
    )


@pytest.mark.parametrize("offset", [-1.0, 0.3])
def test_weighted_preferences(offset):
    # its weight of a pair is not held at 1, the paper's and ours are: the second offset makes some larger
    logps, ref_logps = pairs(7)
    collision = torch.where(PAIR_MASK, logps - offset + 0.3 * randn(8, 2 * B, T), 0)
    (chosen, rejected), (chosen_mean, rejected_mean) = logps.chunk(2), collision.chunk(2)
    mask, other = PAIR_MASK.chunk(2)
    weights = wpo_weights(
        chosen_logps=chosen,
        rejected_logps=rejected,
        chosen_expected=chosen_mean,
        rejected_expected=rejected_mean,
        chosen_mask=mask,
        rejected_mask=other,
    )
    assert (weights == 1).any() == (offset > 0)
    if offset > 0:
        gap = [x - y for x, y in zip(means(logps), means(collision), strict=True)]
        factor = (gap[0] + gap[1]).exp().clamp(min=1)
        weights = weights * factor
    same(
        lambda logps: (weights * dpo_sigmoid_loss(*ratios(logps, ref_logps), beta=0.5)).mean(),
        lambda logps: theirs_dpo(logps, ref_logps, use_weighting=True, collision=collision),
        logps,
    )


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("sign", [1, -1])
def test_unpaired_losses(kind, sign):
    logps, ref_logps, mismatched = log_probs(1), log_probs(2), sign * (0.5 + randn(3, B).abs())
    desirable = torch.tensor([True, False, True, True, False, False])

    def ours(logps):
        x = sum_logps(logps, MASK) - sum_logps(ref_logps, MASK)
        if kind == "apo_zero_unpaired":
            return apo_zero_unpaired_loss(x, desirable=desirable, beta=0.3).mean()
        weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
        return kto_loss(x, desirable=desirable, kl=kto_kl(mismatched), beta=0.3, **weights).mean()

    def theirs(logps):
        weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7} if kind == "kto" else {}
        common = {"beta": 0.3, "loss_type": kind, "calculate_KL": kind == "kto", "precompute_ref_logps": True}
        self = trainer(**{"desirable_weight": 1.0, "undesirable_weight": 1.0} | common | weights)
        self._compute_kl_logps = lambda *_: mismatched
        ids = {"input_ids": MASK.long(), "attention_mask": MASK.long(), "completion_mask": MASK.long()}
        reference = {"ref_logps": sum_logps(ref_logps, MASK), "ref_KL_logps": torch.zeros(B)}
        inputs = {**ids, **reference, "label": desirable}
        return KTOTrainer._compute_loss(self, lambda **_: outputs(logps), inputs, False)

    same(ours, theirs, logps)


def test_orpo():
    # its figure is to be subtracted from the likelihood, ours to be added; it computes in float32
    chosen, rejected = (-randn(1, 2, 8).abs()).unbind()
    self = trainer(beta=0.4)
    same(
        lambda *logps: orpo_loss(*logps, beta=0.4).mean(),
        lambda *logps: -ORPOTrainer.odds_ratio_loss(self, *logps)[0].mean().double(),
        chosen,
        rejected,
    )


CPO = {
    "sigmoid": (cpo_loss, {"label_smoothing": 0.1}, {}),
    "hinge": (hinge_dpo_loss, {}, {}),
    "ipo": (ipo_loss, {}, {}),
    "simpo": (simpo_loss, {"gamma": 0.7}, {"simpo_gamma": 0.7}),
    "alphapo": (alphapo_loss, {"gamma": 0.7, "alpha": 0.3}, {"simpo_gamma": 0.7, "alpha": 0.3, "loss_type": "simpo"}),
}


@pytest.mark.parametrize("name", CPO)
def test_reference_free_losses(name):
    loss, options, settings = CPO[name]
    chosen, rejected = (-randn(2, 2, 8).abs()).unbind()
    self = trainer(**{"beta": 1.5, "alpha": 0.0, "loss_type": name, "label_smoothing": 0.0} | options | settings)
    same(
        lambda *logps: loss(*logps, beta=1.5, **options).mean(),
        lambda *logps: CPOTrainer.cpo_loss(self, *logps)[0].mean(),
        chosen,
        rejected,
    )


@pytest.mark.parametrize("with_margin", [True, False])
def test_reward_model(with_margin):
    scores, margin = randn(1, 2 * B), randn(2, B).abs() if with_margin else None

    def ours(scores):
        pair = dict(zip(("chosen_scores", "rejected_scores"), scores.chunk(2), strict=True))
        return (bradley_terry_loss(**pair, margin=margin) + 0.01 * reward_centering_loss(**pair)).mean()

    def theirs(scores):
        self = trainer(args=StandIn(center_rewards_coefficient=0.01))
        inputs = {"margin": margin} if with_margin else {}
        return RewardTrainer.compute_loss(self, lambda **_: StandIn(logits=scores[:, None]), inputs)

    same(ours, theirs, scores)


# Supervised and distillation


@pytest.mark.parametrize("loss_type, loss", [("nll", cross_entropy), ("dft", dft_loss)])
def test_supervised_losses(loss_type, loss):
    def theirs(logps):
        self = trainer(args=StandIn(loss_type=loss_type))
        answer = outputs(logps)
        answer.label_mask = MASK[:, 1:]
        return SFTTrainer.compute_loss(self, lambda **_: answer, {"labels": MASK.long()})

    same(lambda logps: per_token(loss(logps)), theirs, log_probs(1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropy_of_logits(temperature):
    logits, ids = 3 * randn(1, B, T, V), torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    weights = randn(2, B, T - 1)  # so that each token's gradient counts
    same(
        lambda logits: (weights * token_logps(logits, ids, temperature)[:, 1:]).sum(),
        lambda logits: (weights * selective_log_softmax(logits[:, :-1], ids[:, 1:], temperature)).sum(),
        logits,
    )
    same(
        lambda logits: (weights * token_entropy(logits, temperature)[:, 1:]).sum(),
        lambda logits: (weights * entropy_from_logits(logits[:, :-1] / temperature)).sum(),
        logits,
    )


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalised_js(beta):
    student, teacher = 2 * randn(1, 2, B, T, V)

    def ours(student):
        logps = ((x / 0.7).log_softmax(-1) for x in (student, teacher))
        return per_token(generalised_js(*logps, beta=beta))

    def theirs(student):
        labels = torch.where(MASK, 1, -100)
        return GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=0.7)

    same(ours, theirs, student)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_distillation_of_two_heads(beta):
    hidden, weight = randn(1, B, T, 5), randn(2, V, 5)
    teacher_hidden, teacher_weight = randn(3, B, T, 7), randn(4, V, 7)

    def ours(hidden, weight):
        teacher = {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight}
        return per_token(linear_distillation_loss(hidden, weight, **teacher, mask=MASK, beta=beta, temperature=0.7))

    def theirs(hidden, weight):  # its mask is in model order already
        hiddens, heads = (hidden[:, :-1], teacher_hidden[:, :-1]), (weight, teacher_weight)
        return _chunked_divergence_loss(*hiddens, *heads, MASK[:, 1:], beta, temperature=0.7)[0]

    same(ours, theirs, hidden, weight)
