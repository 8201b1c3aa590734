"""PPO: its gradient against the paper's formulas in plain loops, each setting, learning, refusals."""

import copy
import math
import weakref

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import PPOConfig, PPOTrainer, ppo
from minirlhf.errors import InputError
from minirlhf.losses import token_entropy, token_logps
from minirlhf.model import Policy, ValueModel, copy_of
from minirlhf.runtime.distributed import local_rows
from minirlhf.training.vocabulary import METRICS


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


@pytest.fixture
def spy(monkeypatch):
    """spy(name): the (args, kwargs, result) of every call of a function that ppo.py imported."""

    def spy(name):
        calls, function = [], getattr(ppo, name)

        def called(*args, **kwargs):
            calls.append((args, kwargs, result := function(*args, **kwargs)))
            return result

        monkeypatch.setattr(ppo, name, called)
        return calls

    return spy


def chosen(x, rollout):
    """The numbers of x on completion tokens."""
    return x[rollout.completion_mask]


def advantages_by_loops(trainer, rollout):
    """For each row (advantages, returns): lists with one number per completion token."""
    config, rows = trainer.config, []
    for b in range(len(rollout.scores)):
        logps, ref_logps, values = (
            chosen_row(x, rollout, b) for x in (rollout.logps, rollout.ref_logps, rollout.values)
        )
        rewards = [-trainer.kl.coef * (p - q) for p, q in zip(logps, ref_logps, strict=True)]
        rewards[-1] += rollout.scores[b].item() - (0 if rollout.ended[b] else config.missing_eos_penalty)
        advantages, next_advantage, next_value = [], 0.0, 0.0
        for reward, value in zip(reversed(rewards), reversed(values), strict=True):
            next_advantage = reward + config.gamma * next_value - value + config.gamma * config.lam * next_advantage
            next_value = value
            advantages.insert(0, next_advantage)
        rows.append((advantages, [a + v for a, v in zip(advantages, values, strict=True)]))
    return rows


def chosen_row(x, rollout, b):
    return x[b][rollout.completion_mask[b]].tolist()


@pytest.mark.parametrize("value_model", [False, True])
def test_gradient_is_that_of_the_papers_loss_in_plain_loops(batch, value_model):
    settings = {"entropy_coef": 0.03, "temperature": 0.7, "gamma": 0.9, "lam": 0.8, "value_coef": 0.3, "kl_coef": 0.5}
    trainer = tiny.ppo(value_model=value_model, minibatch_size=8, **settings)
    models, rollout = trainer.models, trainer.collect(batch)
    by_row = advantages_by_loops(trainer, rollout)
    flat = [a for advantages, _ in by_row for a in advantages]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((a - mean) ** 2 for a in flat) / (len(flat) - 1))

    loss = 0.0
    for b, (advantages, returns) in enumerate(by_row):  # unpadded, one row at a time, from the full logits
        ids = rollout.input_ids[b : b + 1, : rollout.lengths[b]]
        completion, all_true = slice(rollout.lengths[b] - len(returns), None), torch.ones_like(ids, dtype=torch.bool)
        logits = models["policy"].transformer(ids)
        logps, entropy = token_logps(logits, ids, 0.7)[0, completion], token_entropy(logits, 0.7)[0, completion]
        values = models["value"](ids, all_true) if value_model else models["policy"](ids, all_true).values
        ratio = torch.exp(logps - torch.tensor(chosen_row(rollout.logps, rollout, b)))
        A = (torch.tensor(advantages, dtype=torch.float64) - mean) / std
        squares = (
            values[0, completion] - torch.tensor(returns)
        ).square()  # the values have not moved, so none is clipped
        loss = loss + (-ratio * A + 0.3 * 0.5 * squares - 0.03 * entropy).sum() / len(flat)
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))

    found, metrics = tiny.gradients(trainer, batch)
    # advantages and old log-probs are float32, hence the tolerance
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-4, atol=2e-6)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_1(batch, temperature):
    trainer = tiny.ppo(torch.float32, epochs=1, minibatch_size=8, temperature=temperature)
    rollout = trainer.collect(batch)
    now = trainer.policy(rollout.input_ids, rollout.attention_mask, temperature=temperature).logps
    assert chosen(now - rollout.logps, rollout).abs().max() < 1e-5
    metrics = trainer.step(batch)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["approx_kl"] < 1e-9 and metrics["clip_fraction"] == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("value_model", [False, True])
