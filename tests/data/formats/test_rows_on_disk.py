"""Rows of large sources stay on the disk, and are the rows that a list would hold."""

from __future__ import annotations

import json
import pickle

import pytest

from minirlhf.data.formats import dataset, read_rows
from minirlhf.data.formats.dataset import RowsOnDisk

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SOURCES = {
    "JSONL": [{"prompt": f"p{n}", "response": "r", "id": n} for n in range(5)],
    "a bad row": [
        {"prompt": "p", "response": ""},
        {"prompt": "p", "response": "r"},
        {},
        {"prompt": "q", "response": "s"},
    ],
    "several rows of a value": [
        {"instruction": "p", "instances": [{"input": i, "output": "r"} for i in "abc"[:n]]} for n in (1, 3, 2)
    ],
    "labels": [{"prompt": "p", "completion": f"c{n}", "label": n % 2} for n in range(4)],
    "turns": [{"messages": [Q, A | {"reasoning_content": f"t{n}"}]} for n in range(3)],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("rows", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("as_kind", [None, "prompts"])
def test_rows_on_disk_are_the_rows_of_the_list(tmp_path, monkeypatch, rows, as_kind):
    path = write(tmp_path / "rows.jsonl", rows)
    settings = {"as_kind": as_kind, "max_refused": 0.6}
    expected = read_rows(path, **settings)
    monkeypatch.setattr(dataset, "LARGE", 0)
    found = read_rows(path, **settings)
    assert isinstance(found.rows, RowsOnDisk) and isinstance(expected.rows, list)
    assert list(found.rows) == [found.rows[i] for i in range(len(found.rows))] == expected.rows
    assert found.rows[-1] == expected.rows[-1] and found.rows[1:] == expected.rows[1:]
    assert (found.summary(), found.refused) == (expected.summary(), expected.refused)
    assert list(pickle.loads(pickle.dumps(found.rows))) == expected.rows  # a worker process has them too


def test_dropped_rows_leave_no_gap(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", SOURCES["labels"])
    monkeypatch.setattr(dataset, "LARGE", 0)
    found = read_rows(path, as_kind="sft")
    assert [row["response"] for row in found.rows] == ["c1", "c3"] and found.rows[1]["line"] == 4


def test_rows_of_several_files_have_their_file(tmp_path):
    first, second = (write(tmp_path / f"{n}.jsonl", [{"prompt": n, "response": "r"}] * 2) for n in "ab")
    bad = write(tmp_path / "c.jsonl", [{"prompt": "p", "response": ""}])
    found = read_rows([first, second, bad], max_refused=0.5)
    assert [(row["file"], row["line"]) for row in found.rows] == [(str(f), n) for f in (first, second) for n in (1, 2)]
    assert str(found.refused[0]) == f"{bad}: line 1: response: empty response"
    assert "file" not in read_rows(first).rows[0]


def test_cells_of_a_table_are_numbers_where_numbers_belong(tmp_path, monkeypatch):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin,id\np,c,r,0.5,7\nq,d,s,,8\n")
    rows = read_rows(path).rows
    assert rows[0] == {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 0.5, "id": "7", "line": 2}
    assert "margin" not in rows[1]
    path.write_text("prompt,chosen,rejected,margin\np,c,r,much\nq,d,s,1\n")
    (refusal,) = read_rows(path, max_refused=0.5).refused
    assert refusal.reason == "margin: needed a finite number, got str 'much'"
    path.write_text("prompt,completion,label\np,c,1\nq,d,False\nr,e,good\n")
    assert [row["label"] for row in read_rows(path).rows] == [True, False, True]


def test_a_number_of_rows(tmp_path):
    path = write(tmp_path / "rows.jsonl", SOURCES["a bad row"])
    assert [row["line"] for row in read_rows(path, max_rows=1, max_refused=0.5).rows] == [2]
