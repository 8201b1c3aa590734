"""samples.jsonl has the numbers of each token of a few completions."""

import json
from types import SimpleNamespace

import torch

from minirlhf.data import read_rows
from minirlhf.data.batches import Draw, EncodedRow
from minirlhf.rollout import Rollout
from minirlhf.rollout.samples import LISTS, TOKENS, add_tokens, samples_of, token_lists
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab"] * 4, 259)
A, B = TOKENIZER.encode("ab")
EOS = TOKENIZER.eos_id
PROMPTS = [Draw(EncodedRow({"prompt": "aa"}, [A] * 2, []), k, 0) for k in range(2)]


def made(**fields):
    """Two completions by hand: "b" and EOS; "a" of the policy, "b" of a tool and "a" of the policy."""
    ids = torch.tensor([[A, A, B, EOS, 0], [A, A, A, B, A]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]).bool()
    numbers = torch.arange(10.0).view(2, 5)
    parts = {"logps": -numbers / 3, "ref_logps": -numbers, "values": numbers / 8}
    rest = {"scores": torch.tensor([1.0, float("nan")]), "scores_by_function": torch.zeros(2, 1)}
    rest |= {"ended": mask.any(-1), "mass_kept": torch.ones(2), "completions": ["b", "aba"], "lengths": [4, 5]}
    return Rollout(ids, ids > 0, mask, **{**parts, **rest, **fields})


def trainer_of(rollout, **parts):
    trainer = SimpleNamespace(tokenizer=TOKENIZER, ref_policy=object(), samples=samples_of(PROMPTS, rollout))
    vars(trainer).update(parts)
    return trainer


def test_the_lists_of_a_rollout_made_by_hand():
    rollout = made()
    trainer = trainer_of(rollout)
    rewards = torch.full((2, 5), 1 / 3)
    add_tokens(trainer, rollout, values=rollout.values, token_rewards=rewards, advantages=None)
    assert trainer.samples == [
        {
            "prompt": "aa",
            "completion": "b",
            "score": 1.0,
            "tokens": ["b", "<|eos|>"],
            "ids": [B, EOS],
            "logps": [-0.6667, -1.0],
            "ref_logps": [-2.0, -3.0],
            "values": [0.25, 0.375],
            "token_rewards": [0.3333, 0.3333],
        },
        {
            "prompt": "aa",
            "completion": "aba",
            "score": None,
            "tokens": ["a", "b", "a"],
            "ids": [A, B, A],
            "logps": [-2.333, None, -3.0],  # the policy did not choose the tool's token
            "ref_logps": [-7.0, None, -9.0],
            "values": [0.875, None, 1.125],
            "token_rewards": [0.3333, None, 0.3333],
        },
    ]


def test_a_list_without_meaning_is_absent_and_a_number_that_is_not_finite_is_none():
    rollout = made(logps=torch.full((2, 5), -float("inf")))
    trainer = trainer_of(rollout, ref_policy=None)
    add_tokens(trainer, rollout)
    assert trainer.samples[0].keys() == {"prompt", "completion", "score", "tokens", "ids", "logps"}
    assert trainer.samples[0]["logps"] == [None, None]
    json.dumps(trainer.samples, allow_nan=False)


def test_a_group_has_the_lists_of_its_first_completion():
    rollout = made()
    trainer = trainer_of(rollout, samples=samples_of(PROMPTS, rollout, group_size=2))
    add_tokens(trainer, rollout, group_size=2)
    assert [sample["ids"] for sample in trainer.samples] == [[B, EOS]]


def test_a_long_completion_has_the_lists_of_its_first_tokens_and_says_so():
    n = TOKENS + 3
    lists = token_lists(TOKENIZER, [A] * n, [True] * n, {"logps": [-0.5] * n})
    assert {len(lists[name]) for name in ("tokens", "ids", "logps")} == {TOKENS} and lists["tokens_left_out"] == 3
    assert "tokens_left_out" not in token_lists(TOKENIZER, [A] * TOKENS, None, {"logps": [-0.5] * TOKENS})


def test_the_lists_are_no_columns_of_data_so_samples_can_be_trained_on(tmp_path):
    turns = [{"by": "policy", "text": "a"}, {"by": "environment", "text": "b"}]
    row = {"prompt": "p", "completion": "ab", "turns": turns, **{name: [0.5] for name in LISTS}}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    assert read_rows(str(tmp_path / "samples.jsonl")).kind == "sft"
