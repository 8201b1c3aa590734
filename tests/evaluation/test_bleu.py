"""BLEU and chrF against answers worked by hand."""

import math

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.bleu import bleu, chrf, letters, self_bleu, words_13a, words_for, words_zh


def test_bleu_by_hand():
    # "the" matches twice ("the ... the" in the reference), "cat" and "sat" once each, "on" once; "dog" never.
    # words 5/6; pairs: the cat, cat sat, sat on, on the = 4/5; triples 3/4; fours 2/3; the lengths are equal
    score = bleu(["the cat sat on the dog"], ["the cat sat on the mat"])
    assert score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_a_short_text_is_penalised_and_counts_are_clipped():
    # c = 4, r = 6: exp(1 - 6/4). "the" stands twice in the reference, so 2 of 4 words match; no pair does:
    # the precisions of 2, 3 and 4 words count as 1/(2*3), 1/(4*2) and 1/(8*1)
    score = bleu(["the the the the"], ["the cat sat on the mat"])
    assert score == pytest.approx(100 * math.exp(-0.5) * (2 / 4 / 6 / 8 / 8) ** 0.25)


def test_no_match_and_no_four_words_score_0():
    assert bleu(["a b c d"], ["e f g h"]) == 0.0
    assert bleu(["the cat sat"], ["the cat sat"]) == 0.0
    assert bleu(["", ""], ["a b c d", "e"]) == 0.0


def test_several_references_give_their_largest_counts_and_the_nearest_length():
    # the nearest length of 5 among 4 and 9 is 4; between 4 and 6 it is the shorter
    texts, refs = ["a b c d e"], [["a b c d", "b c d e x x x x x"]]
    assert bleu(texts, refs) == pytest.approx(100 * (5 / 5 * 4 / 4 * 3 / 3 * 2 / 2) ** 0.25)
    assert bleu(["a b c d e"], [["a b c d e f", "x x x x"]]) == 100.0


def test_a_corpus_is_counted_as_one_text():
    # matches 4 + 0 of 8 words, 3 of 6, 2 of 4, 1 of 2: every precision is 1/2
    assert bleu(["a b c d", "e f g h"], ["a b c d", "i j k l"]) == pytest.approx(50.0)


def test_self_bleu():
    assert self_bleu([["a b c d e"] * 3]) == pytest.approx(100.0)
    assert self_bleu([["a b c d", "e f g h"]]) == 0.0
    assert self_bleu([["a b c d"], ["a b c d"], []]) is None
    groups = [["a b c d a b", "a b c d", "a b x c d y"], ["k l m n o", "k l m n", "l m n o k l m"]]
    texts = [text for group in groups for text in group]
    others = [[other for j, other in enumerate(group) if j != i] for group in groups for i in range(len(group))]
    assert self_bleu(groups) == pytest.approx(bleu(texts, others))


def test_chrf_by_hand():
    # letters "abc" and "abd". 1: a, b of 3; 2: ab of 2; 3: none of 1; no longer n-grams. P = R = (2/3 + 1/2 + 0) / 3
    assert chrf(["ab c"], ["abd"]) == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)
    # "ab" and "abab": P = (2/2 + 1/1) / 2 = 1; R = (2/4 + 1/3) / 2 = 5/12. F2 = 5 P R / (4 P + R)
    assert chrf(["ab"], ["abab"]) == pytest.approx(100 * 5 * (5 / 12) / (4 + 5 / 12))
    assert chrf(["same text"], ["sametext"]) == pytest.approx(100.0)
    assert chrf(["abc", ""], ["xyz", "q"]) == 0.0
    assert chrf(["abc"], [["xyz", "abc"]]) == pytest.approx(100.0)


@pytest.mark.parametrize("measure", [bleu, chrf])
def test_nothing_is_averaged_over_nothing(measure):
    for texts, refs in (([], []), (["a"], [[]]), (["a", "b"], ["a"]), (["a", "b"], ["a", []])):
        with pytest.raises(InputError, match="needed at least one text and a reference for each"):
            measure(texts, refs)


def test_words():
    split = " ".join(words_13a('He said: "3.5% of e.g. 1,000," (yes) it\'s 5-6 well-known.'))
    assert split == 'He said : " 3.5 % of e . g . 1,000 , " ( yes ) it\'s 5 - 6 well-known .'
    assert words_13a("a &amp; b\nc-\nd") == ["a", "&", "b", "cd"]
    assert words_zh("我有 2.5 个apple，好。") == ["我", "有", "2.5", "个", "apple", "，", "好", "。"]
    assert letters(" ab\u3000c\n") == ["a", "b", "c"]
    assert words_for(["an English text"]) is words_13a
    assert words_for(["我有 apple"]) is words_zh
    assert words_for(["これはペンです", "แมว"]) is letters
    assert words_for(["a long English text that names 北京"]) is words_13a
    assert words_for([]) is words_13a
