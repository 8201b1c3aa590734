"""Search in a local file: the order of BM25, cut passages, and bad files."""

import json
import math

import pytest

from minirlhf.environments.tools.failure import ToolError
from minirlhf.environments.tools.search import Index, search_in
from minirlhf.errors import InputError


def test_the_score_worked_by_hand():
    # Passages of 2, 2 and 5 words; mean 3. "owl" stands in two of three: idf = log(1 + 1.5 / 2.5) = log 1.6.
    # In the first: f = 1, so log 1.6 * 2.5 / (1 + 1.5 (0.25 + 0.75 * 2 / 3)) = log 1.6 * 2.5 / 2.125
    # In the third: f = 2, so log 1.6 * 5 / (2 + 1.5 (0.25 + 0.75 * 5 / 3)) = log 1.6 * 5 / 4.25: equal.
    index = Index(["owl nest", "red fox", "owl owl at the barn"])
    assert index.best(["owl"], 3) == [0, 2]
    assert math.isclose(2.5 / 2.125, 5 / 4.25)
    assert index.best(["fox", "owl"], 3) == [1, 0, 2]  # the rarer word counts more


def test_rows_and_paragraphs_are_passages(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("The capital of Peru\nis Lima.\n\nThe capital of Chile is Santiago.\n", encoding="utf-8")
    assert search_in(text, results=1)("capital Peru?") == "[1] The capital of Peru is Lima."
    rows = tmp_path / "facts.jsonl"
    rows.write_text("\n".join(map(json.dumps, [{"name": "Lima", "people": 10}, {"name": ["Santiago"]}])))
    assert search_in(rows)("lima santiago") == "[1] Santiago\n[2] Lima 10"
    assert search_in(rows)("Quito") == "nothing found"
    with pytest.raises(ToolError, match="needed words"):
        search_in(rows)("?!")


def test_a_long_passage_is_cut_around_the_word(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("a " * 500 + "needle" + " b" * 500)
    answer = search_in(file, letters=40)("needle")
    assert "needle" in answer and answer.startswith("[1] ...") and answer.endswith("...") and len(answer) <= 50


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        search_in(tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(InputError, match="empty.txt"):
        search_in(empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(InputError, match="broken.jsonl, line 2"):
        search_in(broken)
    with pytest.raises(InputError, match="1 to 10 results"):
        search_in(broken, results=11)
