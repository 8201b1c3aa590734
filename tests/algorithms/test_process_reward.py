"""Reward models of steps: the columns of labels, the loss by hand, learning, and every refusal."""

import math

import pytest
import tiny
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from minirlhf.algorithms import ProcessRewardConfig
from minirlhf.algorithms.process_reward import encode_steps
from minirlhf.data import Batches, encode_rows
from minirlhf.errors import InputError
from minirlhf.model import ProcessRewardModel
from minirlhf.training.vocabulary import METRICS


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def test_each_label_belongs_to_the_last_token_of_its_step():
    words = tiny.tokenizer()
    source = {"prompt": "ab", "steps": ["cd", "e", "fgh"], "labels": [True, False, True], "more": 1}
    (row,) = encode_steps(words, [source], 64)
    assert row.source == {**source, "label_columns": [1, 2, 5]}  # c d | e | f g h
    assert words.decode(row.responses[0]) == "cdefgh" and words.eos_id not in row.responses[0]
    assert row.prompt == words.encode_prompts(["ab"])[0]


def test_an_outcome_is_a_row_with_one_step():
    (row,) = encode_steps(tiny.tokenizer(), [{"prompt": "a", "steps": ["bcd"], "labels": [False]}], 64)
    assert row.source["label_columns"] == [2]


