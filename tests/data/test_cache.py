"""The cache of encoded rows: the same ids from disk, under a name that changes with all that decides them."""

import os
import time

import pytest

from minirlhf.data import encode_rows
from minirlhf.data.cache import VARIABLE, cache_folder
from minirlhf.data.lengths import Lengths
from minirlhf.errors import InputError
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab ab"] * 3, 261)
ROWS = [{"prompt": f"a{i}", "response": "b" * (i + 1), "line": i + 1} for i in range(12)]


@pytest.fixture
def counted(monkeypatch):
    """The number of calls that tokenise."""
    calls, plain = [], Tokenizer.encode_responses
    monkeypatch.setattr(Tokenizer, "encode_responses", lambda self, texts: calls.append(1) or plain(self, texts))
    return calls


def encode(folder, rows=ROWS, tokenizer=TOKENIZER, responses=("response",), **options):
    return encode_rows(tokenizer, rows, responses, cache=folder, **{"context": 9, "max_refused": 1, **options})


def test_the_second_call_maps_the_same_rows_from_disk(tmp_path, counted):
    first = encode(tmp_path / "new" / "cache")
    assert len(counted) == 1
    second = encode(tmp_path / "new" / "cache")
    assert len(counted) == 1 and second == first == encode(None)
    assert first.truncated and second.rows[3].source is ROWS[3]
    assert not second.rows.arrays.ids.flags.writeable and not second.rows.arrays.ids.flags.owndata
    assert [path.suffix for path in (tmp_path / "new" / "cache").iterdir()] == [".safetensors"]


def test_rows_with_gaps_and_notes_come_back(tmp_path):
    turns = [{"role": role, "content": "ab", "name": "n"} for role in ("user", "assistant", "user")]
    row = {"prompt": "x", "prompt_turns": turns, "response": "a", "line": 1}
    first, second = (encode(tmp_path, [row], context=99) for _ in range(2))
    assert first == second and first.rows[0].learned is not None and len(first.notes) == 1


CHANGES = [
    {"rows": ROWS[:-1]},
    {"rows": [*ROWS[:-1], ROWS[-1] | {"response": "c"}]},
    {"rows": [*ROWS[:-1], ROWS[-1] | {"line": 99}]},
    {"rows": ROWS[::-1]},
    {"tokenizer": Tokenizer.train(["abc"] * 9, 262)},
    {"tokenizer": TOKENIZER.with_template("zephyr")},
    {"responses": ("prompt",)},
    {"context": 8},
    {"reserve": 2},
    {"vocabulary": 999},
    {"source": "f"},
    {"unit": "row"},
    {"train_on": "last"},
    {"wrap": "plain"},
    {"lengths": Lengths(max_length=8)},
    {"lengths": Lengths(overlong="keep_end")},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_change_of_anything_that_decides_the_ids_is_another_file(tmp_path, change):
    encode(tmp_path)
    assert encode(tmp_path, **change) == encode(None, **change)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_change_of_the_code_is_another_file(tmp_path, monkeypatch):
    encode(tmp_path)
    monkeypatch.setattr("minirlhf.data.cache.source_code", lambda *rooms: "another")
    encode(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def cut_end(data):
    return data[:-1]


def flip_a_bit(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


DAMAGES = [
    cut_end,
    flip_a_bit,
    lambda data: b"",
    lambda data: data[:9],
    lambda data: b"\xff" * 8 + data[8:],
    lambda data: data[:8] + b"x" * (len(data) - 8),
    lambda data: data.replace(b"sums", b"sand"),
    lambda data: data.replace(b"data_offsets", b"data_offzets"),
    lambda data: data.replace(b"I32", b"I99"),
    lambda data: (2).to_bytes(8, "little") + b"[]" + data[10:],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(tmp_path, capsys, damage):
    encode(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert encode(tmp_path) == encode(None) == encode(tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: damaged (") and line.endswith("); the rows are encoded again")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"{VARIABLE}: cannot write .*file.* name another folder or none"):
        encode(tmp_path / "file" / "cache")


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path):
    encode(tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"{VARIABLE}: cannot write {path} "):
        encode(tmp_path)
    assert [*tmp_path.iterdir()] == [path]


def test_half_written_files_of_killed_jobs_are_deleted_after_a_day(tmp_path):
    for name, age in (("old", 90_000), ("new", 60)):
        path = tmp_path / f".{name}.safetensors.7"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    encode(tmp_path)
    assert {path.name for path in tmp_path.glob(".*")} == {".new.safetensors.7"}


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert cache_folder() is None
    monkeypatch.setenv(VARIABLE, "")
    assert cache_folder() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_half_written_file_may_vanish_meanwhile(tmp_path):
    """Another job renames its file between the listing and the look at it."""
    (tmp_path / ".gone.safetensors.7").symlink_to(tmp_path / "nowhere")
    encode(tmp_path)
    assert len([*tmp_path.glob("[!.]*")]) == 1
