"""GKD and MiniLLM: gradients from full distributions, on-policy steps, and every refusal."""

import copy
import json
import math

import pytest
import tiny
import tokenizers
import torch
from torch.testing import assert_close

from minirlhf.algorithms import DistillationConfig, DistillationTrainer
from minirlhf.algorithms.distillation_checks import check_same_tokenizer
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.losses import linear_token_logps
from minirlhf.model import LoRAConfig, Policy, apply_lora
from minirlhf.text import Tokenizer
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


@pytest.fixture(params=[None, 0.5], ids=["", "capped"])
def trainer_of(request):
    """Trainers of models with and without a cap on the logits; student and teacher have different caps."""

    def build(**settings):
        trainer = tiny.distillation(**settings)
        for policy, factor in ((trainer.models["policy"], 1), (trainer.teacher, 0.8)):
            cap = request.param and request.param * factor
            object.__setattr__(policy.transformer.config, "final_logit_softcapping", cap)
        return trainer

    return build


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_on_given_answers_is_the_gradient_of_the_divergence_of_full_distributions(batch, beta, trainer_of):
    # 0: forward KL(teacher || student), 1: reverse; averaged over all tokens
    trainer = trainer_of(beta=beta, on_policy=0.0, temperature=0.7)
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


def test_minillm_adds_the_effect_of_a_token_on_the_tokens_after_it(batch, trainer_of):
    trainer = trainer_of(algorithm="minillm", beta=1.0, on_policy=1.0, temperature=0.7)
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


def padded(policy, rows):
    """The same model with more rows, which no token uses. Their logits are large, so that reading them shows."""
    model = tiny.transformer(seed=9, layers=policy.transformer.config.num_hidden_layers, vocab_size=30 + rows)
    with torch.no_grad():
        for name, p in policy.transformer.named_parameters():
            own = model.get_parameter(name)
            (own[:30] if own.shape[0] == 30 + rows else own).copy_(p)
        for p in model.parameters():
            if p.shape[0] == 30 + rows:
                p[30:] = 3 * p[3:4]
    return Policy(model)


@pytest.mark.parametrize("rows", [(0, 7), (7, 0), (7, 3), (7, 7)])
@pytest.mark.parametrize(
    "settings", [{"on_policy": 0.0}, {"on_policy": 1.0}, {"algorithm": "minillm", "beta": 1.0, "on_policy": 1.0}]
)
def test_rows_beyond_the_tokenizers_ids_change_nothing_and_get_no_gradient(batch, rows, settings):
    plain, other = (tiny.distillation(temperature=0.7, **settings) for _ in range(2))
    models = padded(plain.policy, rows[0]), padded(plain.teacher, rows[1])
    other = DistillationTrainer(*models, tiny.tokenizer(), plain.config, 3)
    assert other.write(batch) == plain.write(batch)
    expected, metrics = tiny.gradients(plain, batch)
    found, others = tiny.gradients(other, batch)
    assert others == pytest.approx(metrics, rel=1e-9)
    for name, gradient in expected.items():
        own = found[name]
        if gradient.shape[0] == 30:
            assert (own[30:] == 0).all() and own.shape[0] == 30 + rows[0]
            own = own[:30]
        assert_close(own, gradient, rtol=1e-8, atol=1e-10)
    evaluated = [trainer.evaluate([draw.row for draw in batch])["loss"] for trainer in (plain, other)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-9)


def test_the_teacher_is_read_through_its_own_forward(batch):
    trainer, calls = tiny.distillation(on_policy=0.0, microbatch_tokens=10_000), []
    trainer.teacher.register_forward_hook(lambda module, inputs, output: calls.append(output[0].shape))
    trainer.step(batch)
    trainer.evaluate([draw.row for draw in batch])
    assert len(calls) == 2