def test_eight_microbatches_of_one_row_are_one_of_eight(batch, dtype, tolerance, value_model):
    joined, split = (
        tiny.gradients(tiny.ppo(dtype, value_model, minibatch_size=8, microbatch_tokens=n), batch) for n in (10_000, 1)
    )
    assert_close(split[0], joined[0], rtol=tolerance, atol=tolerance)
    assert split[1] == pytest.approx(joined[1], rel=1e-5, abs=1e-6)


def test_the_value_model_has_its_gradient_before_the_policy_makes_its_graph(batch):
    trainer, outputs = tiny.ppo(value_model=True, minibatch_size=8), []
    trainer.value_model.register_forward_hook(lambda _, inputs, output: outputs.append(weakref.ref(output)))

    def look(*_):
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            assert trainer.value_model.value_head.weight.grad is not None
            assert outputs[-1]() is None

    trainer.policy.register_forward_pre_hook(look)
    trainer.step(batch)
    assert len(outputs) > 1


def test_the_padding_id_changes_neither_weight_nor_metric(batch):
    clean, junk = tiny.ppo(microbatch_tokens=10_000), tiny.ppo(microbatch_tokens=10_000)
    junk.tokenizer.pad_id = 17
    assert junk.step(batch) == clean.step(batch)
    assert_close(tiny.weights(junk), tiny.weights(clean), rtol=0, atol=0)


def test_metrics_are_finite_explained_and_of_completion_tokens_only(batch):
    trainer = tiny.ppo()
    rollout = trainer.collect(batch)
    metrics = trainer.step(batch)
    assert metrics.keys() <= METRICS.keys() and all(map(math.isfinite, metrics.values()))
    d = rollout.logps - rollout.ref_logps
    assert metrics["kl"] == pytest.approx(chosen(d, rollout).sum().item() / 8, rel=1e-5) and metrics["kl"] != 0
    assert metrics["response_length"] == sum(map(sum, rollout.completion_mask.tolist())) / 8
    assert metrics["score_mean"] == pytest.approx(rollout.scores.mean().item(), rel=1e-6)
    assert metrics["score_std"] == pytest.approx(rollout.scores.std().item(), rel=1e-5)
    assert metrics["ended"] == rollout.ended.float().mean().item()
    returns = torch.tensor([r for _, row in advantages_by_loops(tiny.ppo(), rollout) for r in row])
    explained = 1 - (returns - chosen(rollout.values, rollout)).var() / returns.var()
    assert metrics["explained_variance"] == pytest.approx(explained.item(), rel=1e-4)
    assert (metrics["mass_kept"], metrics["updates"], metrics["kl_coef"]) == (1, 4, 0.14)


def test_the_score_stands_on_the_eos_and_only_cut_completions_are_penalised(batch, spy):
    calls = spy("kl_shaped_rewards")
    tiny.ppo(kl_coef=0.0, missing_eos_penalty=5.0, reward=lambda p, c, rows: [2.0] * len(c)).step(batch)
    rollout, (_, _, rewards) = tiny.ppo().collect(batch), calls[0]
    assert 0 < rollout.ended.sum() < 8
    for b, length in enumerate(rollout.lengths):
        assert rewards[b].nonzero().flatten().tolist() == [length - 1]
        assert (rollout.input_ids[b, length - 1] == 2) == rollout.ended[b]
        assert rewards[b, length - 1] == (2 if rollout.ended[b] else -3)


def test_kl_lowers_the_reward_of_a_token_that_the_policy_prefers_more_than_the_reference(batch, spy):
    calls = spy("kl_shaped_rewards")
    tiny.ppo(kl_coef=0.5, missing_eos_penalty=0.0, reward=lambda p, c, rows: [0.0] * len(c)).step(batch)
    rollout = tiny.ppo().collect(batch)
    assert_close(calls[0][2], -0.5 * (rollout.logps - rollout.ref_logps) * rollout.completion_mask)


