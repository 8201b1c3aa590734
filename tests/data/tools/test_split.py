"""`minirlhf data split`: stable, exact, and no prompt on two sides."""

import json

import pytest

from minirlhf.data.tools.manifest import fingerprint
from minirlhf.data.tools.split import fractions, joined, split
from minirlhf.errors import InputError

TEXTS = [f"text {i}" for i in range(100)]


def texts_of(texts, parts):
    return [{texts[i] for i in part} for part in parts]


@pytest.mark.parametrize("parts", [(0.8, 0.2), (0.5, 0.5), (0.7, 0.2, 0.1)])
def test_the_parts_have_the_asked_sizes_and_every_row_once(parts):
    found = split(TEXTS, parts, 42)
    assert [len(part) for part in found] == [round(100 * part) for part in parts]
    assert sorted(i for part in found for i in part) == list(range(100))


def test_the_split_depends_on_texts_and_seed_alone():
    first = texts_of(TEXTS, split(TEXTS, (0.8, 0.2), 42))
    backwards = TEXTS[::-1]
    assert texts_of(backwards, split(backwards, (0.8, 0.2), 42)) == first
    assert texts_of(TEXTS, split(TEXTS, (0.8, 0.2), 43)) != first


def test_the_split_of_three_texts_is_always_this():
    # sha256("42\na") = d5.., of "42\nb" = 51.., of "42\nc" = 24..: the order is c, b, a
    import hashlib

    order = sorted("abc", key=lambda text: hashlib.sha256(f"42\n{text}".encode()).hexdigest())
    assert split(list("abc"), (0.67, 0.33), 42) == [
        sorted("abc".index(text) for text in order[:2]),
        ["abc".index(order[2])],
    ]


def test_a_new_row_moves_few_rows():
    before = texts_of(TEXTS, split(TEXTS, (0.8, 0.2), 1))[1]
    more = [*TEXTS, "one more"]
    assert len(before - texts_of(more, split(more, (0.8, 0.2), 1))[1]) <= 1


def test_rows_that_share_a_prompt_get_one_text():
    # 0 and 2 share b, 2 and 3 share c; 1 stands alone
    found = joined([["a", "b"], ["x"], ["b", "c"], ["c"], ["y", "y"]])
    assert found[0] == found[2] == found[3] and len({found[0], found[1], found[4]}) == 3


def test_equal_texts_stay_together():
    texts = [f"text {i % 10}" for i in range(100)]
    first, second = texts_of(texts, split(texts, (0.75, 0.25), 0))
    assert not first & second


@pytest.mark.parametrize("ratio", [(0.0,), (1.0,), (1.5,), (0.5, 0.4), (0.2, 0.2, 0.2, 0.4), (-0.1, 1.1)])
def test_other_ratios_are_refused(ratio):
    with pytest.raises(InputError, match="ratio: needed"):
        fractions(ratio)


def test_a_file_is_split_by_prompt(call, write, read, tmp_path):
    rows = [{"prompt": f"Question {i % 10}?" + " " * (i % 2), "response": f"{i}", "id": i} for i in range(50)]
    write("rows.jsonl", rows)
    code, out, _ = call("split", "rows.jsonl", "--by", "prompt")
    train, test = read("rows-train.jsonl"), read("rows-test.jsonl")
    assert code == 0 and "rows-train.jsonl: 40 of 50 rows" in out
    assert sorted([*train, *test], key=lambda row: row["id"]) == rows
    assert not {row["prompt"].strip() for row in train} & {row["prompt"].strip() for row in test}
    manifest = json.loads((tmp_path / "rows-test.jsonl.manifest.json").read_text())
    assert manifest["sources"] == [fingerprint("rows.jsonl")] and manifest["rows"] == len(test)
    assert [rows[line - 1] for _, line in manifest["origin"]] == test


def test_tables_folders_and_several_files_are_split(call, read, tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,chosen,rejected,margin\n" + "".join(f"p{i},c,r,0.{i}\n" for i in range(1, 9))
    )
    assert call("split", "a.csv", "--ratio", "0.5")[0] == 0
    rows = [*read("a-train.jsonl"), *read("a-test.jsonl")]
    assert {(row["prompt"], row["margin"]) for row in rows} == {(f"p{i}", i / 10) for i in range(1, 9)}
    assert call("check", "a-train.jsonl", "a-test.jsonl")[1].count("8 kept, 0 refused") == 1
    (tmp_path / "many").mkdir()
    for i in range(4):
        (tmp_path / f"many/{i}.json").write_text(json.dumps({"prompt": f"p{i}", "response": "r"}))
    code, out, err = call("split", "many", "--ratio", "0.5")
    assert code == 0 and len(read("many-train.jsonl")) == 2, err
    manifest = json.loads((tmp_path / "many-train.jsonl.manifest.json").read_text())
    names = [manifest["sources"][source]["file"] for source, _ in manifest["origin"]]
    assert [f"many/{row['prompt'][1]}.json" for row in read("many-train.jsonl")] == names


def test_the_flags_for_the_new_files_are_told(call, write):
    write("rows.jsonl", [{"ask": str(i), "say": str(i)} for i in range(10)])
    code, out, _ = call("split", "rows.jsonl", "--map", "prompt=ask,response=say")
    assert code == 0 and "read the new file with --map prompt=ask,response=say too" in out


def test_no_file_is_overwritten(call, write, tmp_path):
    write("rows.jsonl", [{"prompt": "p", "response": str(i)} for i in range(10)])
    (tmp_path / "rows-test.jsonl").write_text("mine")
    code, _, err = call("split", "rows.jsonl")
    assert code == 2 and "rows-test.jsonl: needed a new file to write" in err
    assert (tmp_path / "rows-test.jsonl").read_text() == "mine" and not (tmp_path / "rows-train.jsonl").exists()


def test_too_few_rows_are_refused(call, write):
    write("rows.jsonl", [{"prompt": "p", "response": str(i)} for i in range(10)])
    code, _, err = call("split", "rows.jsonl", "--by", "prompt")
    assert code == 2 and "needed prompts for 2 files, got 1 different" in err


def test_columns_named_line_and_file_hide_no_row(call, write, read):
    rows = [{"prompt": f"q{n}", "response": "a", "file": f"{n}.py", "line": 7 * n} for n in range(10)]
    code, out, _ = call("split", write("rows.jsonl", rows), "--ratio", 0.5)
    assert code == 0 and "left out: file, line (a row has its own line and file under these names)" in out
    assert sorted(map(str, read("rows-train.jsonl") + read("rows-test.jsonl"))) == sorted(map(str, rows))
