"""The lines of a run after a resume: cut at the right byte, and damage is named."""

import json

import pytest

from minirlhf.training import runs
from minirlhf.training.journal import Journal

NAMES = ("metrics.jsonl", "samples.jsonl", "timings.jsonl")


@pytest.fixture
def folder(tmp_path):
    """Five steps; the checkpoint of step 3 has the marks in marks.json."""
    journal = Journal(tmp_path, 0)
    for k in range(5):
        journal.step(k, {"loss": k / 2}, [{"text": f"{k}\u2028"}] * 2)
        if k == 2:
            (tmp_path / "marks.json").write_text(json.dumps(journal.sync()))
    return tmp_path


def marks(folder):
    return json.loads((folder / "marks.json").read_text())


def resumed(folder, marks, capsys):
    """The lines on the terminal; steps 3 and 4 are written again."""
    journal = Journal(folder, 3, marks)
    for k in (3, 4):
        journal.step(k, {"loss": k / 2}, [{"text": f"{k}\u2028"}] * 2)
    return capsys.readouterr().err.splitlines()


def records(folder):
    return {name: (folder / name).read_bytes() for name in NAMES[:2]}


@pytest.mark.parametrize("known", [True, False])
def test_a_resumed_run_writes_the_same_bytes(folder, capsys, known):
    before = records(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert resumed(folder, marks(folder) if known else None, capsys) == []
    assert records(folder) == before
    assert len((folder / "timings.jsonl").read_bytes().splitlines()) == 5


def test_the_marks_of_a_resumed_run_are_those_of_one_in_one_piece(folder):
    journal = Journal(folder, 5)
    whole = journal.sync()
    journal = Journal(folder, 3, marks(folder))
    for k in (3, 4):
        journal.step(k, {"loss": k / 2}, [{"text": f"{k}\u2028"}] * 2)
    assert journal.sync() == whole


def test_the_lines_after_the_checkpoint_do_not_matter(folder, capsys):
    before = records(folder)
    for name in NAMES[:2]:
        with (folder / name).open("rb+") as file:
            file.truncate(marks(folder)[name]["bytes"])
            file.seek(0, 2)
            file.write(b"\xff nonsense\n")
    assert resumed(folder, marks(folder), capsys) == []
    assert records(folder) == before


DAMAGE = {
    "nonsense": (b"nonsense\n", "line 2 cannot be read (JSONDecodeError: Expecting value"),
    "a list": (b"[1]\n", "line 2 cannot be read (TypeError"),
    "no UTF-8": (b'{"step": 1, "x": "\xff"}\n', "line 2 cannot be read (UnicodeDecodeError"),
    "nested": (b"[" * 100_000 + b"\n", "line 2 cannot be read (RecursionError"),
    "a text as step": (b'{"step": "1"}\n', "line 2 cannot be read (step '1')"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("known", [True, False])
def test_a_line_that_cannot_be_read_is_named_and_stays(folder, capsys, name, kind, known):
    damaged, reason = DAMAGE[kind]
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
    told = resumed(folder, marks(folder) if known else None, capsys)
    assert f"{folder / name}: {reason}" in told[0]
    changed = f"{folder / name}: the lines of the steps before 3 are not those that the checkpoint knows"
    assert told[1:] == ([changed] if known and name != "timings.jsonl" else [])
    assert (folder / name).read_bytes().splitlines(keepends=True)[1] == damaged
    assert told[0] in (folder / "log.txt").read_text()


@pytest.mark.parametrize("damage", ["a digit", "a lost line", "gone"])
def test_lines_that_were_changed_and_can_be_read_are_named(folder, capsys, damage):
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        changed = lines[1].replace(b"0.5", b"0.7") if damage == "a digit" else b""
        path.write_bytes(b"".join([lines[0], changed, *lines[2:]]))
    told = resumed(folder, marks(folder), capsys)
    assert told == [f"{path}: the lines of the steps before 3 are not those that the checkpoint knows"]
    assert path.read_bytes().splitlines(keepends=True)[-2:] == lines[3:]


def test_many_damaged_lines_are_counted(folder, capsys):
    (folder / "samples.jsonl").write_text("x\n" * 8)
    assert resumed(folder, None, capsys)[3] == f"{folder / 'samples.jsonl'}: and 5 more lines that cannot be read"


@pytest.mark.parametrize("odd", [3, [], {"metrics.jsonl": 3}, {"metrics.jsonl": {"bytes": "x", "sha256": 3}}])
def test_marks_of_another_structure_cut_by_step(folder, capsys, odd):
    before = records(folder)
    resumed(folder, odd, capsys)
    assert records(folder) == before


def test_a_run_with_a_damaged_line_is_named_in_lists(folder):
    (folder / "config.toml").write_text("[ppo]\n")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([*lines[:2], b"nonsense\n", *lines[3:]]))
    found, damaged = runs.runs_below(folder)
    assert not found and damaged[0].startswith(f"{folder / 'metrics.jsonl'}: line 3: needed a row with a step, got")
