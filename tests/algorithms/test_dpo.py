"""DPO and its family: each loss and its gradient by the paper's formula, each setting, and every refusal."""

import copy
import math

import pytest
import tiny
import torch
from torch.nn.functional import logsigmoid, relu
from torch.testing import assert_close

from minirlhf.algorithms import DPOConfig, DPOTrainer
from minirlhf.algorithms.dpo_recipes import LOSSES
from minirlhf.errors import InputError
from minirlhf.losses import token_logps
from minirlhf.model import Policy, copy_of
from minirlhf.training.vocabulary import METRICS

LN2 = math.log(2)
FREE = ("orpo", "cpo", "simpo", "alphapo")
MEAN = ("sigmoid_norm", "orpo", "simpo", "alphapo")


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def answers(policy, batch, side):
    """Each pair's answer, unpadded, from the full logits: [(log-probs [n], log sum_v p^2 [n])]."""
    rows = []
    for draw in batch:
        prompt, response = draw.row.prompt, draw.row.responses[side]
        ids = torch.tensor([prompt + response])
        logits = policy.transformer(ids)
        here = slice(len(prompt), None)
        collision = (2 * logits.log_softmax(-1)).logsumexp(-1)[0, len(prompt) - 1 : -1]
        rows.append((token_logps(logits, ids)[0, here], collision))
    return rows


# c and r: beta times the log-ratio (or log-prob) of the chosen and of the rejected answer; b: beta
FORMULAS = {
    "sigmoid": lambda c, r, b: -logsigmoid(c - r),
    "robust": lambda c, r, b: (-0.9 * logsigmoid(c - r) + 0.1 * logsigmoid(r - c)) / 0.8,  # 10% by default
    "ipo": lambda c, r, b: ((c - r) / b - 1 / (2 * b)) ** 2,
    "hinge": lambda c, r, b: relu(1 - (c - r)),
    "exo": lambda c, r, b: (c - r).sigmoid() * (logsigmoid(c - r) - math.log(0.999))
    + (r - c).sigmoid() * (logsigmoid(r - c) - math.log(0.001)),
    "nca": lambda c, r, b: -logsigmoid(c) - (logsigmoid(-c) + logsigmoid(-r)) / 2,
    "bco_pair": lambda c, r, b: -logsigmoid(c) - logsigmoid(-r),  # the shift of the first step is 0
    "sppo_hard": lambda c, r, b: (c / b - 1 / (2 * b)) ** 2 + (r / b + 1 / (2 * b)) ** 2,
    "aot_unpaired": lambda c, r, b: -logsigmoid(c.sort().values - r.sort().values),
    "apo_zero": lambda c, r, b: 1 - c.sigmoid() + r.sigmoid(),
    "apo_down": lambda c, r, b: c.sigmoid() + 1 - (c - r).sigmoid(),
    "discopop": lambda c, r, b: (r - c).div(0.05).sigmoid() * -logsigmoid(c - r)
    + (c - r).div(0.05).sigmoid() * torch.exp(r - c),
    "sigmoid_norm": lambda c, r, b: -logsigmoid(c - r),
    "orpo": lambda c, r, b: -b * logsigmoid(odds(c / b) - odds(r / b)),
    "cpo": lambda c, r, b: -logsigmoid(c - r),
    "simpo": lambda c, r, b: -logsigmoid(c - r - 0.5),
    "alphapo": lambda c, r, b: -logsigmoid(b * (1 - torch.exp(-0.25 * c / b)) / 0.25
                                           - b * (1 - torch.exp(-0.25 * r / b)) / 0.25 - 0.5),
}  # fmt: skip


def odds(logp):
    return logp - torch.log(1 - logp.exp())


def papers_loss(trainer, batch, name, beta):
    per_answer = torch.mean if name in MEAN else torch.sum
    sides = []
    for side in (0, 1):
        now = torch.stack([per_answer(x) for x, _ in answers(trainer.models["policy"], batch, side)])
        if name not in FREE:
            ref = torch.stack([per_answer(x) for x, _ in answers(trainer.ref_policy, batch, side)]).detach()
            sides.append((now, ref))
        else:
            sides.append((now, torch.zeros_like(now)))
    (c, ref_c), (r, ref_r) = sides
    if name == "aot":  # sorted margins of the policy against sorted margins of the reference
        loss = -logsigmoid(beta * ((c - r).sort().values - (ref_c - ref_r).sort().values)).mean()
    else:
        loss = FORMULAS[name](beta * (c - ref_c), beta * (r - ref_r), beta).mean()
    if name in ("orpo", "cpo"):
        loss = loss - torch.cat([x for x, _ in answers(trainer.models["policy"], batch, 0)]).mean()
    return loss


