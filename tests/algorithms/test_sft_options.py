"""Options of SFT: DFT, learning the prompts too, head and loss in one."""

import math

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import SFTConfig
from minirlhf.errors import InputError
from minirlhf.losses import token_entropy, token_logps

OPTIONS = [{"loss": loss, "train_on": where} for loss in ("nll", "dft") for where in ("completion", "all")]


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x.values()))
def test_gradient_is_the_gradient_of_the_formula_row_by_row(batch, options, fused):
    trainer = tiny.sft(fused=fused, **options)
    transformer, losses, entropies = trainer.models["policy"].transformer, [], []
    for draw in batch:  # unpadded, from the full logits
        ids = torch.tensor([draw.row.prompt + draw.row.responses[0]])
        start = 1 if options["train_on"] == "all" else len(draw.row.prompt)  # nothing predicts BOS
        logits = transformer(ids)
        logps = token_logps(logits, ids)[0, start:]
        # the slope of -log p is -1 / p; multiplied by p, all tokens have the same weight
        losses.append(-logps * (logps.detach().exp() if options["loss"] == "dft" else 1))
        entropies.append(token_entropy(logits)[0, start:])
    loss = torch.cat(losses).mean()
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics == pytest.approx({"loss": loss.item(), "entropy": torch.cat(entropies).mean().item()})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x.values()))
def test_fused_trains_the_same_weights(options):
    (plain, log), (fused, fused_log) = (
        (trainer := tiny.sft(fused=flag, **options), tiny.train(trainer, tiny.batches(8))) for flag in (False, True)
    )
    assert_close(tiny.weights(fused), tiny.weights(plain), rtol=1e-9, atol=1e-9)
    for metrics, expected in zip(fused_log, log, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x.values()))
def test_eight_microbatches_of_one_row_are_one_of_eight(batch, options, fused):
    joined, split = (tiny.gradients(tiny.sft(microbatch_tokens=n, fused=fused, **options), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


@pytest.mark.parametrize("options", [*OPTIONS, {"fused": True}], ids=lambda x: "-".join(map(str, x.values())))
def test_it_learns_the_rows_and_evaluates_their_responses(options):
    trainer = tiny.sft(torch.float32, 15, lr=3e-2, microbatch_tokens=10_000, **options)
    batch = tiny.batches(8, 1)[0]
    rows = [draw.row for draw in batch]
    before = trainer.evaluate(rows)["loss"]
    assert before == pytest.approx(tiny.sft(torch.float32).evaluate(rows)["loss"])  # train_on changes nothing here
    log = [trainer.step(batch) for _ in range(15)]
    assert trainer.evaluate(rows)["loss"] < before - 0.2
    assert all(math.isfinite(value) for value in log[-1].values())


def test_prompts_are_learned_only_with_train_on_all():
    def prompt_nll(trainer):
        rows = [draw.row for draw in tiny.batches(8, 1)[0]]
        return sum(-token_logps(trainer.models["policy"].transformer(ids), ids).sum().item()
                   for ids in (torch.tensor([row.prompt]) for row in rows))  # fmt: skip

    found = {}
    for where in ("completion", "all"):
        trainer = tiny.sft(train_on=where, updates=10)
        batch = tiny.batches(8, 1)[0]
        for _ in range(10):
            trainer.step(batch)
        found[where] = prompt_nll(trainer)
    assert found["all"] < found["completion"] - 5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"microbatch_tokens": 0}, "microbatch_tokens must be at least 1, got 0"),
        ({"max_epochs": 0.0}, "max_epochs must be above 0, got 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^SFTConfig: {text}"):
        SFTConfig(**settings)
