"""All measures of sampled texts: each is the measure of its own file, on the right texts."""

import math

import pytest

from minirlhf.evaluation.bleu import bleu, chrf, self_bleu, words_13a
from minirlhf.evaluation.generated import answers_right, reward_measures, text_measures
from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.rouge import rouge

SAMPLES = [["a b c d e", "a b x d"], ["k l m n o p", "k l m n o p"]]


def test_references_are_those_of_the_prompt():
    found = text_measures(SAMPLES, [["a b c d"], []], words_13a)  # the second prompt has no answer
    refs = [["a b c d"], ["a b c d"]]
    assert found["bleu"] == pytest.approx(bleu(SAMPLES[0], refs)) and found["chrf"] == chrf(SAMPLES[0], refs)
    assert {name: found[name] for name in ("rouge_1", "rouge_2", "rouge_l")} == rouge(SAMPLES[0], refs)
    assert found["characters"] == (9 + 7 + 11 + 11) / 4
    assert found["distinct_1"] == 12 / 21 and found["distinct_2"] == 11 / 17 and found["repetition"] == 0.0


def test_self_bleu_compares_samples_of_a_prompt_or_single_samples_of_all_prompts():
    references = [[], []]
    assert text_measures(SAMPLES, references, words_13a)["self_bleu"] == self_bleu(SAMPLES, words_13a)
    single = [["a b c d e"], ["a b c d x"]]
    assert text_measures(single, references, words_13a)["self_bleu"] == self_bleu([["a b c d e", "a b c d x"]])
    assert text_measures([["a b c d e"]], [[]], words_13a)["self_bleu"] is None


def test_without_references_or_samples_nothing_is_averaged():
    assert not {"bleu", "chrf", "rouge_1"} & text_measures(SAMPLES, [[], []], words_13a).keys()
    assert text_measures([], [], words_13a) == {} and text_measures([["a"]], [[]], words_13a)["repetition"] is None


def test_rewards_by_hand():
    # means of the prompts 1 and 5 (nan is unknown); the third prompt has no score. Scores 0, 2, 5: median 2
    found = reward_measures([[0.0, 2.0], [5.0, math.nan], [math.nan, math.nan]])
    assert found["reward"] == 3.0 and found["scored"] == 3 and found["reward_interval"] == bootstrap([1.0, 5.0])
    # numpy's and torch's quantiles: 0.1 * 2 = 0.2 between 0 and 2, 0.9 * 2 = 1.8 between 2 and 5
    assert [found[f"reward_{q}"] for q in (10, 50, 90)] == pytest.approx([0.4, 2.0, 4.4])
    assert reward_measures([[math.nan]]) == {} and reward_measures([]) == {}


def test_only_rows_with_an_answer_are_checked():
    rows = [{"answer": 7}, {"answer": None}, {}, {"answer": "8"}, {"answer": True}, {"answer": [7]}]
    found = answers_right(rows, [["it is 7", "it is 9"], ["7"], ["7"], ["8", "8"], ["1"], ["7"]])
    assert found == {"answers": 2, "exact_match": 0.75, "pass@1": 0.75, "pass@2": 1.0}
    assert answers_right([{}], [["7"]]) == {}
