"""ROUGE against answers worked by hand."""

import itertools

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.rouge import longest_common, rouge, words


def test_rouge_by_hand():
    # ours: the cat sat on mat (5 words, 4 pairs); theirs: the cat lay on the mat (6 words, 5 pairs)
    # words in both: the cat on mat = 4, F1 = 8/11; pairs: the-cat = 1, F1 = 2/9; in order: the cat on mat = 4
    assert rouge(["The cat sat on mat."], ["the cat lay on the mat"]) == {
        "rouge_1": pytest.approx(8 / 11),
        "rouge_2": pytest.approx(2 / 9),
        "rouge_l": pytest.approx(8 / 11),
    }
    # the same words in another order: all single words, no pair, one word in order
    assert rouge(["c b a"], ["a b c"]) == pytest.approx({"rouge_1": 1, "rouge_2": 0, "rouge_l": 1 / 3})


def test_texts_are_averaged_and_the_best_reference_counts():
    assert rouge(["a b", "x"], ["a b", "y"]) == pytest.approx({"rouge_1": 0.5, "rouge_2": 0.5, "rouge_l": 0.5})
    assert rouge(["a b"], [["b c", "a b"]])["rouge_2"] == 1.0
    assert rouge(["", "!"], ["", "a"]) == {"rouge_1": 0, "rouge_2": 0, "rouge_l": 0}
    for texts, refs in (([], []), (["a"], [[]]), (["a"], [])):
        with pytest.raises(InputError, match="needed a reference for each text"):
            rouge(texts, refs)


def test_chinese_counts_by_letters():
    # 我爱北京 and 我爱南京: 3 of 4 letters, pair 我爱 of 3
    assert rouge(["我爱北京。"], ["我爱南京！"]) == pytest.approx({"rouge_1": 0.75, "rouge_2": 1 / 3, "rouge_l": 0.75})
    assert words("我用Python3写code,是吗") == ["我", "用", "python3", "写", "code", "是", "吗"]
    assert words("Café: Привет, мир_1 ３") == ["caf", "привет", "мир", "1"]


def test_longest_common_subsequence_equals_the_table():
    def table(a, b):
        rows = [[0] * (len(b) + 1)]
        for x in a:
            row = [0]
            for j, y in enumerate(b):
                row.append(rows[-1][j] + 1 if x == y else max(rows[-1][j + 1], row[j]))
            rows.append(row)
        return rows[-1][-1]

    texts = ["", "a", "abcabba", "cbabac", "aaaa", "bacbacbac", "xyz"]
    assert all(longest_common(a, b) == table(a, b) for a, b in itertools.product(texts, texts))
