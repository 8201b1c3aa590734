"""KTO and BCO: losses by hand, the KL of mismatched answers, the shift, prompt weights, and every refusal."""

import copy
import math

import pytest
import tiny
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from minirlhf.algorithms import UnpairedConfig, UnpairedTrainer, unpaired
from minirlhf.algorithms.prompt_classifier import fit_logistic
from minirlhf.algorithms.unpaired import single_rows
from minirlhf.data import Batches
from minirlhf.data.batches import Draw
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.losses import token_logps
from minirlhf.model import Policy, copy_of
from minirlhf.runtime.sharing import shared_sums
from minirlhf.training.vocabulary import METRICS


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def ratio(trainer, row, response):
    """log(pi(y | x) / pi_ref(y | x)) without padding, from the full logits."""
    ids = torch.tensor([row.prompt + response])
    now, ref = (token_logps(p.transformer(ids), ids)[0, len(row.prompt) :].sum()
                for p in (trainer.models["policy"], trainer.ref_policy))  # fmt: skip
    return now - ref.detach()


def check_gradient(trainer, batch, loss):
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-7)
    assert max(g.abs().max() for g in expected) > 1e-3


def with_larger_reference_logits(trainer):
    """The trainer with the reference's logits doubled: policy and reference differ, and KTO's KL is above 0."""
    with torch.no_grad():
        trainer.ref_policy.transformer.model.norm.weight.mul_(2.0)
    return trainer


def test_the_gradient_and_the_kl_of_kto_follow_its_formula(batch):
    # z = max(0, mean log-ratio of answers to other prompts), without gradient; the weights are not normalised
    trainer = with_larger_reference_logits(tiny.unpaired(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5))
    rows = [draw.row for draw in batch]
    assert len({row.source["desirable"] for row in rows}) == 2
    kl = sum(ratio(trainer, row, row.responses[1]).item() for row in rows) / 8
    assert kl > 1
    losses = []
    for row in rows:
        x = ratio(trainer, row, row.responses[0])
        good = row.source["desirable"]
        losses.append(1.5 * (1 - (0.3 * (x - kl)).sigmoid()) if good else 0.5 * (1 - (0.3 * (kl - x)).sigmoid()))
    check_gradient(trainer, batch, torch.stack(losses).mean())
    assert with_larger_reference_logits(tiny.unpaired(beta=0.3)).step(batch)["kl"] == pytest.approx(kl)


def test_a_negative_kl_counts_as_0(batch):
    trainer = tiny.unpaired(beta=0.3)
    with torch.no_grad():  # the reference's logits become small
        trainer.ref_policy.transformer.model.norm.weight.mul_(0.2)
    rows = [draw.row for draw in batch]
    assert sum(ratio(trainer, row, row.responses[1]).item() for row in rows) < 0
    assert trainer.step(batch)["kl"] == 0


def test_apo_zero_is_kto_with_a_kl_of_0(batch):
    trainer = tiny.unpaired(loss="apo_zero", beta=0.3)
    losses = []
    for draw in batch:
        x = 0.3 * ratio(trainer, draw.row, draw.row.responses[0])
        losses.append(1 - x.sigmoid() if draw.row.source["desirable"] else x.sigmoid())
    check_gradient(trainer, batch, torch.stack(losses).mean())


def test_bco_shifts_by_the_mean_of_all_rewards_so_far(batch):
    trainer = with_larger_reference_logits(tiny.unpaired(loss="bco", beta=0.3, lr=3e-2))
    rewards = [trainer.step(batch)["reward_mean"] for _ in range(2)]
    assert trainer.shift.mean == pytest.approx(sum(rewards) / 2) and abs(trainer.shift.mean) > 0.1
    losses = []
    for draw in batch:
        gain = 0.3 * ratio(trainer, draw.row, draw.row.responses[0]) - trainer.shift.mean
        losses.append(-logsigmoid(gain if draw.row.source["desirable"] else -gain))
    check_gradient(trainer, batch, torch.stack(losses).mean())


