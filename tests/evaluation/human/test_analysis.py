"""Ratings of people: win rates, kappa and Bradley-Terry, against answers worked by hand."""

import json

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.human.analysis import (
    agreement,
    bradley_terry,
    cohen_kappa,
    read_ratings,
    tally,
    wins_between,
)
from minirlhf.evaluation.human.page import FORMAT, pack_key


@pytest.fixture
def export(tmp_path, monkeypatch):
    """export(name, choices, ...): a file as the page exports it."""
    monkeypatch.chdir(tmp_path)

    def export(name, choices, rater="anna", page="p1", models=("base", "tuned"), pairs=None, same=(), left=0, **more):
        pairs = pairs or [[0, 1]] * len(choices)
        key = {"models": models, "pairs": pairs, "categories": [None] * len(pairs), "identical": same}
        ratings = [
            {"comparison": i, "choice": choice, "comment": "", "left": left, "at": "2026-01-01T00:00:00.000Z"} | more
            for i, choice in enumerate(choices)
        ]
        file = {"format": FORMAT, "page": page, "rater": rater, "key": pack_key(key), "ratings": ratings}
        (tmp_path / name).write_text(json.dumps(file))
        return name

    return export


def results(found):
    return [(rating.models, rating.result) for rating in sorted(found.rows, key=lambda rating: rating.comparison)]


@pytest.mark.parametrize(
    ("pair", "left", "choice", "result"),
    [
        ([0, 1], 0, "left", "first"),  # answers[0], of model 0, stands left and wins
        ([0, 1], 1, "left", "second"),
        ([0, 1], 0, "right", "second"),
        ([0, 1], 1, "right", "first"),
        ([1, 0], 0, "left", "second"),  # answers[0] is of model 1
        ([1, 0], 1, "left", "first"),
        ([1, 0], 0, "right", "first"),
        ([1, 0], 1, "right", "second"),
        ([1, 0], 1, "tie", "tie"),
        ([0, 1], 1, "both bad", "both bad"),
    ],
)
def test_a_choice_of_a_side_is_a_win_of_the_model_on_it(export, pair, left, choice, result):
    found = read_ratings([export("r.json", [choice], pairs=[pair], left=left)])
    assert results(found) == [(("base", "tuned"), result)]


def test_win_rates_count_ties_as_half(export):
    # 5 wins, 2 losses, 2 ties, 1 both bad: (5 + 3 * 0.5) / 10 = 0.65. Wilson with z = 1.96, z^2 = 3.84:
    # middle (0.65 + 0.192) / 1.384 = 0.6084; half 1.96 sqrt(0.65 * 0.35 / 10 + 3.84 / 400) / 1.384 = 0.2548
    choices = ["left"] * 5 + ["right"] * 2 + ["tie"] * 2 + ["both bad"]
    found = tally(read_ratings([export("r.json", choices)]).rows)
    assert found.share == pytest.approx(0.65)
    assert found.results == {"first": 5, "second": 2, "tie": 2, "both bad": 1}
    assert found.interval == pytest.approx((0.6084 - 0.2548, 0.6084 + 0.2548), abs=2e-4)


def test_several_ratings_of_a_comparison_count_as_one(export):
    # comparison 0: won, won, lost -> 2/3; comparison 1: one rating, lost -> 0. Together (2/3 + 0) / 2 = 1/3.
    files = [export("a.json", ["left", "right"], rater="a")]
    files += [export("b.json", ["left"], rater="b", pairs=[[0, 1]] * 2), export("c.json", ["right"], rater="c")]
    found = tally(read_ratings(files).rows)
    assert (found.comparisons, found.ratings) == (2, 4)
    assert found.share == pytest.approx(1 / 3)


def test_kappa_against_a_table_worked_by_hand():
    # 50 items: both yes 20, first alone 5, second alone 10, both no 15. Observed 35 / 50 = 0.7.
    # Yes: 25 / 50 and 30 / 50. Expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5. Kappa (0.7 - 0.5) / (1 - 0.5) = 0.4.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)


def test_kappa_is_1_for_full_agreement_0_for_chance_and_unknown_without_variety():
    assert cohen_kappa("abab", "abab") == 1.0
    assert cohen_kappa("aabb", "abab") == 0.0  # observed 0.5, expected 0.5
    assert cohen_kappa("aaaa", "bbbb") == 0.0  # observed 0, expected 0
    assert cohen_kappa("abab", "baba") == -1.0
    assert cohen_kappa("aaaa", "aaaa") is None
    with pytest.raises(ValueError):
        cohen_kappa("ab", "a")


def test_agreement_is_over_the_comparisons_that_both_rated(export):
    # the two raters saw opposite sides, and both prefer model 0 in the first two comparisons
    files = [export("a.json", ["left", "left", "tie"], rater="a", pairs=[[0, 1]] * 4, left=0)]
    files += [export("b.json", ["right", "right", "both bad", "left"], rater="b", left=1)]
    (pair, (n, equal, kappa)), *rest = agreement(read_ratings(files).rows).items()
    assert pair == ("a", "b") and n == 3 and equal == pytest.approx(2 / 3) and not rest
    # observed 2/3; expected (2/3)^2 for the first model, 0 for tie and both bad: (2/3 - 4/9) / (5/9) = 0.4
    assert kappa == pytest.approx(0.4)


def test_raters_without_a_common_comparison_have_no_kappa(export):
    pairs = [[0, 1]] * 2
    files = [export("a.json", ["left"], rater="a", pairs=pairs), export("b.json", [None, "left"], rater="b")]
    assert agreement(read_ratings(files).rows) == {}


