"""Options of SFT: DFT; rows of which every token is learned, or only some."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import SFTConfig
from minirlhf.algorithms.sft_samples import written
from minirlhf.data.dialogues import everything
from minirlhf.errors import InputError
from minirlhf.losses import token_entropy, token_logps

OPTIONS = [{"loss": loss, "learned": where} for loss in ("nll", "dft") for where in ("answer", "gaps", "all")]


def gaps(row):
    """The row with every third token of its response masked, the second first."""
    return replace(row, responses=row.responses[:1], learned=([i % 3 != 1 for i in range(len(row.responses[0]))],))


LEARNED = {"answer": lambda row: row, "gaps": gaps, "all": everything}


def sft(learned, *args, **settings):
    return tiny.sft(*args, **settings)


def batch_of(learned, **options):
    return [draw._replace(row=LEARNED[learned](draw.row)) for draw in tiny.batches(8)[0]]


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x.values()))
def test_gradient_is_the_gradient_of_the_formula_row_by_row(options, softcap):
    trainer, batch = sft(**options, shape={"final_logit_softcapping": softcap}), batch_of(**options)
    transformer, losses, entropies = trainer.models["policy"].transformer, [], []
    for draw in batch:  # unpadded, from the full logits
        ids = torch.tensor([draw.row.prompt + draw.row.responses[0]])
        kept = torch.tensor([False] * len(draw.row.prompt) + draw.row.mask())
        assert kept.sum() == ids.shape[1] - 1 if options["learned"] == "all" else True  # nothing predicts BOS
        logits = transformer(ids)
        logps = token_logps(logits, ids)[0, kept]
        # the slope of -log p is -1 / p; multiplied by p, all tokens have the same weight
        losses.append(-logps * (logps.detach().exp() if options["loss"] == "dft" else 1))
        entropies.append(token_entropy(logits)[0, kept])
    loss = torch.cat(losses).mean()
    expected = torch.autograd.grad(loss, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics == pytest.approx({"loss": loss.item(), "entropy": torch.cat(entropies).mean().item()})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(x.values()))
def test_eight_microbatches_of_one_row_are_one_of_eight(options):
    batch = batch_of(**options)
    joined, split = (tiny.gradients(sft(**options, microbatch_tokens=n), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=1e-9, atol=1e-9)
    assert split[1] == pytest.approx(joined[1])


@pytest.mark.parametrize("options", [*OPTIONS, {"learned": "answer"}], ids=str)
def test_it_learns_the_rows_and_evaluates_their_learned_tokens(options):
    trainer = sft(**options, dtype=torch.float32, updates=15, lr=3e-2, microbatch_tokens=10_000)
    batch = batch_of(**options)
    rows = [draw.row for draw in batch]
    before = trainer.evaluate(rows)["loss"]
    if options.get("loss") == "nll":
        assert before == pytest.approx(trainer.losses(trainer._pad(rows), trainer.count_tokens(rows)[0])["loss"].item())
    log = [trainer.step(batch) for _ in range(15)]
    assert trainer.evaluate(rows)["loss"] < before - 0.2
    assert all(math.isfinite(value) for value in log[-1].values())


def test_prompts_are_learned_only_in_rows_of_which_everything_is():
    def prompt_nll(trainer):
        rows = [draw.row for draw in tiny.batches(8, 1)[0]]
        return sum(-token_logps(trainer.models["policy"].transformer(ids), ids).sum().item()
                   for ids in (torch.tensor([row.prompt]) for row in rows))  # fmt: skip

    found = {}
    for where in ("answer", "all"):
        trainer = tiny.sft(updates=10)
        batch = batch_of(where)
        for _ in range(10):
            trainer.step(batch)
        found[where] = prompt_nll(trainer)
    assert found["all"] < found["answer"] - 5


def test_a_masked_token_ends_the_reference_of_a_sample():
    row = tiny.rows(1)[0]
    row = replace(row, responses=([4, 5, 6, 7],), learned=([True, True, False, True],))
    assert written(tiny.sft(torch.float32), [row])[0]["reference"] == tiny.tokenizer().decode([4, 5])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"microbatch_tokens": 0}, "microbatch_tokens must be at least 1, got 0"),
        ({"max_epochs": 0.0}, "max_epochs must be above 0 and at most 1000000, got 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^SFTConfig: {text}"):
        SFTConfig(**settings)