def test_kl_estimator_and_coefficient_reach_the_rewards(batch, spy):
    calls = spy("kl_shaped_rewards")
    tiny.ppo(kl_estimator="k3", kl_coef=0.7).step(batch)
    assert (calls[0][1]["estimator"], calls[0][1]["kl_coef"]) == ("k3", 0.7)


def test_advantages_are_whitened_over_all_completion_tokens(batch, spy):
    for whiten, calls in ((True, spy("ppo_policy_loss")), (False, spy("ppo_policy_loss"))):
        calls.clear()
        trainer = tiny.ppo(epochs=1, minibatch_size=8, microbatch_tokens=10_000, whiten_advantages=whiten)
        trainer.step(batch)
        advantages = calls[0][1]["advantages"]
        numbers = advantages[advantages != 0]
        assert (abs(numbers.mean()) < 1e-5 and abs(numbers.var() - 1) < 1e-4) == whiten


def test_the_surrogate_is_a_row_of_the_table(batch, monkeypatch):
    calls = []

    def spo(logps, old_logps, advantages, mask, config):  # README.md, "A new loss in ten lines"
        calls.append((mask, config, advantages))
        ratio = torch.exp(logps - old_logps)
        return -(ratio * advantages - advantages.abs() * (ratio - 1).square() / (2 * config.clip_eps))

    monkeypatch.setitem(ppo.SURROGATES, "spo", spo)
    settings = {"minibatch_size": 8, "microbatch_tokens": 10_000, "whiten_advantages": False, "epochs": 2, "lr": 5e-2}
    trainer, clipped = tiny.ppo(surrogate="spo", **settings), tiny.ppo(**settings)
    rollout = trainer.collect(batch)
    metrics, others = trainer.step(batch), clipped.step(batch)
    assert "clip_fraction" in others and metrics.keys() == others.keys() - {"clip_fraction"}  # spo does not clip
    assert calls[0][1] is trainer.config and calls[0][0].sum() == rollout.completion_mask.sum()
    assert metrics["policy_loss"] != pytest.approx(others["policy_loss"], rel=1e-3)  # they differ once the ratio moves
    first = [tiny.gradients(tiny.ppo(surrogate=name, **settings), batch)[0] for name in ("spo", "clip")]
    assert_close(*first, rtol=1e-5, atol=1e-7)  # at ratio 1 both have the gradient of -ratio * advantage


def test_an_unknown_surrogate_is_refused():
    assert refusal(lambda: PPOConfig(surrogate="clap")) == "PPOConfig: surrogate must be one of clip, got 'clap'"


def test_reward_whitening_divides_by_the_deviation_and_keeps_the_mean(batch, spy):
    calls = spy("gae")
    plain, whitened = tiny.ppo(kl_coef=0.3), tiny.ppo(kl_coef=0.3, whiten_rewards=True)
    rollout = plain.collect(batch)
    plain.step(batch), whitened.step(batch)
    before, after = (chosen(args[0], rollout) for args, _, _ in calls)
    assert_close(after, (before - before.mean()) / before.std() + before.mean())
    assert (calls[1][0][0][~rollout.completion_mask] == 0).all()


def test_target_kl_ends_the_updates_of_a_step(batch):
    free, stopped = tiny.ppo(epochs=3, lr=5e-2), tiny.ppo(epochs=3, lr=5e-2, target_kl=1e-4)
    assert free.step(batch)["updates"] == 6
    assert stopped.step(batch)["updates"] == 2  # at the first update every ratio is 1, at the second no longer
    assert stopped.optimizer.update == 2