def test_bradley_terry_of_two_models_is_the_ratio_of_their_wins():
    # p_a / p_b = 3 / 1 and p_a p_b = 1: sqrt(3) and its inverse
    assert bradley_terry({("a", "b"): 3, ("b", "a"): 1}) == pytest.approx({"a": 3**0.5, "b": 3**-0.5})


def test_bradley_terry_of_three_models_with_consistent_wins():
    # strengths 4 : 2 : 1 explain all three pairs exactly: 4/2 = 6/3, 2/1 = 4/2, 4/1 = 8/2; geometric mean 2
    wins = {("a", "b"): 6, ("b", "a"): 3, ("b", "c"): 4, ("c", "b"): 2, ("a", "c"): 8, ("c", "a"): 2}
    assert bradley_terry(wins) == pytest.approx({"a": 2.0, "b": 1.0, "c": 0.5}, rel=1e-9)


def test_bradley_terry_sets_each_models_wins_to_the_expected_wins():
    """At the maximum of the likelihood W_i = sum of n_ij p_i / (p_i + p_j), also for wins that no strengths explain."""
    wins = {("a", "b"): 5, ("b", "a"): 2.5, ("b", "c"): 4, ("c", "b"): 1, ("c", "d"): 3, ("d", "a"): 2, ("d", "c"): 0.5}
    p = bradley_terry(wins)
    for model in p:
        expected = sum(n * p[model] / (p[a] + p[b]) for (a, b), n in wins.items() if model in (a, b))
        assert sum(n for (winner, _), n in wins.items() if winner == model) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("wins", "named"),
    [
        ({("a", "b"): 3, ("b", "a"): 0}, "b has no chain of wins to a"),
        ({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 1, ("d", "c"): 1}, "a has no chain of wins to c"),
        ({("a", "b"): 1, ("b", "a"): 1, ("a", "c"): 2, ("b", "c"): 2}, "c has no chain of wins to a"),
    ],
)
def test_models_without_finite_ratings_are_named(wins, named):
    with pytest.raises(InputError, match=f"no finite ratings: {named}"):
        bradley_terry(wins)


def test_pages_with_the_models_in_another_order_are_added_up(export):
    files = [export("a.json", ["left"] * 2 + ["tie"]), export("b.json", ["left"], page="p2", models=("tuned", "base"))]
    found = read_ratings(files)
    assert {rating.models for rating in found.rows} == {("base", "tuned")}
    assert wins_between(found.rows) == {("base", "tuned"): 2.5, ("tuned", "base"): 1.5}


def test_prompts_with_identical_answers_are_counted_once_a_page(export):
    # the second rater of page 1 has the same prompts; page 2 lists the models in the other order
    files = [export("a.json", ["tie"], same=[[0, 1, 2]]), export("b.json", ["tie"], rater="ben", same=[[0, 1, 2]])]
    files += [export("c.json", ["tie"], page="p2", models=("tuned", "base"), same=[[0, 1, 3]])]
    assert read_ratings(files).identical == {("base", "tuned"): 5}


def test_the_newest_rating_of_a_repeated_export_counts(export):
    files = [export("new.json", ["right", "tie"], at="2026-02-01"), export("old.json", ["left", "left"])]
    found = read_ratings(files)
    assert [result for _, result in results(found)] == ["second", "tie"]
    assert found.notes == ["'anna': 2 comparisons stand in several files; the newest ratings count"]


def test_comments_are_kept_also_without_a_choice(export):
    found = read_ratings([export("r.json", ["left", None], comment="why?")])
    assert [(comment.number, comment.text) for comment in found.comments] == [(1, "why?"), (2, "why?")]
    assert len(found.rows) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"key": "!"},
        {"key": pack_key({"models": ["a"]})},
        {"key": 3},
        {"ratings": [{}]},
        {"ratings": 3},
        {"ratings": [{"comparison": 9, "choice": "left", "comment": "", "left": 0, "at": ""}]},
        {"ratings": [{"comparison": -1, "choice": "left", "comment": "", "left": 0, "at": ""}]},
        {"ratings": [{"comparison": True, "choice": "left", "comment": "", "left": 0, "at": ""}]},
        {"ratings": [{"comparison": 0, "choice": "best", "comment": "", "left": 0, "at": ""}]},
        {"ratings": [{"comparison": 0, "choice": ["left"], "comment": "", "left": 0, "at": ""}]},
        {"ratings": [{"comparison": 0, "choice": "left", "comment": "", "left": 2, "at": ""}]},
        {"key": pack_key({"models": ["a", "b"], "pairs": [[0, 2]], "categories": [None], "identical": []})},
        {"key": pack_key({"models": ["a", "b"], "pairs": [[0, 1]], "categories": [], "identical": []})},
        {"key": pack_key({"models": [["a"], "b"], "pairs": [[0, 1]], "categories": [None], "identical": []})},
        {"key": pack_key({"models": ["a", "b"], "pairs": [[0, 0]], "categories": [None], "identical": []})},
        {"key": pack_key({"models": ["a", "b"], "pairs": [[-1, 0]], "categories": [None], "identical": []})},
    ],
)
def test_a_file_that_the_page_did_not_export_is_refused(export, tmp_path, change):
    file = json.loads((tmp_path / export("r.json", ["left"])).read_text()) | change
    (tmp_path / "r.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match=r"^r\.json: needed a file that the page exported, got "):
        read_ratings(["r.json"])


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match="needed a file that the page exported"):
        read_ratings([str(path)])


def test_a_missing_file_and_files_without_ratings_are_refused(export):
    with pytest.raises(InputError, match=r"none\.json: needed a file of ratings, got: No such file"):
        read_ratings(["none.json"])
    with pytest.raises(InputError, match="needed at least one rating"):
        read_ratings([export("r.json", [None])])
