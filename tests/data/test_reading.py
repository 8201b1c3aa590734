"""Every container and every file error of `read_values`, on files written here."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from minirlhf.data import reading
from minirlhf.data.reading import Source, read_values
from minirlhf.errors import InputError

SFT = {"prompt": "p", "response": "r"}


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def read(tmp_path):
    """read(content, name): content is text or bytes."""

    def read(content, name="data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_values(str(path)))

    return read


ROWS = [SFT, SFT | {"prompt": "déjà vu \u2028 猫"}]
CONTAINERS = {
    "JSONL": (jsonl(ROWS), "a.jsonl"),
    "JSONL in .json": (jsonl(ROWS), "a.json"),
    "JSONL without a last newline, with CRLF": (jsonl(ROWS).strip().replace("\n", "\r\n"), "a.jsonl"),
    "array": (json.dumps(ROWS, indent=2, ensure_ascii=False), "a.json"),
    "array in .jsonl": (json.dumps(ROWS), "a.jsonl"),
    "array after blank lines": ("\n \n" + json.dumps(ROWS), "a.json"),
    "JSONL with a byte order mark": (b"\xef\xbb\xbf" + jsonl(ROWS).encode(), "a.jsonl"),
    "array with a byte order mark": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), "a.json"),
    "JSONL, raw characters": ("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), "a.jsonl"),
}


@pytest.mark.parametrize(("content", "name"), CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_container_is_recognised_by_its_content(read, request, content, name, packed):
    unit = "row" if "array" in request.node.callspec.id else "line"
    if packed:  # the file's name does not change: the first bytes tell gzip
        content = gzip.compress(content if isinstance(content, bytes) else content.encode())
    assert read(content, name) == [Source(unit, number, row) for number, row in enumerate(ROWS, start=1)]


def test_blank_lines_are_no_values_but_count_as_lines(read):
    assert read("1\n\n \n2\n") == [Source("line", 1, 1), Source("line", 4, 2)]


@pytest.mark.parametrize("content", ["", " \n\n", "[]"])
def test_a_file_without_values_has_none(read, content):
    assert read(content) == []


def test_a_broken_line_is_an_error_in_its_place_and_the_next_line_is_read(read):
    first, broken, last = read("1\nnonsense\n2\n")
    assert (first.value, last) == (1, Source("line", 3, 2)) and broken.number == 2
    assert isinstance(broken.value, InputError) and str(broken.value) == "broken JSON, Expecting value: 'nonsense'"


def gz(rows: list) -> bytes:
    return gzip.compress(jsonl(rows).encode())


FILE_ERRORS = {
    "broken array": (
        b'\n[{"prompt": "p"},\n\n{"prompt" "q"}]',
        "needed one JSON array, got broken JSON (Expecting ':' delimiter: line 4 column 11 (char 30)); mend the file",
    ),
    "cut array": (b'[{"prompt": "p"},', "needed one JSON array, got broken JSON (Expecting value: line 1 column 18"),
    "deep array": (b"[" * 100_000, "needed one JSON array, got broken JSON ("),
    "Latin-1": (
        jsonl([SFT]).encode() + "é".encode("latin-1"),
        "line 2: needed UTF-8, got byte 0xe9; save the file as UTF-8",
    ),
    "UTF-16": (jsonl([SFT]).encode("utf-16-le").join([b"\xff\xfe", b""]), "line 1: needed UTF-8, got byte 0xff; save"),
    "cut gzip": (gz([SFT] * 999)[:-9], "needed a whole gzip file, got a file broken after line "),
    "broken gzip": (b"\x1f\x8bnot gzip at all", "needed a whole gzip file, got a file broken after line 0 ("),
    "damaged gzip": (gz([SFT] * 9)[:10] + b"\xff" * 30, "needed a whole gzip file, got a file broken after line 0 ("),
}


@pytest.mark.parametrize(("content", "expected"), FILE_ERRORS.values(), ids=FILE_ERRORS.keys())
def test_bad_file_is_one_line_with_its_name(read, tmp_path, content, expected):
    with pytest.raises(InputError) as error:
        read(content)
    assert str(error.value).startswith(f"{tmp_path / 'data.jsonl'}: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "cause"),
    [("none", "No such file or directory"), (".", "Is a directory"), ("loop", "Too many levels of symbolic links")],
)
def test_file_that_cannot_be_opened_is_named_with_the_cause(tmp_path, name, cause):
    os.symlink("loop", tmp_path / "loop")  # unreadable even for root
    with pytest.raises(InputError) as error:
        list(read_values(str(tmp_path / name)))
    assert str(error.value) == f"{tmp_path / name}: needed a readable data file, got: {cause}; check the path"


@pytest.mark.parametrize("content", [b" " * 5000, json.dumps([SFT] * 100, indent=1).encode()], ids=["line", "array"])
def test_gzip_bomb_is_not_unpacked(read, monkeypatch, content):
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"needed lines or one array of at most 1,000 bytes, got more; write JSONL"):
        read(gzip.compress(content))
    assert len(read(gz([SFT] * 100))) == 100  # lines are counted one by one


def test_a_key_that_stands_twice_is_refused(read):
    (only,) = read('{"prompt": "a", "response": "b", "prompt": "c"}\n')
    assert isinstance(only.value, InputError)
    assert str(only.value).startswith("broken JSON, the key 'prompt' stands twice in an object: ")
    with pytest.raises(InputError, match=r"needed one JSON array, got broken JSON \(the key 'a' stands twice"):
        read('[{"turns": [{"a": 1, "a": 1}]}]')
