"""Best of n: the estimate over all subsets, the KL bound, and the sampler."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.rewards.best_of import BestOfN, Samples, best_of_each, kl_bound
from minirlhf.text import Tokenizer


def test_the_estimate_of_three_scores_by_hand():
    # k = 1: the mean, 2. k = 2: max of {1,2}, {1,3}, {2,3} = 2, 3, 3. k = 3: 3.
    assert best_of_each(torch.tensor([[2.0, 1.0, 3.0]])).tolist() == pytest.approx([2, 8 / 3, 3])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=6))
def test_the_estimate_is_the_mean_over_all_subsets(pairs):
    scores, measure = (torch.tensor([column], dtype=torch.float64) for column in zip(*pairs, strict=True))
    found = best_of_each(scores, measure)
    for k in range(1, len(pairs) + 1):
        subsets = list(combinations(range(len(pairs)), k))
        best = [max(subset, key=lambda i: (pairs[i][0], -i)) for subset in subsets]  # the first of equal scores
        assert found[k - 1].item() == pytest.approx(sum(pairs[i][1] for i in best) / len(subsets))


def test_many_samples_do_not_overflow():
    assert best_of_each(torch.arange(500.0)[None])[-1] == 499


def test_the_bound_is_the_kl_without_ties_and_above_it_with_ties():
    # four equally likely texts. The best of n of the text with rank i has the chance (i/4)^n - ((i-1)/4)^n.
    def kl(n, scores):
        ranks = [sum(other <= score for other in scores) for score in scores]
        ties = [scores.count(score) for score in scores]
        best = [((r / 4) ** n - ((r - t) / 4) ** n) / t for r, t in zip(ranks, ties, strict=True)]
        return sum(p * math.log(4 * p) for p in best if p)

    for n in (1, 2, 8):
        assert kl(n, [1, 1, 2, 2]) <= kl(n, [1, 2, 3, 4]) + 1e-12 <= kl_bound(n) + 2e-12
    # continuous scores: E[log(n u^(n-1))] with the density n u^(n-1) of the best's rank, by the midpoint rule
    n, grid = 5, [(i + 0.5) / 100_000 for i in range(100_000)]
    assert sum(n * u**4 * math.log(n * u**4) for u in grid) / len(grid) == pytest.approx(kl_bound(n), abs=1e-6)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a b c d e f g"] * 4, 280)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    rows = [EncodedRow({"prompt": text}, tokenizer.encode(text), ()) for text in ("a b", "c")]
    return Policy(Transformer(config).eval()), tokenizer, rows


def letters(completions):
    return [float(text.count("e")) - 0.01 * len(text) for text in completions]


def test_the_first_samples_of_a_larger_n_are_those_of_a_smaller_n(parts):
    policy, tokenizer, rows = parts
    sampling = SamplingConfig(max_tokens=5, stop_ids=tokenizer.eos_ids)
    few, many = (BestOfN(policy, letters, n, tokenizer, sampling)(rows) for n in (2, 6))
    assert [own[:2] for own in many.texts] == few.texts and torch.equal(many.scores[:, :2], few.scores)
    assert many.scores.flatten().tolist() == letters(many.flat[1])
    assert many.best == [max(own, key=lambda text: letters([text])[0]) for own in many.texts]
    assert [row["prompt"] for row in many.rows_for_sft()] == ["a b", "c"]


def test_of_equal_scores_the_first_is_the_best():
    rows = [EncodedRow({"prompt": "p"}, [1], ())]
    samples = Samples(rows, [["x", "y", "z"]], torch.tensor([[0.0, 1.0, 1.0]]))
    assert samples.best == ["y"] and samples.rows_for_sft() == [{"prompt": "p", "response": "y"}]


def test_a_completion_without_a_score_never_wins_over_a_scored_completion(parts):
    policy, tokenizer, rows = parts
    nan = math.nan
    samples = Samples(rows, [["x", "y", "z"], ["u", "v", "w"]], torch.tensor([[nan, -5.0, nan], [1.0, nan, 2.0]]))
    assert samples.best == ["y", "w"]
    # of 3 samples with the scores none, -5, none and the measures 1, 2, 3: the best is 2, or 1 where only the unscored
    # ones are drawn: k = 1: 2; k = 2: (2 + 2 + 1) / 3; k = 3: 2
    found = best_of_each(torch.tensor([[nan, -5.0, nan]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert found.tolist() == pytest.approx([2, 5 / 3, 2])
    odd = lambda text: sum(map(ord, text)) % 2  # noqa: E731
    reward = lambda completions: [None if odd(text) else -1.0 for text in completions]  # noqa: E731
    sampled = BestOfN(policy, reward, 8, tokenizer, SamplingConfig(max_tokens=5, stop_ids=tokenizer.eos_ids))(rows)
    assert sampled.scores.isnan().any() and not any(map(odd, sampled.best))


def test_a_prompt_without_any_score_has_no_best_completion():
    rows = [EncodedRow({"prompt": "p"}, [1], ())]
    samples = Samples(rows, [["x", "y"]], torch.tensor([[math.nan, math.nan]]))
    with pytest.raises(InputError, match="^best of n: needed a score for a completion of 'p', got none of 2; give"):
        samples.rows_for_sft()
    with pytest.raises(InputError, match="^best of n: needed a score for each completion, got none for 2 of 2; give"):
        best_of_each(samples.scores)


def test_bad_input_is_refused(parts):
    policy, tokenizer, rows = parts
    with pytest.raises(InputError, match="n must be at least 1, got 0"):
        BestOfN(policy, letters, 0, tokenizer, SamplingConfig())
    with pytest.raises(InputError, match="all 4 completions would be equal"):
        BestOfN(policy, letters, 4, tokenizer, SamplingConfig(temperature=0))
    with pytest.raises(InputError, match="needed 4 scores, one per completion, got 1"):
        BestOfN(policy, lambda completions: [1.0], 2, tokenizer, SamplingConfig(max_tokens=2))(rows)