@pytest.mark.parametrize(("name", "loss"), [("kto", 0.5), ("apo_zero", 0.5), ("bco", math.log(2))])
def test_the_first_loss_of_a_policy_that_is_the_reference_is_known(batch, name, loss):
    policy = Policy(tiny.transformer())
    trainer = UnpairedTrainer(policy, copy_of(policy), tiny.tokenizer(), UnpairedConfig(loss=name), 3)
    metrics = trainer.step(batch)
    assert metrics["loss"] == pytest.approx(loss) and metrics["reward_mean"] == 0
    assert metrics.get("kl") == (0 if name == "kto" else None)  # only KTO's loss has a KL
    assert metrics.keys() <= METRICS.keys()


@pytest.mark.parametrize("name", ["kto", "apo_zero", "bco"])
def test_liked_answers_gain_on_disliked_ones(name, batch):
    trainer = tiny.unpaired(torch.float32, 12, loss=name, beta=0.3, lr=3e-2)
    rows = [draw.row for draw in batch]
    for _ in range(12):
        trainer.step(batch)
    rewards = {side: [ratio(trainer, row, row.responses[0]).item() for row in rows if row.source["desirable"] == side]
               for side in (True, False)}  # fmt: skip
    assert min(rewards[True]) > max(rewards[False])
    assert trainer.evaluate(rows)["accuracy"] >= 0.75


