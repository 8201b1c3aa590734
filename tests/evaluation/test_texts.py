"""distinct-n by hand."""

import pytest

from minirlhf.evaluation import distinct_n


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["a b a b"], 2, 2 / 3),  # ab ba ab
        (["a b c", "a b d"], 2, 3 / 4),  # ab bc ab bd: over the set, not text by text
        (["a b c", "a b c"], 2, 1 / 2),
        (["a b", "b c"], 2, 1.0),  # no pair spans two texts
        (["a b a"], 1, 2 / 3),
        (["a b a b a"], 3, 2 / 3),  # aba bab aba
        (["a  b\na b"], 2, 2 / 3),  # words, whatever stands between them
        (["a", "", "b"], 2, None),  # no pair: there is nothing to measure
        ([], 2, None),
    ],
)
def test_distinct_n(texts, n, share):
    assert distinct_n(texts, n) == pytest.approx(share)
    assert distinct_n(iter(texts), n) == pytest.approx(share)


def test_pairs_by_default():
    assert distinct_n(["a a a"]) == 1 / 2