def check_gradient(trainer, batch, loss):
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-7)
    assert max(g.abs().max() for g in expected) > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_gradient_of_the_papers_formula(batch, name):
    trainer = tiny.dpo(loss=name, beta=0.3)
    check_gradient(trainer, batch, papers_loss(trainer, batch, name, 0.3))


AT_FIRST = {"ipo": 25, "hinge": 1, "nca": 2 * LN2, "bco_pair": 2 * LN2, "sppo_hard": 50, "apo_zero": 1, "apo_down": 1}
AT_FIRST |= {"discopop": (LN2 + 1) / 2, "exo": -LN2 - (math.log(0.999) + math.log(0.001)) / 2}


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in FREE])
def test_the_first_loss_of_a_policy_that_is_the_reference_is_known(batch, name):
    # every log-ratio is 0, so most losses are ln 2. ipo with beta 0.1: (1 / 0.2)^2 = 25. discopop's gate is 1/2
    policy = Policy(tiny.transformer())
    trainer = DPOTrainer(policy, copy_of(policy), tiny.tokenizer(), DPOConfig(loss=name, batch_size=8), 3)
    metrics = trainer.step(batch)
    assert metrics["loss"] == pytest.approx(AT_FIRST.get(name, LN2))
    assert metrics["margin"] == metrics["chosen_reward"] == metrics["rejected_reward"] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_chosen_answers_gain_on_the_rejected(name):
    trainer = tiny.dpo(torch.float32, 8, loss=name, beta=1.0 if name in FREE else 0.3, lr=4e-2)
    rows = [draw.row for draw in tiny.batches(8, 1)[0]]
    before = trainer.evaluate(rows)
    batch = tiny.batches(8, 1)[0]
    log = [trainer.step(batch) for _ in range(8)]
    after = trainer.evaluate(rows)
    assert after["margin"] > before["margin"] + 0.1 and after["loss"] < before["loss"] - 0.01
    assert after["accuracy"] >= 0.75
    assert log[0].keys() <= METRICS.keys() and all(map(math.isfinite, log[-1].values()))


# Settings


@pytest.mark.parametrize(
    ("link", "value"),
    [
        ("forward_kl", lambda x: -torch.exp(-x)),
        ("js", lambda x: x - torch.log(1 + x.exp())),
        ("alpha", lambda x: -torch.exp(-x / 2) * 2),
    ],
)
def test_another_divergence_is_a_link_on_both_log_ratios(batch, link, value):
    # answers are short, so exp(log-ratio) stays small
    trainer = tiny.dpo(divergence=link, beta=0.3)
    sides = []
    for side in (0, 1):
        now, ref = (
            [x.sum() for x, _ in answers(p, batch, side)] for p in (trainer.models["policy"], trainer.ref_policy)
        )
        sides.append(value(torch.stack(now) - torch.stack(ref).detach()))
    check_gradient(trainer, batch, -logsigmoid(0.3 * (sides[0] - sides[1])).mean())


def test_label_smoothing_is_cdpo_and_unbiased_in_robust(batch):
    for name in ("sigmoid", "robust"):
        trainer = tiny.dpo(loss=name, label_smoothing=0.2, beta=0.3)
        margins = []
        for side in (0, 1):
            now, ref = ([x.sum() for x, _ in answers(p, batch, side)]
                        for p in (trainer.models["policy"], trainer.ref_policy))  # fmt: skip
            margins.append(0.3 * (torch.stack(now) - torch.stack(ref).detach()))
        m = margins[0] - margins[1]
        if name == "sigmoid":
            losses = -0.8 * logsigmoid(m) - 0.2 * logsigmoid(-m)
        else:
            losses = (-0.8 * logsigmoid(m) + 0.2 * logsigmoid(-m)) / 0.6
        check_gradient(trainer, batch, losses.mean())


def test_all_weights_of_tokens_and_pairs_at_once(batch):
    # LD-DPO: tokens beyond the shorter answer have weight 0.3. WPO: pairs have weights. RPO: the chosen answers' nll
    trainer = tiny.dpo(length_alpha=0.3, weighting=True, nll_coef=0.7, beta=0.3)
    policy = [answers(trainer.models["policy"], batch, side) for side in (0, 1)]
    reference = [answers(trainer.ref_policy, batch, side) for side in (0, 1)]
    losses = []
    for i in range(8):
        shared = min(len(policy[0][i][0]), len(policy[1][i][0]))
        ratios, weight = [], 1.0
        for side in (0, 1):
            d = policy[side][i][0] - reference[side][i][0].detach()
            ratios.append(d[:shared].sum() + 0.3 * d[shared:].sum())
            logps, collision = policy[side][i]
            weight = weight * math.exp((logps - collision).mean().item())
        losses.append(min(weight, 1.0) * -logsigmoid(0.3 * (ratios[0] - ratios[1])))
    nll = -torch.cat([x for x, _ in policy[0]]).mean()
    check_gradient(trainer, batch, torch.stack(losses).mean() + 0.7 * nll)


