"""`minirlhf eval human`: the page and the tables, as a user calls them. The browser's part is played by `rate`."""

import errno
import json
import re
from pathlib import Path

import pytest

from minirlhf.cli.eval_human import main
from minirlhf.columns import columns_of
from minirlhf.errors import InputError


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """rows(name, answers, ...): a file of one model's answers to p0, p1, ..."""
    monkeypatch.chdir(tmp_path)

    def rows(name, answers, **more):
        lines = [json.dumps({"prompt": f"p{n}", "completion": text, **more}) for n, text in enumerate(answers)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return name

    return rows


def rate(page, rater, choose, out):
    """Rate as the browser does, with answers[0] always on the left. choose: (prompt, left, right) -> choice, comment"""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])
    ratings = []
    for i, row in enumerate(data["comparisons"]):
        choice, comment = choose(row["prompt"], *row["answers"])
        ratings.append({"comparison": i, "choice": choice, "comment": comment, "left": 0, "at": f"2026-{i}"})
    file = {"format": data["format"], "page": data["page"], "rater": rater, "key": data["key"], "ratings": ratings}
    out.write_text(json.dumps(file))
    return str(out)


def longer(prompt, left, right):
    if len(left) == len(right):
        return "tie", ""
    return ("left" if len(left) > len(right) else "right"), ("很好 " * 40 if prompt == "p0" else "")


def test_from_answers_to_tables(rows, tmp_path, capsys):
    files = [rows("short.jsonl", ["a", "b", "same", "d"], category="数学" * 10)]
    files += [rows("long.jsonl", ["aa", "B", "same", "dd"]), rows("medium.jsonl", ["AA", "bb", "c", "D"])]
    page = tmp_path / "page.html"
    main([*files, "--output", str(page)])
    out = capsys.readouterr().out
    assert "short.jsonl and long.jsonl: 1 prompt is not shown, because the two answers are identical: 'p2'" in out
    assert f"{page}: 11 comparisons of 3 models on 4 prompts, 0.0 MB" in out
    ratings = [rate(page, name, longer, tmp_path / f"{name}.json") for name in ("anna", "berta")]
    main(["--analyse", *ratings])
    out = capsys.readouterr().out
    assert max(map(columns_of, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["raters:", "2,", "comparisons:", "11,", "ratings:", "22"]
    assert "A = short.jsonl\nB = long.jsonl\nC = medium.jsonl" in out
    # short over long: p0 lost, p1 tie, p3 lost: 0.5 / 3
    assert ["A", "over", "B,", "all", "3", "0", "4", "2", "0", "0.167"] in [line[:10] for line in lines]
    # long over medium: p0 tie, p1 lost, p2 won, p3 won: 2.5 / 4
    assert ["B", "over", "C,", "all", "4", "4", "2", "2", "0", "0.625"] in [line[:10] for line in lines]
    assert ["anna", "and", "berta", "11", "1.000", "1.000"] in lines
    ranked = lines[lines.index(["Bradley-Terry"]) + 3 :][:3]
    assert [row[0] for row in ranked] == ["B", "C", "A"]
    assert sum(float(row[1]) for row in ranked) == pytest.approx(0, abs=2)
    assert "not rated, because the answers are identical: 1 prompts of A and B" in out
    assert out.count("很好") == 2 * 40 * 2  # two comparisons of p0 have a winner, each with a comment of both raters


def test_ratings_without_finite_strengths_say_so(rows, tmp_path, capsys):
    files = [rows(f"{n}.jsonl", ["x" * n] * 3) for n in (1, 2, 3)]
    main([*files, "--output", str(tmp_path / "page.html")])
    main(["--analyse", rate(tmp_path / "page.html", "anna", longer, tmp_path / "r.json")])
    out = capsys.readouterr().out
    found = re.search(
        r"Bradley-Terry: no finite ratings: \d.jsonl has no chain of wins to \d.jsonl", " ".join(out.split())
    )
    assert found


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_existing_page_is_not_overwritten_and_a_full_disk_leaves_no_page(rows, tmp_path, monkeypatch):
    files = [rows("a.jsonl", ["1"]), rows("b.jsonl", ["2"])]
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(InputError, match=r"page\.html: exists already; choose another --output"):
        main([*files, "--output", str(page)])
    assert page.read_text() == "mine"
    with pytest.raises(InputError, match=r"needed a file that can be made, got: File exists"):
        main([*files, "--output", str(page / "page.html")])
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"new\.html: .* got: No space left on device"):
        patch.setattr(Path, "write_bytes", full_disk)
        main([*files, "--output", "new.html"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "page.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jsonl", "b.jsonl"], "needed files of answers and --output PAGE, or --analyse RATINGS"),
        (["--output", "page.html"], "needed files of answers and --output PAGE, or --analyse RATINGS"),
        (["--output", "page.html", "--analyse", "r.json"], "--analyse: reads ratings and writes nothing"),
        (["a.jsonl", "b.jsonl", "--output", "page.html", "--max_rows", "0"], "--max_rows: needed at least 1, got 0"),
        (["none.jsonl", "--output", "page.html"], "none.jsonl: needed a readable data file"),
    ],
)
def test_bad_flags_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        main(words)
    assert not list(tmp_path.iterdir())