@pytest.mark.parametrize("value_model", [False, True])
def test_value_warmup_leaves_the_policy_bit_for_bit(value_model):
    trainer, batches = tiny.ppo(value_model=value_model, value_warmup=1), tiny.batches(8)
    before = tiny.weights(trainer)
    trainer.step(batches[0])
    moved = {name for name, w in tiny.weights(trainer).items() if not torch.equal(w, before[name])}
    assert moved == {name for name in before if name.startswith("value." if value_model else "policy.value_head")}
    trainer.step(batches[1])
    assert not torch.equal(tiny.weights(trainer)["policy.transformer.model.norm.weight"],
                           before["policy.transformer.model.norm.weight"])  # fmt: skip


def test_the_reference_never_moves(batch):
    trainer = tiny.ppo(lr=0.1)
    before = copy.deepcopy(trainer.ref_policy.state_dict())
    trainer.step(batch)
    assert_close(trainer.ref_policy.state_dict(), before, rtol=0, atol=0)


def test_a_copy_of_the_policy_starts_at_a_kl_of_0(batch):
    policy = Policy(tiny.transformer(dtype=torch.float32), value_head=True)
    config = PPOConfig(steps=1, batch_size=8, minibatch_size=8, max_tokens=10)
    trainer = PPOTrainer(policy, copy_of(policy), tiny.likes_e, tiny.tokenizer(), config)
    assert abs(trainer.step(batch)["kl"]) < 1e-4


def test_the_adaptive_coefficient_follows_its_formula_and_the_fixed_one_stays():
    adaptive = tiny.ppo(kl_controller="adaptive", kl_target=0.183, kl_horizon=20, kl_coef=0.3, temperature=0.6)
    log = tiny.train(adaptive, tiny.batches(8))
    for now, then in zip(log, log[1:], strict=False):
        error = min(max(now["kl"] / 0.183 - 1, -0.2), 0.2)
        assert then["kl_coef"] == pytest.approx(now["kl_coef"] * (1 + error * 8 / 20))
    assert len({m["kl_coef"] for m in log}) == 3
    assert {m["kl_coef"] for m in tiny.train(tiny.ppo(), tiny.batches(8))} == {0.14}


def test_truncated_sampling_by_consent_logs_the_mass_it_keeps(batch):
    metrics = tiny.ppo(top_k=3, allow_truncation=True, epochs=1, minibatch_size=8).step(batch)
    assert 0 < metrics["mass_kept"] < 1
    assert metrics["ratio"] < 0.9  # the whole distribution gives each token a lower probability


def test_stop_strings_and_stop_tokens_end_completions(batch):
    rollout = tiny.ppo(stop_strings=("e",)).collect(batch)
    assert any(text.endswith("e") for text in rollout.completions)
    assert all("e" not in text[:-1] for text in rollout.completions)
    rollout = tiny.ppo(stop_token=7).collect(batch)
    last = [rollout.input_ids[b, n - 1].item() for b, n in enumerate(rollout.lengths)]
    assert [token == 7 for token in last] == rollout.ended.tolist() and 7 in last


def test_noise_is_keyed_by_seed_and_epoch(batch):
    first = tiny.ppo().collect(batch).completions
    assert tiny.ppo().collect(batch).completions == first
    assert tiny.ppo(seed=1).collect(batch).completions != first
    assert tiny.ppo().collect([draw._replace(epoch=1) for draw in batch]).completions != first
    assert tiny.ppo().collect(local_rows(batch)[3:6]).completions == first[3:6]


def test_samples_show_the_first_completions_with_their_scores(batch):
    trainer = tiny.ppo()
    rollout = trainer.collect(batch)
    assert [s["completion"] for s in trainer.samples] == rollout.completions[:4]
    assert [s["score"] for s in trainer.samples] == rollout.scores[:4].tolist()
    assert [s["prompt"] for s in trainer.samples] == [draw.row.source["prompt"] for draw in batch[:4]]


