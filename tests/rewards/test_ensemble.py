"""Ensembles of rewards, by hand."""

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, RewardModel, Transformer
from minirlhf.rewards import RewardModelScorer
from minirlhf.rewards.ensemble import COMBINATIONS, Ensemble
from minirlhf.text import Tokenizer

ASKED = (["p", "q"], ["a", "b"], [{}, {}])


@pytest.mark.parametrize(
    ("combination", "scores"),
    [
        ("mean", [2.0, 2.0]),
        ("min", [1.0, 2.0]),
        ("mean_minus_std", [1.0, 2.0]),  # 1 and 3 have the standard deviation 1 around 2
    ],
)
def test_two_members_by_hand(combination, scores):
    members = [lambda p, c, r: [1.0, 2.0], lambda p, c, r: [3.0, 2.0]]
    assert Ensemble(members, combination)(*ASKED) == scores


def test_every_combination_has_the_unit_of_the_scores():
    scores = torch.tensor([[1.0, -2.0], [4.0, 0.5], [0.0, 3.0]])
    for combine in COMBINATIONS.values():
        torch.testing.assert_close(combine(2 * scores), 2 * combine(scores))
        torch.testing.assert_close(combine(scores + 5), combine(scores) + 5)


def test_bad_members_are_refused():
    with pytest.raises(InputError, match="needed at least two rewards, got <lambda>"):
        Ensemble([lambda c: c])
    with pytest.raises(InputError, match="needed one of mean, min, mean_minus_std, got 'median'"):
        Ensemble([len, len], "median")

    def short(prompts, completions, rows):
        return [1.0]

    with pytest.raises(InputError, match="^reward short: needed 2 scores, one per completion, got 1"):
        Ensemble([short, short])(*ASKED)


def test_reward_models_of_different_tokenizers_are_refused():
    def scorer(texts):
        tokenizer = Tokenizer.train(texts, 300)
        shape = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        return RewardModelScorer(RewardModel(Transformer(shape)).eval(), tokenizer)

    first, same, other = scorer(["aa bb"] * 3), scorer(["aa bb"] * 3), scorer(["cc dd ee"] * 3)
    assert len(Ensemble([first, same], "mean")(*ASKED)) == 2
    with pytest.raises(InputError, match="needed reward models of one tokenizer, got several"):
        Ensemble([first, other])