def test_evaluation_counts_rewards_on_the_right_side_of_the_threshold():
    rows = tiny.rows(7, seed=2)
    for name in ("kto", "apo_zero", "bco"):
        trainer = with_larger_reference_logits(tiny.unpaired(loss=name, beta=0.3))
        trainer.shift.mean = 0.2
        kl = max(0.0, sum(ratio(trainer, row, row.responses[1]).item() for row in rows) / 7)
        threshold = {"kto": 0.3 * kl, "apo_zero": 0.0, "bco": 0.2}[name]
        right = [(0.3 * ratio(trainer, row, row.responses[0]).item() > threshold) == row.source["desirable"]
                 for row in rows]  # fmt: skip
        assert trainer.evaluate(rows)["accuracy"] == pytest.approx(sum(right) / 7)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_microbatches_change_nothing(batch, name):
    joined, split = (tiny.gradients(tiny.unpaired(loss=name, microbatch_tokens=n), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


def test_the_reference_never_moves(batch):
    trainer = tiny.unpaired(lr=0.1)
    before = copy.deepcopy(trainer.ref_policy.state_dict())
    trainer.step(batch)
    assert_close(trainer.ref_policy.state_dict(), before, rtol=0, atol=0)


def test_state_and_weights_continue_identically():
    batches = tiny.batches(8)
    whole, first, second = (tiny.unpaired(torch.float32, loss="bco") for _ in range(3))
    log = tiny.train(whole, batches)
    first.step(batches[0])
    second.models["policy"].load_state_dict(first.models["policy"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in (1, 2)] == log[1:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)


# Rows


def test_each_pair_becomes_two_rows_with_an_answer_to_another_prompt_each():
    pairs = tiny.rows(3)
    rows = single_rows(pairs, 64)
    assert [row.source["desirable"] for row in rows] == [True, False] * 3
    assert [row.prompt for row in rows] == [pair.prompt for pair in pairs for _ in (0, 1)]
    assert [row.responses[0] for row in rows] == [answer for pair in pairs for answer in pair.responses]
    for i, row in enumerate(rows):  # the other answer comes from the pair before, so from another prompt
        assert row.responses[1] == pairs[i // 2 - 1].responses[i % 2]
    assert all(row.source["prompt"] == pair.source["prompt"] for row, pair in zip(rows[::2], pairs, strict=True))


def pair_of(prompt, i):
    return EncodedRow({"prompt": "x"}, prompt, ([2 * i], [2 * i + 1]))


@pytest.mark.parametrize(
    "prompts", ["", "a", "aa", "ab", "aaba", "abba", "aaab", "baaa", "abcabc", "aabbccaa", "aaaaaaab"]
)
def test_the_other_answer_is_the_nearest_before_with_another_prompt_in_a_circle(prompts):
    pairs = [pair_of([ord(letter)], i) for i, letter in enumerate(prompts)]
    found = [row.responses[1][0] // 2 for row in single_rows(pairs, 64)[::2]]
    expected = []
    for i, letter in enumerate(prompts):
        circle = [(i - back) % len(prompts) for back in range(1, len(prompts) + 1)]
        expected.append(next((k for k in circle if prompts[k] != letter), circle[0]))
    assert found == expected


class Counted(list):
    """A prompt that counts how often it is compared."""

    compared = 0
    __hash__ = None

    def __eq__(self, other):
        Counted.compared += 1
        return list.__eq__(self, other)

    def __ne__(self, other):
        Counted.compared += 1
        return list.__ne__(self, other)


@pytest.mark.parametrize("different", [0, 1])
def test_many_pairs_of_one_prompt_are_compared_a_few_times_each(different):
    pairs = [pair_of(Counted([1, 5]), i) for i in range(2000)] + [pair_of(Counted([1, 6]), 2000)] * different
    Counted.compared = 0
    assert len(single_rows(pairs, 64)) == 2 * len(pairs)
    assert Counted.compared <= 3 * len(pairs)


# Prompts


def separable(n=24):
    """Liked answers belong to prompts of a's and b's, disliked ones to prompts of y's and z's."""
    tokenizer, rows = tiny.tokenizer(), []
    for i in range(n):
        good = i % 2 == 0
        text = "".join(("ab" if good else "yz")[(i // 2 + k) % 2] for k in range(3 + i % 4))
        answer = tokenizer.encode_responses(["cde"[i % 3 :]])[0]
        rows.append(EncodedRow({"prompt": text, "desirable": good}, tokenizer.encode_prompts([text])[0], (answer,)))
    return rows


def weighted(rows, dtype=torch.float32):
    """dtype: of the frozen base, beside an fp32 adapter."""
    policy = tiny.adapted(Policy(tiny.transformer(dtype=dtype)))
    config = UnpairedConfig(loss="bco", prompt_weighting=True, batch_size=8, lr=1e-2)
    reference = Policy(tiny.transformer(dtype=dtype))
    return UnpairedTrainer(policy, reference, tiny.tokenizer(), config, 3, rows=rows)


def test_the_prompt_classifier_separates_separable_prompts():
    rows = separable()
    trainer = weighted(rows)
    chance = trainer.prompt_classifier.logits(rows).sigmoid()
    assert ((chance > 0.5) == torch.tensor([row.source["desirable"] for row in rows])).all()


def test_a_disliked_answer_counts_more_if_liked_answers_have_similar_prompts():
    rows = separable()
    trainer = weighted(rows)
    bad = rows[1]
    fake = EncodedRow(
        {"prompt": "aba", "desirable": False}, rows[0].prompt, bad.responses
    )  # a prompt of a liked answer
    losses = {}
    for name, row in {"usual": bad, "looks liked": fake}.items():
        x = 0.1 * ratio(trainer, row, row.responses[0])
        found, _ = trainer.losses(trainer.models["policy"], [row], torch.zeros(()))
        losses[name] = (found / -logsigmoid(-x)).item()
        # p / (1 - p) is exp(the classifier's logit), clipped to 0.5..10
        logit = trainer.prompt_classifier.logits([row]).item()
        assert losses[name] == pytest.approx(min(max(math.exp(logit), 0.5), 10.0), rel=1e-4)
    assert losses["usual"] == pytest.approx(0.5) and losses["looks liked"] > 2
    liked, _ = trainer.losses(trainer.models["policy"], [rows[0]], torch.zeros(()))
    assert_close(liked[0], -logsigmoid(0.1 * ratio(trainer, rows[0], rows[0].responses[0])))


def whole_only_in_forwards(model):
    """Break all weights except inside a forward of the whole model, like weights that are spread over processes."""
    stored = {name: p.clone() for name, p in model.named_parameters()}

    def gather(*_):
        for name, p in model.named_parameters():
            p.data.copy_(stored[name])

    def scatter(*_):
        for p in model.parameters():
            p.data.fill_(torch.nan)

    model.register_forward_pre_hook(gather)
    model.register_forward_hook(scatter)
    scatter()


@pytest.mark.parametrize("microbatch_tokens", [1, 20, 10_000])
def test_prompts_are_read_in_forwards_of_the_reference_in_any_micro_batches(microbatch_tokens):
    rows, config = separable(), {"loss": "bco", "prompt_weighting": True, "batch_size": 8, "lr": 1e-2}
    plain = weighted(rows, torch.float64)
    policy = tiny.adapted(Policy(tiny.transformer(dtype=torch.float64)))
    reference = Policy(tiny.transformer(dtype=torch.float64))
    embedding = reference.transformer.model.embed_tokens.weight.clone()
    whole_only_in_forwards(reference)
    config = UnpairedConfig(**config, microbatch_tokens=microbatch_tokens)
    trainer = UnpairedTrainer(policy, reference, tiny.tokenizer(), config, 3, rows=rows)
    assert_close(trainer.prompt_classifier.weights, plain.prompt_classifier.weights)
    without_model = copy.copy(trainer.prompt_classifier)
    without_model.model = None  # processes have different rows, so no step may run forwards for prompts of its rows
    assert_close(without_model.logits(rows), plain.prompt_classifier.logits(rows))
    unseen = EncodedRow({"prompt": "aby"}, tiny.tokenizer().encode_prompts(["aby"])[0], ([5],))
    mean = embedding[unseen.prompt].mean(0).float()
    expected = mean @ plain.prompt_classifier.weights[:-1] + plain.prompt_classifier.weights[-1]
    assert_close(trainer.prompt_classifier.logits([unseen])[0], expected)
    batches = Batches(rows, batch_size=8, steps=2, seed=0, stream="x")
    assert tiny.train(trainer, batches)[-1] == pytest.approx(tiny.train(plain, batches)[-1])


def test_new_prompts_are_read_before_processes_share_the_rows(monkeypatch):
    """Processes share micro-batches, so a forward for the prompts of one process alone would never end."""
    trainer = weighted(separable(), torch.float64)

    def without_model(*args):
        trainer.prompt_classifier.model = None
        return shared_sums(*args)

    monkeypatch.setattr(unpaired, "shared_sums", without_model)
    assert trainer.evaluate(tiny.rows(5, seed=9)).keys() == {"accuracy"}


@pytest.mark.parametrize("desirable", [1, 0, 1.0, "true", None, [True]])
def test_a_label_that_is_neither_true_nor_false_is_refused_with_its_row(desirable):
    row = EncodedRow({"prompt": "ab", "line": 3, "desirable": desirable}, [1, 4], ([5], [6]))
    with pytest.raises(InputError, match=r"^line 3: desirable must be true or false, got .*; convert it first$"):
        tiny.unpaired().step([Draw(row, 0, 0)])
    with pytest.raises(InputError, match=r"^line 3: desirable must be true or false, got .*; convert it first$"):
        weighted([*separable(), row])


def test_logistic_regression_finds_the_boundary():
    # x >= 3 is liked, so slope * x + bias changes its sign near 2.5
    x = torch.arange(6.0)
    weights = fit_logistic(torch.stack((x, torch.ones(6)), -1), x >= 3)
    assert weights[0] > 1 and (-weights[1] / weights[0]).item() == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_prompt_weighting_works_in_every_precision(dtype):
    rows = separable()
    trainer = weighted(rows, dtype)
    metrics = tiny.train(trainer, Batches(rows, batch_size=8, steps=2, seed=0, stream="x"))[-1]
    assert math.isfinite(metrics["loss"])


# Refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"desirable_weight": -1.0}, "desirable_weight must be at least 0, got -1.0"),
        ({"prompt_weighting": True}, "prompt_weighting belongs to bco, got kto"),
        (
            {"loss": "bco", "desirable_weight": 2.0},
            "desirable_weight 2.0 would have no effect, it needs the loss kto; ",
        ),
        (
            {"loss": "apo_zero", "undesirable_weight": 0.0},
            "undesirable_weight 0.0 would have no effect, it needs the loss",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^UnpairedConfig: {text}"):
        UnpairedConfig(**settings)


def test_a_reference_with_the_policys_weights_is_refused():
    policy = Policy(tiny.transformer())
    with pytest.raises(
        InputError, match="^UnpairedTrainer: the reference must be a frozen copy, got the policy itself"
    ):
        UnpairedTrainer(policy, Policy(policy.transformer), tiny.tokenizer(), UnpairedConfig(), 3)


def test_prompt_weighting_without_rows_to_learn_from_is_refused():
    with pytest.raises(InputError, match="^UnpairedTrainer: .*rows"):
        weighted([])


def test_a_policy_with_a_value_head_is_refused():
    policy = Policy(tiny.transformer(), value_head=True)
    with pytest.raises(InputError, match="value head"):
        UnpairedTrainer(policy, tiny.near(policy), tiny.tokenizer(), UnpairedConfig(), 3)