def test_state_and_weights_continue_identically():
    make = lambda: tiny.ppo(torch.float32, kl_controller="adaptive", kl_horizon=20, value_warmup=2)  # noqa: E731
    batches, (whole, first, second) = tiny.batches(8), (make() for _ in range(3))
    log = tiny.train(whole, batches)
    first.step(batches[0])
    second.models["policy"].load_state_dict(first.models["policy"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in (1, 2)] == log[1:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)


def test_a_non_finite_update_is_the_last_of_its_step(batch):
    # the run stops at it and reports that the weights did not change
    trainer = tiny.ppo(epochs=2)
    step, calls = trainer.optimizer.step, []

    def second_is_nan(sums):
        calls.append(sums)
        return step(sums | {"loss": sums["loss"] * math.nan} if len(calls) == 2 else sums)

    trainer.optimizer.step = second_is_nan
    metrics = trainer.step(batch)
    assert not math.isfinite(metrics["loss"]) and trainer.optimizer.update == 1 and len(calls) == 2


@pytest.mark.parametrize("value_model", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_learns_the_toy_reward(value_model):
    options = {"batch_size": 32, "minibatch_size": 16, "lr": 2e-2, "microbatch_tokens": 10_000}
    trainer = tiny.ppo(torch.float32, value_model, steps=25, kl_coef=0.01, missing_eos_penalty=0.0, **options)
    log = tiny.train(trainer, tiny.batches(32, 25))
    assert log[0]["score_mean"] < -0.2 and sum(m["score_mean"] for m in log[-5:]) / 5 > 0.5


# What is refused


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_reference_that_is_the_policy_or_shares_its_weights_is_refused():
    policy = Policy(tiny.transformer(), value_head=True)
    for reference in (policy, Policy(policy.transformer)):
        text = refusal(lambda r=reference: PPOTrainer(policy, r, tiny.likes_e, tiny.tokenizer(), PPOConfig()))
        assert text.startswith("PPOTrainer: the reference must be a frozen copy, got the policy itself; use copy_of")


def test_a_policy_without_any_value_function_is_refused():
    policy = Policy(tiny.transformer())
    text = refusal(lambda: PPOTrainer(policy, copy_of(policy), tiny.likes_e, tiny.tokenizer(), PPOConfig()))
    assert text == "PPOTrainer: needed a policy with value_head=True or a value_model, got neither"


def test_a_value_head_beside_a_value_model_is_refused():
    # A head without gradient makes DistributedDataParallel fail in the second update.
    policy, value_model = Policy(tiny.transformer(), value_head=True), ValueModel(tiny.transformer())
    models = policy, copy_of(policy), tiny.likes_e, tiny.tokenizer(), PPOConfig()
    assert "value" in refusal(lambda: PPOTrainer(*models, value_model=value_model))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"batch_size": 70, "minibatch_size": 16},
            "PPOConfig: batch_size must be a multiple of minibatch_size, got 70 and 16; the nearest that fits is 64",
        ),
        (
            {"batch_size": 4, "minibatch_size": 16},
            "PPOConfig: batch_size must be a multiple of minibatch_size, got 4 and 16; the nearest that fits is 16",
        ),
        ({"temperature": 0.0}, "PPOConfig: temperature must be above 0, got 0.0"),
        (
            {"top_k": 5},
            "PPOConfig: top_k 5 and top_p 1.0 sample from a truncated distribution, but training scores the whole "
            "distribution; leave them out or set allow_truncation=true",
        ),
        ({"top_p": 0.9}, "PPOConfig: top_k 0 and top_p 0.9 sample from"),
        ({"lr": 0.0}, "PPOConfig: lr must be above 0, got 0.0"),
        ({"warmup": 1.5}, "PPOConfig: warmup must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    assert refusal(lambda: PPOConfig(**settings)).startswith(text)


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (lambda p, c, rows: [0.0] * (len(c) - 1), "needed 8 scores, one per completion, got 7"),
        (lambda p, c, rows: [math.nan] * len(c), "got nan for completion 0"),
        (lambda p, c, rows: [None] * len(c), "got None for completion 0"),
    ],
)
def test_a_reward_without_a_number_per_completion_is_refused_before_training(batch, reward, text):
    trainer = tiny.ppo(reward=reward)
    before = tiny.weights(trainer)
    assert text in refusal(lambda: trainer.step(batch))
    assert_close(tiny.weights(trainer), before, rtol=0, atol=0)
