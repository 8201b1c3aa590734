"""GKD and MiniLLM: gradients from full distributions, on-policy steps, and every refusal."""

import copy
import math

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import DistillationConfig, DistillationTrainer
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.losses import linear_token_logps
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.training.vocabulary import METRICS


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def distributions(trainer, prompt, answer, temperature):
    """Log-probs of student and teacher over the vocabulary at each token of the answer, [n, V] each, unpadded."""
    ids = torch.tensor([prompt + answer])
    models = trainer.models["policy"], trainer.teacher
    return [(p.transformer(ids) / temperature).log_softmax(-1)[0, len(prompt) - 1 : -1] for p in models]


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def divergence(student, teacher, beta):
    if beta in (0, 1):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def check_gradient(trainer, batch, loss):
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-7)
    assert max(g.abs().max() for g in expected) > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_on_given_answers_is_the_gradient_of_the_divergence_of_full_distributions(batch, beta):
    # 0: forward KL(teacher || student), 1: reverse; averaged over all tokens
    trainer = tiny.distillation(beta=beta, on_policy=0.0, temperature=0.7)
    losses = []
    for draw in batch:
        student, teacher = distributions(trainer, draw.row.prompt, draw.row.responses[0], 0.7)
        losses.append(divergence(student, teacher.detach(), beta))
    check_gradient(trainer, batch, torch.cat(losses).mean())


def written(trainer, batch, temperature):
    keys = [(draw.epoch, draw.index, 0) for draw in batch]
    sampling = SamplingConfig(max_tokens=8, temperature=temperature, stop_ids=(trainer.tokenizer.eos_id,))
    prompts = [draw.row.prompt for draw in batch]
    return [
        c.ids for c in generate(trainer.models["policy"].transformer, prompts, sampling, stream="rollout", keys=keys)
    ]


def test_gradient_on_the_students_own_answers(batch):
    trainer = tiny.distillation(on_policy=1.0, temperature=0.7, beta=0.5)
    losses = []
    for draw, answer in zip(batch, written(trainer, batch, 0.7), strict=True):
        student, teacher = distributions(trainer, draw.row.prompt, answer, 0.7)
        losses.append(divergence(student, teacher.detach(), 0.5))
    check_gradient(trainer, batch, torch.cat(losses).mean())


def test_minillm_adds_the_effect_of_a_token_on_the_tokens_after_it(batch):
    trainer = tiny.distillation(algorithm="minillm", beta=1.0, on_policy=1.0, temperature=0.7)
    losses = []
    for draw, answer in zip(batch, written(trainer, batch, 0.7), strict=True):
        student, teacher = distributions(trainer, draw.row.prompt, answer, 0.7)
        ids = torch.tensor(answer)[:, None]
        logps, teacher_logps = student.gather(-1, ids)[:, 0], teacher.gather(-1, ids)[:, 0]
        gaps = (teacher_logps - logps).tolist()
        later = [gaps[t + 1 :] for t in range(len(gaps))]
        A = torch.tensor([sum(rest) / len(rest) if rest else 0.0 for rest in later], dtype=torch.float64)
        losses.append(kl(student, teacher.detach()) - A * logps)
    check_gradient(trainer, batch, torch.cat(losses).mean())


def test_on_policy_steps_follow_the_share_and_the_seed(batch):
    def on_policy_steps(share, seed=0):
        config = DistillationConfig(batch_size=2, on_policy=share, max_tokens=2)
        student, teacher = Policy(tiny.transformer()), Policy(tiny.transformer(3))
        trainer = DistillationTrainer(student, teacher, tiny.tokenizer(), config, 20, seed=seed)
        return [trainer.step(batch[:2])["on_policy"] for _ in range(20)]

    assert on_policy_steps(0.0) == [0.0] * 20 and on_policy_steps(1.0) == [1.0] * 20
    half = on_policy_steps(0.5)
    assert 4 < sum(half) < 16 and half == on_policy_steps(0.5) and half != on_policy_steps(0.5, seed=1)


