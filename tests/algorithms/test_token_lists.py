"""Samples of trainers have the numbers of each token of a few completions; a long run keeps those of some steps."""

from types import SimpleNamespace

import pytest
import tiny

from minirlhf.rollout.samples import LISTS, ROWS
from minirlhf.training.token_lists import take_samples

WANTED = {"ppo": LISTS, "grpo": ("tokens", "ids", "logps", "ref_logps", "advantages")}
WANTED["online_dpo"] = "tokens", "ids", "logps"


@pytest.mark.parametrize("name", WANTED)
def test_a_step_of_a_trainer_has_the_lists_and_they_are_those_of_its_completions(name):
    trainer = getattr(tiny, name)()
    trainer.step(tiny.batches(8)[0])
    lists = [{key: sample[key] for key in LISTS if key in sample} for sample in trainer.samples]
    assert [tuple(each) for each in lists] == [tuple(k for k in LISTS if k in WANTED[name])] * ROWS + [()] * 2
    for sample in trainer.samples[:ROWS]:
        assert trainer.tokenizer.decode_completions([sample["ids"]]) == [sample["completion"]]
        assert {len(sample[key]) for key in WANTED[name]} == {len(sample["ids"])}
        assert all(-20 < x < 0 for x in sample["logps"])


def test_the_rewards_and_advantages_of_ppo_are_those_of_its_updates():
    trainer, seen = tiny.ppo(), []
    update = trainer.update
    trainer.update = lambda rollout, rows, *tensors: seen.append((rollout, *tensors)) or update(rollout, rows, *tensors)
    trainer.step(tiny.batches(8)[0])
    rollout, advantages, _ = seen[0]
    for row, sample in enumerate(trainer.samples[:ROWS]):
        own = rollout.completion_mask[row]
        for name, numbers in {"advantages": advantages, "values": rollout.values, "logps": rollout.logps}.items():
            assert sample[name] == pytest.approx(numbers[row, own].tolist(), rel=1e-3, abs=1e-6)
        kl = sum(a - b for a, b in zip(sample["logps"], sample["ref_logps"], strict=True))
        penalty = trainer.config.missing_eos_penalty * (not rollout.ended[row])
        expected = sample["score"] - penalty - trainer.config.kl_coef * kl
        assert sum(sample["token_rewards"]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def steps_with_lists(steps, until=None):
    """The steps of a run of `steps` steps that keep the lists, if it ends after step `until`."""
    kept, run = [], SimpleNamespace(trainer=SimpleNamespace(), batches=range(steps), _done=False)
    for step in range(until or steps):
        run.step, run._done, run.trainer.samples = step + 1, step + 1 == until, [{"prompt": "p", "ids": [1]}]
        (row,) = take_samples(run)
        assert row["prompt"] == "p" and run.trainer.samples == []
        kept += [step] if "ids" in row else []
    return kept


def test_a_long_run_keeps_the_lists_of_some_steps_and_of_the_last():
    assert steps_with_lists(128) == [*range(128)]
    assert steps_with_lists(260) == [*range(128), *range(128, 256, 2), 256, 259]
    assert steps_with_lists(10_000)[-3:] == [9856, 9984, 9999] and len(steps_with_lists(10_000)) == 528
    assert steps_with_lists(1000, until=302)[-2:] == [300, 301]  # early stopping
    # the page keeps every k-th step, k a power of two, and the last: these have the lists
    assert {*range(0, 10_000, 256)} <= {*steps_with_lists(10_000)}
