"""Online DPO, XPO, Nash-MD: the opponents, the gradients of the papers' formulas, ties, refusals."""

import copy
import math

import pytest
import tiny
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from minirlhf.algorithms import OnlineDPOConfig, OnlineDPOTrainer
from minirlhf.errors import InputError
from minirlhf.generation import generate
from minirlhf.losses import token_logps
from minirlhf.model import Policy
from minirlhf.model.mixture import GeometricMixture
from minirlhf.rewards.judges import BothOrders
from minirlhf.training.vocabulary import METRICS

ALGORITHMS = ("online_dpo", "xpo", "nash_md")


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def logps_of(policy, prompt, completion, temperature):
    """[n]: unpadded, from the full logits."""
    ids = torch.tensor([prompt + completion.ids])
    return token_logps(policy.transformer(ids), ids, temperature)[0, len(prompt) :]


# Nash-MD has a loss of its own
CASES = [(algorithm, loss) for algorithm in ALGORITHMS for loss in ("sigmoid", "ipo")][:-1]


@pytest.mark.parametrize(("algorithm", "loss"), CASES)
def test_gradient_is_that_of_the_papers_formula(batch, algorithm, loss):
    settings = {
        "algorithm": algorithm,
        "loss": loss,
        "beta": 0.3,
        "temperature": 0.8,
        "minibatch_size": 8,
        **({"xpo_alpha": 0.05} if algorithm == "xpo" else {}),
    }
    trainer = tiny.online_dpo(**settings)
    match = trainer.play(batch)
    policy, losses = trainer.models["policy"], []
    for i, prompt in enumerate(match.prompts):
        ratios = []
        for completion in (match.by_policy[i], match.by_opponent[i]):
            now, ref = (logps_of(p, prompt, completion, 0.8) for p in (policy, trainer.ref_policy))
            ratios.append((now - ref.detach(), now))
        (policy_ratio, policy_logps), (opponent_ratio, opponent_logps) = ratios
        win = match.win_prob[i].item()
        if algorithm == "nash_md":  # each token's log-ratio weighs its own log-prob
            losses.append(-((win - 0.5) * policy_logps.sum() - 0.3 * (policy_ratio.detach() * policy_logps).sum()))
            continue
        gap = (policy_ratio.sum() - opponent_ratio.sum()) * (1 if win > 0.5 else -1)
        pair = -logsigmoid(0.3 * gap) if loss == "sigmoid" else (gap - 1 / 0.6) ** 2
        losses.append((pair if win != 0.5 else 0 * gap) + (0.05 * opponent_logps.sum() if algorithm == "xpo" else 0))
    loss = torch.stack(losses).mean()
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-6, atol=1e-7)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert max(g.abs().max() for g in expected) > 1e-2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_opponent_is_the_policy_the_reference_or_a_mixture(batch, algorithm):
    trainer = tiny.online_dpo(algorithm=algorithm, **({"mixture": 0.3} if algorithm == "nash_md" else {}))
    match = trainer.play(batch)
    policy, reference = trainer.models["policy"].transformer, trainer.ref_policy.transformer
    opponent = {"online_dpo": policy, "xpo": reference, "nash_md": GeometricMixture(policy, reference, 0.3)}[algorithm]
    sampling = trainer.config.sampling(trainer.tokenizer.eos_ids)
    for side, model, sample in ((match.by_policy, policy, 0), (match.by_opponent, opponent, 1)):
        keys = [(draw.epoch, draw.index, sample) for draw in batch]
        expected = generate(model, match.prompts, sampling, stream="rollout", keys=keys)
        assert [c.ids for c in side] == [c.ids for c in expected]
    assert [c.ids for c in match.by_policy] != [c.ids for c in match.by_opponent]


def test_the_judge_sees_both_completions_with_prompt_and_row(batch):
    calls = []

    def judge(prompts, firsts, seconds, rows):
        calls.append((prompts, firsts, seconds, rows))
        return [0.75] * len(prompts)

    trainer = tiny.online_dpo(judge=judge)
    match = trainer.play(batch)
    decode = trainer.tokenizer.decode_completions
    assert calls == [([draw.row.source["prompt"] for draw in batch], decode([c.ids for c in match.by_policy]),
                     decode([c.ids for c in match.by_opponent]), [draw.row.source for draw in batch])]  # fmt: skip
    assert [s["completion"] for s in trainer.samples] == calls[0][1][:4]
    assert [s["win_prob"] for s in trainer.samples] == [0.75] * 4