def test_without_a_reference_log_probs_are_log_ratios(batch):
    trainer = tiny.dpo(reference_free=True, beta=0.3)
    assert trainer.ref_policy is None
    chosen, rejected = (
        torch.stack([x.sum() for x, _ in answers(trainer.models["policy"], batch, side)]) for side in (0, 1)
    )
    check_gradient(trainer, batch, -logsigmoid(0.3 * (chosen - rejected)).mean())


def test_bco_shifts_by_the_mean_of_all_rewards_so_far(batch):
    trainer = tiny.dpo(loss="bco_pair", beta=0.3, lr=3e-2)
    log = [trainer.step(batch) for _ in range(2)]
    rewards = [(m["chosen_reward"] + m["rejected_reward"]) / 2 for m in log]
    assert trainer.shift.mean == pytest.approx(sum(rewards) / 2) and trainer.shift.mean != 0
    shift, terms = trainer.shift.mean, []
    for side, sign in ((0, 1), (1, -1)):
        now, ref = (
            [x.sum() for x, _ in answers(p, batch, side)] for p in (trainer.models["policy"], trainer.ref_policy)
        )
        terms.append(-logsigmoid(sign * (0.3 * (torch.stack(now) - torch.stack(ref).detach()) - shift)))
    check_gradient(trainer, batch, (terms[0] + terms[1]).mean())


def test_tr_dpo_moves_the_reference_at_every_second_step():
    trainer, batches = tiny.dpo(ref_update_every=2, ref_update_mix=0.6, lr=3e-2), tiny.batches(8)
    start = copy.deepcopy(trainer.ref_policy.transformer.state_dict())
    trainer.step(batches[0])
    assert_close(trainer.ref_policy.transformer.state_dict(), start, rtol=0, atol=0)
    trainer.step(batches[1])
    policy = trainer.models["policy"].transformer.state_dict()
    expected = {name: 0.6 * policy[name] + 0.4 * start[name] for name in start}
    assert_close(trainer.ref_policy.transformer.state_dict(), expected)
    assert any(not torch.equal(policy[name], expected[name]) for name in start)
    assert not any(name.startswith("reference") for name in trainer.optimizer.parameters)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_tr_dpo_moves_the_reference_at_the_multiples_of_its_period_alone_resumed_or_not(every):
    batches, resumed_at = tiny.batches(8, 7), 4
    trainer, moves = tiny.dpo(ref_update_every=every, updates=7), []
    for k in range(7):
        if k == resumed_at:
            resumed = tiny.dpo(ref_update_every=every, updates=7)
            for name, model in resumed.models.items():
                model.load_state_dict(trainer.models[name].state_dict())
            resumed.load_state_dict(trainer.state_dict())
            trainer = resumed
        before = copy.deepcopy(trainer.ref_policy.transformer.state_dict())
        trainer.step(batches[k])
        after = trainer.ref_policy.transformer.state_dict()
        if any(not torch.equal(before[name], after[name]) for name in before):
            moves.append(k + 1)
    assert moves == [step for step in range(1, 8) if step % every == 0]


def test_without_tr_dpo_the_reference_never_moves():
    trainer = tiny.dpo(lr=0.1)
    before = copy.deepcopy(trainer.ref_policy.state_dict())
    tiny.train(trainer, tiny.batches(8))
    assert_close(trainer.ref_policy.state_dict(), before, rtol=0, atol=0)


# Invariances


@pytest.mark.parametrize("settings", [{}, {"weighting": True, "nll_coef": 0.5}, {"loss": "orpo"}, {"loss": "bco_pair"}])
def test_eight_microbatches_of_one_pair_are_one_of_eight(batch, settings):
    joined, split = (tiny.gradients(tiny.dpo(microbatch_tokens=n, **settings), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


@pytest.mark.parametrize("settings", [{}, {"nll_coef": 0.5}])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_losses_that_sort_read_micro_batches_and_compare_the_whole_batch(batch, name, settings):
    joined, split = (tiny.dpo(loss=name, microbatch_tokens=n, **settings) for n in (10_000, 80))
    sizes = []
    for model in (split.policy, split.ref_policy):
        model.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].numel()))
    rows = [draw.row for draw in batch]
    assert split.evaluate(rows) == pytest.approx(joined.evaluate(rows))
    (found, metrics), (expected, expected_metrics) = (tiny.gradients(trainer, batch) for trainer in (split, joined))
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert metrics == pytest.approx(expected_metrics)
    assert len(sizes) > 12 and max(sizes) <= 80