def test_the_dropout_of_the_students_adapters_is_off():
    policy = Policy(tiny.transformer())
    apply_lora(policy, LoRAConfig(r=2, dropout=0.5))
    trainer = DistillationTrainer(policy, Policy(tiny.transformer(3)), tiny.tokenizer(), DistillationConfig(), 3)
    assert {module.p for module in trainer.policy.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_an_answer_has_the_room_that_its_prompt_leaves(batch):
    # contexts of 64 and 12: an answer to a prompt of n tokens has at most min(8, 12 - n) tokens
    student, teacher = Policy(tiny.transformer()), Policy(tiny.transformer(3, max_position_embeddings=12))
    config = DistillationConfig(batch_size=8, max_tokens=8, on_policy=1.0)
    trainer = DistillationTrainer(student, teacher, tiny.tokenizer(), config, 3)
    short = [draw for draw in batch if len(draw.row.prompt) < 12]
    assert {len(draw.row.prompt) for draw in short} & {5, 6, 7, 8, 9, 10, 11} and len({*map(id, short)}) > 4
    plain = tiny.distillation(on_policy=1.0)
    for draw, row, whole in zip(short, trainer.write(short), plain.write(short), strict=True):
        room = min(8, 12 - len(draw.row.prompt))
        assert row.prompt == draw.row.prompt and row.responses[0] == whole.responses[0][:room]
    assert math.isfinite(trainer.step(short)["loss"])


def test_no_rows_give_no_numbers():
    assert tiny.distillation().evaluate([]) == {}


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
    policy = Policy(tiny.transformer(final_logit_softcapping=0.5), value_head=True)
    ids = torch.tensor([draw.row.prompt[:2] for draw in batch])
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden, weight, cap = policy(ids, mask, head=lambda hidden, weight, softcap: (hidden, weight, softcap))
    assert weight is policy.transformer.head_weight and hidden.shape == (8, 2, 16)
    assert_close(cap * torch.tanh(hidden @ weight.T / cap), policy.transformer(ids))
    assert_close(linear_token_logps(hidden, weight, ids, softcap=cap), policy(ids, mask).logps)


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


@pytest.mark.parametrize("rows", [(30, 20), (20, 30)])
def test_a_model_that_lacks_ids_of_the_tokenizer_is_refused(rows):
    student, teacher = (Policy(tiny.transformer(vocab_size=n)) for n in rows)
    text = rf"need a row for each of the tokenizer's 30 ids, got {rows[0]} and {rows[1]} rows; take two models with one"
    with pytest.raises(InputError, match=f"^DistillationTrainer: student and teacher {text}"):
        DistillationTrainer(student, teacher, tiny.tokenizer(), DistillationConfig(), 3)


def words(changes=None, **parts):
    """The tokenizer of `tiny` with other tokens or another part of the backend."""
    backend = tiny.tokenizer().backend
    if changes:
        state = json.loads(backend.to_str())
        state["model"]["vocab"] = {changes.get(token, token): i for token, i in state["model"]["vocab"].items()}
        backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    for name, part in parts.items():
        setattr(backend, name, part)
    return Tokenizer(backend)


def test_a_students_tokenizer_must_be_the_teachers():
    check_same_tokenizer("--student x", words(), words())
    lower, split = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    for other, text in [
        (words({"a": "b", "b": "a"}), "id 3 differs: '[ab]' is a token of one tokenizer only"),
        (tiny.tokenizer().with_special_tokens(["<x>"]), "id 30 differs: '<x>' is a token of one tokenizer only"),
        (words(normalizer=lower), "their normalizer differs, so they split texts in different ways"),
        (words(pre_tokenizer=split), "their pre_tokenizer differs"),
    ]:
        for pair in ((other, words()), (words(), other)):
            with pytest.raises(InputError, match=f"^--student x: .*must be the teacher's, but {text}"):
                check_same_tokenizer("--student x", *pair)


def test_a_teacher_that_is_the_student_is_refused():
    # the student would be frozen with its teacher and learn nothing
    policy = Policy(tiny.transformer())
    with pytest.raises(InputError, match="^DistillationTrainer: .*teacher"):
        DistillationTrainer(policy, Policy(policy.transformer), tiny.tokenizer(), DistillationConfig(), 3)


def test_a_student_with_a_value_head_is_refused():
    policy = Policy(tiny.transformer(), value_head=True)
    with pytest.raises(InputError, match="value head"):
        DistillationTrainer(policy, Policy(tiny.transformer(3)), tiny.tokenizer(), DistillationConfig(), 3)