def test_a_cut_completion_has_a_lower_chance_to_win(batch):
    trainer = tiny.online_dpo(judge=lambda p, a, b, rows: [0.9] * len(p), missing_eos_penalty=0.25)
    match = trainer.play(batch)
    finishes = {
        (policy.finish, opponent.finish) for policy, opponent in zip(match.by_policy, match.by_opponent, strict=True)
    }
    assert len(finishes) >= 3  # all three cases below occur
    for policy, opponent, chance in zip(match.by_policy, match.by_opponent, match.win_prob.tolist(), strict=True):
        # 0.9 - 0.25 if only the policy's answer was cut; 0.9 + 0.25 is limited to 1
        expected = {("length", "stop"): 0.65, ("stop", "length"): 1.0}.get((policy.finish, opponent.finish), 0.9)
        assert chance == pytest.approx(expected)


@pytest.mark.parametrize("algorithm", ["online_dpo", "nash_md"])
def test_a_tie_is_no_preference(batch, algorithm):
    trainer = tiny.online_dpo(algorithm=algorithm, judge=lambda p, a, b, rows: [0.5] * len(p), minibatch_size=8)
    with torch.no_grad():  # so that Nash-MD's KL is 0
        trainer.ref_policy.transformer.model.norm.weight.copy_(trainer.models["policy"].transformer.model.norm.weight)
    found, metrics = tiny.gradients(trainer, batch)
    assert all(g.abs().max() < 1e-12 for g in found.values()) and metrics["loss"] == pytest.approx(0, abs=1e-9)