def test_a_batch_of_one_micro_batch_is_read_once():
    trainer, sizes = tiny.dpo(loss="aot", microbatch_tokens=10_000), []
    trainer.policy.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    trainer.step(tiny.batches(8)[0])
    assert sizes == [16]


def test_evaluation_is_the_mean_over_pairs_in_any_micro_batches():
    rows = tiny.rows(7, seed=2)
    whole, single = (tiny.dpo(microbatch_tokens=n).evaluate(rows) for n in (10_000, 1))
    assert whole == pytest.approx(single)
    trainer = tiny.dpo()
    single_rows = [trainer.evaluate([row]) for row in rows]
    assert whole == pytest.approx({name: sum(x[name] for x in single_rows) / 7 for name in whole})
    assert {x["accuracy"] for x in single_rows} <= {0.0, 1.0} and 0 < whole["accuracy"] < 1


def test_state_and_weights_continue_identically():
    make = lambda: tiny.dpo(torch.float32, loss="bco_pair", ref_update_every=2)  # noqa: E731
    batches, (whole, first, second) = tiny.batches(8), (make() for _ in range(3))
    log = tiny.train(whole, batches)
    first.step(batches[0])
    for name, model in second.models.items():
        model.load_state_dict(first.models[name].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in (1, 2)] == log[1:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)


# Refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"loss": "dpo"}, "loss must be one of sigmoid, robust, ipo, .*, alphapo, got 'dpo'"),
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"beta": -0.1}, "beta must be above 0, got -0.1"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "the loss ipo does not use label_smoothing; leave it out"),
        ({"gamma": 1.0}, "the loss sigmoid does not use gamma"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and at most 0.499, got 0.5"),
        ({"length_alpha": 1.5}, "length_alpha must be at least 0 and at most 1, got 1.5"),
        ({"ref_update_mix": 2.0}, "ref_update_mix must be at least 0 and at most 1, got 2.0"),
        ({"ref_update_every": -1}, "ref_update_every must be at least 0, got -1"),
        ({"nll_coef": -1.0}, "nll_coef must be at least 0, got -1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"loss": "exo", "label_smoothing": 0.0}, "label_smoothing must be above 0, got 0.0"),
        ({"loss": "simpo", "gamma": math.nan}, "gamma must be at least -1000000.0 and at most 1000000.0, got nan"),
        ({"loss": "simpo", "gamma": math.inf}, "gamma must be at least -1000000.0 and at most 1000000.0, got inf"),
        ({"loss": "alphapo", "alphapo_alpha": math.inf}, "alphapo_alpha must be at least -1000000.0"),
        ({"alphapo_alpha": 0}, "alphapo_alpha must not be 0, got 0; take the loss simpo"),
        ({"loss": "aot", "weighting": True}, "weighting needs a loss for each pair, but aot sorts the pairs"),
        ({"loss": "simpo", "divergence": "js"}, "divergence and ref_update_every need a reference, simpo has none"),
        ({"reference_free": True, "ref_update_every": 2}, "divergence and ref_update_every need a reference"),
        (
            {"loss": "orpo", "length_alpha": 0.5},
            "length_alpha needs a loss that sums over tokens, orpo averages",
        ),
        ({"loss": "orpo", "reference_free": True}, "the loss orpo has no reference anyway; leave reference_free out"),
        ({"loss": "simpo", "reference_free": True}, "the loss simpo has no reference anyway"),
        ({"ref_update_mix": 1.0}, "ref_update_mix 1.0 would have no effect, it needs ref_update_every above 0; leave"),
        ({"loss": "aot", "divergence": "js"}, "aot compares margins of log-probs, so divergence must be reverse_kl"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^DPOConfig: {text}"):
        DPOConfig(**settings)


def test_models_that_the_loss_cannot_train_are_refused():
    policy = Policy(tiny.transformer())
    headed = Policy(tiny.transformer(), value_head=True)
    for models, text in [
        ((policy, None), "the loss sigmoid needs a reference, got none; pass copy_of"),
        ((policy, policy), "the reference must be a frozen copy, got the policy itself; use copy_of"),
        ((policy, Policy(policy.transformer)), "the reference must be a frozen copy"),
        ((headed, policy), "needed a policy without value head, because no loss here trains a value head"),
    ]:
        with pytest.raises(InputError, match=f"^DPOTrainer: {text}"):
            DPOTrainer(*models, tiny.tokenizer(), DPOConfig(), 3)
    assert DPOTrainer(policy, None, tiny.tokenizer(), DPOConfig(loss="simpo"), 3).ref_policy is None