def test_gradient_is_the_gradient_of_the_mean_over_labelled_tokens(batch):
    trainer = tiny.process_reward()
    model, losses, right = trainer.models["reward"], [], []
    for draw in batch:  # unpadded, one row at a time
        row = draw.row
        ids = torch.tensor([row.prompt + row.responses[0]])
        scores = model(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        for column, label in zip(row.source["label_columns"], row.source["labels"], strict=True):
            score = scores[len(row.prompt) + column]  # at the step's last token itself, unshifted
            losses.append(-logsigmoid(score if label else -score))
            right.append((score.item() > 0) == label)
    assert len(losses) > 8 and 0 < sum(right) < len(right)
    loss = torch.stack(losses).mean()
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()), allow_unused=True)
    expected = {n: g for n, g in zip(trainer.optimizer.parameters, expected, strict=True) if g is not None}
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert metrics["loss"] == pytest.approx(loss.item())
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_microbatches_change_nothing(batch):
    joined, split = (tiny.gradients(tiny.process_reward(microbatch_tokens=n), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


def test_evaluation_is_the_mean_over_labelled_tokens_in_any_micro_batches(batch):
    rows = [draw.row for draw in batch]
    _, metrics = tiny.gradients(tiny.process_reward(), batch)
    for n in (1, 10_000):
        found = tiny.process_reward(microbatch_tokens=n).evaluate(rows)
        assert found == pytest.approx({name: metrics[name] for name in ("accuracy", "loss")})


def test_it_learns_to_tell_right_steps_from_wrong_steps():
    rng = torch.Generator().manual_seed(0)
    rows = []
    for k in range(32):  # a step is right if it has no z
        wrong = torch.rand(3, generator=rng) < 0.5
        steps = [f"{'abc'[i]}{'z' if wrong[i] else 'y'}{'de'[k % 2]}" for i in range(3)]
        rows.append({"prompt": "ab", "steps": steps, "labels": [not w for w in wrong.tolist()]})
    rows = encode_steps(tiny.tokenizer(), rows, 64)
    trainer = tiny.process_reward(torch.float32, 30, lr=2e-2, batch_size=16, microbatch_tokens=10_000)
    log = tiny.train(trainer, Batches(rows, batch_size=16, steps=30, seed=0, stream="steps"))
    assert trainer.evaluate(rows)["accuracy"] > 0.95 and log[-1]["loss"] < 0.3 < log[0]["loss"]
    assert log[0].keys() <= METRICS.keys() and all(map(math.isfinite, log[-1].values()))


def test_scores_are_read_at_their_token_and_are_0_at_padding():
    torch.manual_seed(1)
    model = ProcessRewardModel(tiny.transformer())
    ids = torch.tensor([[1, 5, 9, 4, 0], [1, 5, 9, 4, 7]])
    mask = torch.tensor([[True] * 4 + [False], [True] * 5])
    scores = model(ids, mask)
    hidden = model.model(ids, mask)
    assert_close(scores[1], model.score(hidden[1]).squeeze(-1))
    assert_close(scores[0, :4], scores[1, :4])
    assert scores[0, 4] == 0
    other = model(torch.tensor([[1, 5, 9, 8, 0]]), mask[:1])
    assert_close(other[0, :3], scores[0, :3])  # a later token does not change earlier scores
    assert (other[0, 3] - scores[0, 3]).abs() > 1e-3  # the token itself changes its score


def test_state_and_weights_continue_identically():
    batches = tiny.batches(8)
    whole, first, second = (tiny.process_reward(torch.float32) for _ in range(3))
    log = tiny.train(whole, batches)
    first.step(batches[0])
    second.models["reward"].load_state_dict(first.models["reward"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in (1, 2)] == log[1:]


# Refusals


@pytest.mark.parametrize(
    ("steps", "labels", "got"),
    [
        (["a", "b"], [True], "2 steps and 1"),
        ([], [], "0 steps and 0"),
        (["a", ""], [True, False], "2 steps and 2"),
        (["a"], [], "1 steps and 0"),
    ],
)
def test_steps_and_labels_of_different_number_are_refused_by_row(steps, labels, got):
    good = {"prompt": "a", "steps": ["b"], "labels": [True]}
    text = f"^row 1: needed a label for each step and no empty step, got {got} labels$"
    with pytest.raises(InputError, match=text):
        encode_steps(tiny.tokenizer(), [good, {"prompt": "a", "steps": steps, "labels": labels}], 64)


@pytest.mark.parametrize("label", [1, 0, 1.0, -1, "true", None])
def test_a_label_that_is_neither_true_nor_false_is_refused(label):
    for place, name in (({}, "row 0"), ({"line": 7}, "line 7")):
        row = {"prompt": "a", "steps": ["b", "c"], "labels": [True, label], **place}
        with pytest.raises(InputError, match=f"^{name}: needed labels of true or false, got {label!r}; convert"):
            encode_steps(tiny.tokenizer(), [row], 64)


def test_rows_that_are_too_long_are_refused_or_left_out_and_named(capsys):
    good, long = ({"prompt": "a", "steps": ["b" * n], "labels": [True]} for n in (1, 70))
    with pytest.raises(InputError, match="^row 1: has 72 tokens, the model's context holds 64: 1 of 2 rows cannot"):
        encode_steps(tiny.tokenizer(), [good, long], 64)
    assert len(encode_steps(tiny.tokenizer(), [good, long], 64, max_refused=0.5)) == 1
    assert encode_steps(tiny.tokenizer(), [{**long, "line": 9}], 64, max_refused=1.0) == []
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1 of 2 rows are left out: row 1: has 72 tokens, the model's context holds 64"
    assert second.startswith("1 of 1 rows are left out: line 9: has 72 tokens")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"max_epochs": 0.0}, "max_epochs must be above 0 and at most 1000000, got 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^ProcessRewardConfig: {text}"):
        ProcessRewardConfig(**settings)


def test_a_prompt_of_steps_is_read_by_the_chat_template_as_all_other_prompts(capsys):
    words = tiny.tokenizer().with_template("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    rows = [{"prompt": "ab", "steps": ["c"], "labels": [True]}]
    rows.append({**rows[0], "prompt": "User:\nab", "prompt_turns": [{"role": "user", "content": "ab"}]})
    text, turns = encode_steps(words, rows, 64)
    (expected,) = encode_rows(words, rows[:1], (), context=64).rows
    assert text.prompt == turns.prompt == expected.prompt and text.responses == turns.responses
    (plain,) = encode_steps(words, rows[:1], 64, wrap="plain")
    assert plain.prompt == words.encode_prompts(["ab"])[0] != text.prompt
    strict = tiny.tokenizer().with_template("{{ raise_exception('no') }}")
    assert encode_steps(strict, rows[:1], 64, max_refused=1.0) == []
    assert "1 of 1 rows are left out: row 0: " in capsys.readouterr().out
