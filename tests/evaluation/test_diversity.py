"""Variety of texts against answers worked by hand."""

from minirlhf.evaluation.diversity import distinct, repetition, spaced


def test_distinct():
    assert distinct(["a b a", "b c"], 1) == 3 / 5
    assert distinct(["a b a", "b a"], 2) == 2 / 3
    assert distinct(["我我你", "a b"], 1) == 4 / 5  # each Chinese letter is a word
    assert distinct(["a", ""], 2) is None and distinct([], 1) is None


def test_repetition():
    # a b c a b c a b c: 6 fours, of which abca, bcab, cabc are different; the second text has no four
    assert repetition(["a b c a b c a b c", "a b c"]) == 0.5
    assert repetition(["a b c d e", "x x x x x"]) == (0 + 0.5) / 2
    assert repetition(["a b c"]) is None and repetition([]) is None
    assert repetition(["哈哈哈哈哈哈哈"]) == 3 / 4


def test_spaced():
    assert spaced("ab我们c").split() == ["ab", "我", "们", "c"]
