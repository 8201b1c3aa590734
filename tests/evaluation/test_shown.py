"""Tables and samples as text."""

import math

from minirlhf.evaluation.shown import (
    bias_table,
    measures_table,
    pairs_table,
    sample_lines,
    side_by_side_text,
    wins_table,
)


def test_a_measure_that_no_model_has_is_no_row():
    shown = measures_table({"a": {"prompts": 3, "bleu": 1.5, "folder": "x"}, "b": {"prompts": 3, "kl": None}})
    assert [line.split() for line in shown.splitlines()[2:]] == [["prompts", "3", "3"], ["BLEU", "1.500", "-"]]


def test_win_rates_with_intervals():
    part = {"prompts": 2, "rate": 0.5, "interval": (0.25, 1.0)}
    lines = wins_table("by reward", "base", {"a": {**part, "by_length": {"longer": part}}}).splitlines()
    assert lines[0].startswith("by reward against base") and len(lines) == 4
    assert lines[2].split("  ")[0] == "a: all prompts" and lines[3].startswith("a: answer longer")
    assert lines[2].endswith("0.500  0.250 to 1.000")


def test_pairs_and_bias():
    found = {
        "pairs": 4,
        "accuracy": 0.75,
        "accuracy_interval": (0.3, 0.95),
        "margin": 1.0,
        "calibration_error": 0.1,
        "by_length": {"shorter": {"pairs": 4, "accuracy": 0.75}},
    }
    shown = pairs_table("rm", found)
    assert "0.300 to 0.950" in shown and "accuracy, chosen shorter (4)" in shown
    assert bias_table({"a": {"first": 0.75, "changed": 0.5}}).splitlines()[2].split() == ["a", "0.750", "0.500"]


def test_each_completion_of_each_model_is_a_line_with_its_score_if_it_has_one():
    prompts = [{"prompt": "p", "line": 3, "label": True}, {"prompt": "q", "file": "x.jsonl", "category": "math"}]
    samples = {"a": [["a0", "a1"], ["a2"]], "b": [["b0"], ["b1"]]}
    scores = {"a": [[1.0, math.nan], [0.0]], "b": [[math.nan], [2.5]]}
    p, q = {"prompt": "p", "line": 3}, {"prompt": "q", "file": "x.jsonl", "category": "math"}
    expected = [
        {**p, "model": "a", "completion": "a0", "reward": 1.0},
        {**p, "model": "a", "completion": "a1"},
        {**p, "model": "b", "completion": "b0"},
        {**q, "model": "a", "completion": "a2", "reward": 0.0},
        {**q, "model": "b", "completion": "b1", "reward": 2.5},
    ]
    assert sample_lines(prompts, samples, scores) == expected
    without = [{key: value for key, value in line.items() if key != "reward"} for line in expected]
    assert sample_lines(prompts, samples, {}) == without
    assert sample_lines(prompts, {}, {}) == []


def test_samples_side_by_side():
    lines = [
        {"prompt": "p", "completion": "one", "model": "a", "line": 3, "reward": 0.0},
        {"prompt": "p", "completion": "two\nlines", "model": "b", "line": 3},
        {"prompt": "q", "completion": "", "model": "a", "line": 5},
    ]
    rule = "=" * 20
    assert side_by_side_text(lines, "row").splitlines() == [
        f"{rule} row 3 {rule}", "p", "", "--- a, reward 0", "one", "", "--- b", "two", "lines", "",
        f"{rule} row 5 {rule}", "q", "", "--- a", "",
    ]  # fmt: skip
