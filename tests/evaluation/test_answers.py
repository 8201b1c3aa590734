"""pass@k against answers worked by hand."""

import itertools

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.answers import answer_measures, pass_at_k


def test_pass_at_k_by_hand():
    # 2 of 5 right, k = 2: C(3, 2) / C(5, 2) = 3/10 of the pairs are wrong
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 4, 2) == 1.0  # two samples cannot both be the one wrong
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(2000, 3, 1000) == pytest.approx(0.875, abs=1e-3)  # large numbers do not overflow


def test_pass_at_k_counts_the_subsets():
    for n, right in itertools.product([1, 4, 6], range(4)):
        samples = [i < right for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(samples, k))
            assert pass_at_k(n, sum(samples), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses(n, right, k):
    with pytest.raises(InputError, match="needed 1 <= k <= n"):
        pass_at_k(n, right, k)


def test_measures_are_means_over_prompts():
    right = [[True, False], [False, False], [True, True]]
    assert answer_measures(right, (1, 2, 4)) == {
        "exact_match": pytest.approx(0.5),
        "pass@1": pytest.approx(0.5),
        "pass@2": pytest.approx(2 / 3),
    }
    for nothing in ([], [[True], []]):
        with pytest.raises(InputError, match="needed a sample for each prompt"):
            answer_measures(nothing, (1,))