def test_microbatches_change_nothing(batch):
    for algorithm in ALGORITHMS:
        joined, split = (
            tiny.gradients(tiny.online_dpo(algorithm=algorithm, minibatch_size=8, microbatch_tokens=n), batch)
            for n in (10_000, 1)
        )
        assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
        assert split[1] == pytest.approx(joined[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_metrics_are_finite_explained_and_right(batch, algorithm):
    trainer = tiny.online_dpo(algorithm=algorithm, minibatch_size=8)
    match = trainer.play(batch)
    metrics = trainer.step(batch)
    assert metrics.keys() <= METRICS.keys() and all(map(math.isfinite, metrics.values()))
    assert metrics["win_prob"] == pytest.approx(match.win_prob.mean().item(), rel=1e-5)
    assert metrics["response_length"] == sum(len(c.ids) for c in match.by_policy) / 8
    fresh = tiny.online_dpo(algorithm=algorithm)
    gaps = [(logps_of(fresh.models["policy"], p, c, 1.0) - logps_of(fresh.ref_policy, p, c, 1.0)).sum().item()
            for p, c in zip(match.prompts, match.by_policy, strict=True)]  # fmt: skip
    assert metrics["kl"] == pytest.approx(sum(gaps) / 8, rel=1e-5)
    assert metrics["approx_kl"] < 1e-5  # the weights have not moved since sampling


def test_target_kl_ends_the_updates_of_a_step(batch):
    free = tiny.online_dpo(epochs=3, lr=5e-2).step(batch)
    stopped = tiny.online_dpo(epochs=3, lr=5e-2, target_kl=1e-4).step(batch)
    assert (free["updates"], stopped["updates"]) == (6, 2)


def test_the_reference_never_moves(batch):
    trainer = tiny.online_dpo(lr=0.1)
    before = copy.deepcopy(trainer.ref_policy.state_dict())
    trainer.step(batch)
    assert_close(trainer.ref_policy.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_learns_what_the_judge_likes(algorithm):
    settings = {"algorithm": algorithm, "batch_size": 32, "minibatch_size": 32, "microbatch_tokens": 10_000, "lr": 5e-2}
    judge = lambda p, a, b, rows: [float(x.count("e") > y.count("e")) if x.count("e") != y.count("e") else 0.5  # noqa: E731
                                   for x, y in zip(a, b, strict=True)]  # fmt: skip
    trainer = tiny.online_dpo(torch.float32, judge, steps=14, beta=0.05, max_tokens=10, **settings)
    batches, counts = tiny.batches(32, 14), []
    for k in range(14):
        trainer.step(batches[k])
        counts.append(sum(s["completion"].count("e") for s in trainer.samples) / 4)
    assert sum(counts[-4:]) / 4 > sum(counts[:4]) / 4 + 1


# What is refused


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"xpo_alpha": -1.0}, "xpo_alpha must be at least 0, got -1.0"),
        ({"mixture": 1.5}, "mixture must be at least 0 and at most 1, got 1.5"),
        ({"missing_eos_penalty": 2.0}, "missing_eos_penalty must be at least 0 and at most 1, got 2.0"),
        ({"batch_size": 6, "minibatch_size": 4}, "batch_size must be a multiple of minibatch_size"),
        ({"xpo_alpha": 0.1}, "xpo_alpha 0.1 would have no effect, it needs the algorithm xpo; leave it out"),
        ({"algorithm": "nash_md", "xpo_alpha": 0.1}, "xpo_alpha 0.1 would have no effect, it needs the algorithm xpo"),
        ({"algorithm": "xpo", "mixture": 0.1}, "mixture 0.1 would have no effect, it needs the algorithm nash_md"),
        (
            {"algorithm": "nash_md", "loss": "ipo"},
            "loss ipo would have no effect, it needs the algorithm online_dpo or",
        ),
        ({"top_k": 3}, "top_k 3 and top_p 1.0 sample from a truncated distribution"),
        (
            {"algorithm": "nash_md", "epochs": 1, "minibatch_size": 128, "target_kl": 0.1},
            "target_kl 0.1 would have no effect, it needs several updates",
        ),
        ({"algorithm": "nash_md", "epochs": 2}, "nash_md has no ratio .* one update of each batch, got 2; set epochs"),
        ({"algorithm": "nash_md", "minibatch_size": 32}, "nash_md has no ratio .* got 4; .* minibatch_size to 128"),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^OnlineDPOConfig: {text}"):
        OnlineDPOConfig(**settings)


def make(policy, reference, **settings):
    return OnlineDPOTrainer(policy, reference, lambda *_: [], tiny.tokenizer(), OnlineDPOConfig(**settings))


def test_models_that_do_not_fit_are_refused():
    policy = Policy(tiny.transformer())
    with pytest.raises(InputError, match="^OnlineDPOTrainer: the reference must be a frozen copy, got the policy"):
        make(policy, Policy(policy.transformer))
    with pytest.raises(InputError, match="^OnlineDPOTrainer: stop_token must be an id of the vocabulary, got 99"):
        make(policy, tiny.near(policy), stop_token=99)


def test_a_policy_with_a_value_head_that_nothing_would_train_is_refused():
    policy = Policy(tiny.transformer(), value_head=True)
    with pytest.raises(InputError, match="value head"):
        make(policy, tiny.near(policy))


def test_a_judge_without_probabilities_is_refused_before_training(batch):
    trainer = tiny.online_dpo(judge=lambda p, a, b, rows: [1.5] * len(p))
    before = tiny.weights(trainer)
    with pytest.raises(InputError, match="needed 8 probabilities"):
        trainer.step(batch)
    assert_close(tiny.weights(trainer), before, rtol=0, atol=0)


def test_the_disagreement_of_a_judge_with_itself_is_a_metric(batch):
    def by_place(prompts, firsts, seconds, rows):  # the order decides every second pair
        pairs = zip(firsts, seconds, strict=True)
        return [0.9 if i % 2 else 0.5 + 0.1 * (a > b) - 0.1 * (a < b) for i, (a, b) in enumerate(pairs)]

    metrics = tiny.online_dpo(judge=BothOrders(by_place)).step(batch)
    assert metrics["disagreement"] == 0.5 and metrics.keys() <= METRICS.keys()
    assert "disagreement" not in tiny.online_dpo().step(batch)
