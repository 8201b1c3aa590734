"""Samples side by side: the terminal's width, wide letters, combining marks, control characters, different prompts."""

import pytest

from minirlhf.columns import columns_of
from minirlhf.evaluation import side_by_side
from minirlhf.evaluation.columns import in_columns


def test_layout():  # prompts 0 and 2 of 3
    texts = ["a prompt", "x", "b"], ["one two three four five", "x", ""], ["six", "x", "seven\n\neight"]
    assert side_by_side(*texts, n=2, width=10).splitlines() == [
        "prompt      before      after",
        "----------  ----------  ----------",
        "a prompt    one two     six",
        "            three four",
        "            five",
        "",
        "b           (empty)     seven",
        "                        eight",
    ]


def test_the_end_of_a_long_text_is_shown():
    lines = side_by_side(["p"], *[["x" * 60 + "end"]] * 2, width=10).splitlines()
    assert len(lines) == 2 + 4 and lines[-1].endswith("xxxxxxxend")


@pytest.mark.parametrize("prompts", [6, 11])
def test_five_prompts_are_shown(prompts):
    texts = [f"p{i}" for i in range(prompts)]
    assert side_by_side(texts, texts, texts).count("\np") == 5


def test_the_prompts_are_different_with_the_first_completion_of_each():
    prompts = ["p0", "p0", "p0", "p0", "p1", "p2", "p2", "p3", "p4", "p4"]
    answers = [f"answer {i}" for i in range(10)]
    lines = side_by_side(prompts, answers, answers, width=12).splitlines()
    assert [line.split("  ")[0] for line in lines[2::2]] == ["p0", "p1", "p2", "p3", "p4"]
    assert [line.split()[2] for line in lines[2::2]] == ["0", "4", "5", "7", "8"]
    assert side_by_side(["p"] * 9, answers, answers).count("\np") == 1


TEXTS = {
    "latin": "the heater is wonderful. i bought it in february. " * 4,
    "one word": "x" * 200,
    "chinese": "暖气很好我在二月买的，" * 12,
    "mixed": "ab 暖气 c很d " * 20,
    "combining": "e\u0301a\u0308" * 90,
    "hangul parts": "\u1100\u1161\u11a8" * 60,
    "emoji": "\U0001f600 \U0001f469\u200d\U0001f4bb " * 20,
    "controls": "a\x1b[2Jb\x07\r\x9b31m\x7f " * 10,
    "surrogates": "\ud800 \udfff" * 20,
    "directions": "\u202eabc\u2066 " * 20,
    "empty": "",
}


@pytest.mark.parametrize("columns", [30, 80, 81, 200])
@pytest.mark.parametrize("name", TEXTS)
def test_every_line_fits_the_terminal_and_columns_stay_aligned(monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = side_by_side(["p q"], [TEXTS[name]], ["|" * 200]).splitlines()
    assert all(columns_of(line) <= columns for line in lines)
    width = max(8, (columns + 2) // 3 - 2)
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 4 and {columns_of(line.partition("|")[0]) for line in bars} == {2 * width + 4}
    assert all(letter.isprintable() or letter == "\u200d" for line in lines for letter in line)


def test_no_mark_of_a_cell_is_cut_from_its_letter():
    shown = in_columns(["a"], [["e\u0301" * 41]], width=10)
    assert shown.count("e\u0301") == 40 and "\n\u0301" not in shown