def test_the_student_approaches_a_teacher_that_does_not_change(batch):
    for settings in (
        {"on_policy": 0.0},
        {"beta": 1.0, "on_policy": 1.0},
        {"algorithm": "minillm", "beta": 1.0, "on_policy": 1.0},
    ):
        trainer = tiny.distillation(torch.float32, 15, lr=3e-2, **settings)
        teacher, rows = copy.deepcopy(trainer.teacher.state_dict()), [draw.row for draw in batch]
        before = trainer.evaluate(rows)["loss"]
        log = [trainer.step(batch) for _ in range(15)]
        assert trainer.evaluate(rows)["loss"] < 0.8 * before
        assert_close(trainer.teacher.state_dict(), teacher, rtol=0, atol=0)
        assert log[0].keys() <= METRICS.keys() and all(map(math.isfinite, log[-1].values()))


def test_a_student_equal_to_its_teacher_learns_nothing(batch):
    for beta in (0.0, 0.5, 1.0):
        trainer = tiny.distillation(beta=beta, on_policy=0.0)
        trainer.teacher = Policy(tiny.transformer()).requires_grad_(False)
        found, metrics = tiny.gradients(trainer, batch)
        assert metrics["loss"] == pytest.approx(0, abs=1e-12) and all(g.abs().max() < 1e-12 for g in found.values())


def test_evaluation_is_the_mean_over_tokens_in_any_micro_batches():
    rows = tiny.rows(7, seed=2)
    trainer = tiny.distillation(beta=0.3, temperature=0.7)
    pairs = [distributions(trainer, row.prompt, row.responses[0], 0.7) for row in rows]
    expected = torch.cat([divergence(*pair, 0.3) for pair in pairs]).mean().item()
    for n in (1, 10_000):
        assert tiny.distillation(beta=0.3, temperature=0.7, microbatch_tokens=n).evaluate(rows)[
            "loss"
        ] == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "minillm", "beta": 1.0, "on_policy": 1.0}])
def test_microbatches_change_nothing(batch, settings):
    joined, split = (tiny.gradients(tiny.distillation(microbatch_tokens=n, **settings), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


def test_state_and_weights_continue_identically():
    batches = tiny.batches(8, 6)
    whole, first, second = (tiny.distillation(torch.float32, 6) for _ in range(3))
    log = tiny.train(whole, batches)
    assert len({m["on_policy"] for m in log}) == 2
    for k in range(3):
        first.step(batches[k])
    second.models["policy"].load_state_dict(first.models["policy"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in (3, 4, 5)] == log[3:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)


def test_a_head_replaces_the_output_layers_of_the_policy(batch):
    policy = Policy(tiny.transformer(), value_head=True)
    ids = torch.tensor([draw.row.prompt[:2] for draw in batch])
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden, weight = policy(ids, mask, head=lambda hidden, weight: (hidden, weight))
    assert weight is policy.transformer.head_weight and hidden.shape == (8, 2, 16)
    assert_close(hidden @ weight.T, policy.transformer(ids))
    assert_close(linear_token_logps(hidden, weight, ids), policy(ids, mask).logps)


# Refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": 1.5}, "beta must be at least 0 and at most 1, got 1.5"),
        ({"on_policy": -0.1}, "on_policy must be at least 0 and at most 1, got -0.1"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        (
            {"algorithm": "minillm"},
            r"minillm needs the reverse KL \(beta 1\) on the student's answers \(on_policy 1\), got beta 0.5",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^DistillationConfig: {text}"):
        DistillationConfig(**settings)


def test_a_teacher_of_another_vocabulary_is_refused():
    other = Transformer(ModelConfig(vocab_size=31, hidden_size=16, intermediate_size=32))
    text = r"^DistillationTrainer: student and teacher need one vocabulary, got 30 and 31 ids$"
    with pytest.raises(InputError, match=text):
        DistillationTrainer(Policy(tiny.transformer()), Policy(other), tiny.tokenizer(), DistillationConfig(), 3)


def test_a_teacher_that_is_the_student_is_refused():
    # the student would be frozen with its teacher and learn nothing
    policy = Policy(tiny.transformer())
    with pytest.raises(InputError, match="^DistillationTrainer: .*teacher"):
        DistillationTrainer(policy, Policy(policy.transformer), tiny.tokenizer(), DistillationConfig(), 3)


def test_a_student_with_a_value_head_is_refused():
    policy = Policy(tiny.transformer(), value_head=True)
    with pytest.raises(InputError, match="value head"):
        DistillationTrainer(policy, Policy(tiny.transformer(3)), tiny.tokenizer(), DistillationConfig(), 3)
