"""JSON in every container, plain and packed, and what is refused in it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc

import pytest

from minirlhf.data.reading import bounded, containers, open_values, spool
from minirlhf.errors import InputError

SFT = {"prompt": "p", "response": "r"}


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbered(found: list) -> list[tuple]:
    return [(source.unit, source.number, source.value) for source in found]


ROWS = [SFT, SFT | {"prompt": "déjà vu \u2028 猫"}]
BOTH = json.dumps({"train": [{"text": "你好"}], "validation": [{"text": "b"}]}, ensure_ascii=False)
RAW = [json.dumps(row, ensure_ascii=False) for row in ROWS]
CONTAINERS = {
    "JSONL": (jsonl(ROWS), "a.jsonl"),
    "JSONL in .json": (jsonl(ROWS), "a.json"),
    "JSONL in .txt": (jsonl(ROWS), "a.txt"),
    "JSONL in .csv": (jsonl(ROWS), "a.csv"),
    "JSONL without a last newline, with CRLF": (jsonl(ROWS).strip().replace("\n", "\r\n"), "a.jsonl"),
    "JSONL with CR alone": (jsonl(ROWS).replace("\n", "\r"), "a.jsonl"),
    "JSONL with a byte order mark": (b"\xef\xbb\xbf" + jsonl(ROWS).encode(), "a.jsonl"),
    "JSONL in UTF-16": ("\n".join(RAW).encode("utf-16"), "a.jsonl"),
    "JSONL in UTF-16 without a mark": ("\n".join(RAW).encode("utf-16-le"), "a.jsonl"),
    "JSONL in big UTF-16 without a mark": ("\n".join(RAW).encode("utf-16-be"), "a.jsonl"),
    "JSONL in UTF-32": ("\n".join(RAW).encode("utf-32"), "a.jsonl"),
    "JSONL, raw characters": ("\n".join(RAW), "a.jsonl"),
    "JSONL with a mark in the middle": ("\n\ufeff".join(RAW), "a.jsonl"),
    "array": (json.dumps(ROWS, indent=2, ensure_ascii=False), "a.json"),
    "array in .jsonl": (json.dumps(ROWS), "a.jsonl"),
    "array without an ending": (json.dumps(ROWS), "data"),
    "array, a row a line": ("[" + ",\n".join(RAW) + "]", "a.json"),
    "array after blank lines": ("\n \n" + json.dumps(ROWS), "a.json"),
    "array with a byte order mark": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), "a.json"),
    "array in UTF-16": (json.dumps(ROWS).encode("utf-16"), "a.json"),
    "array with CR alone": (json.dumps(ROWS, indent=1).replace("\n", "\r"), "a.json"),
    "array: rows under data": (json.dumps({"data": ROWS}), "a.json"),
    "array: rows under rows, over several lines, in .jsonl": (json.dumps({"rows": ROWS, "n": 2}, indent=1), "a.jsonl"),
    "array: rows under data and train": (
        json.dumps({"version": [1.0], "data": {"train": ROWS}, "info": {"a": []}}),
        "a",
    ),
    "array: rows under train beside an empty list": ("\n" + json.dumps({"test": [], "train": ROWS}), "a.json"),
    "array: rows under data in UTF-16": (json.dumps({"data": ROWS}).encode("utf-16"), "a.json"),
    "objects over several lines, not an array": ("\n".join(json.dumps(row, indent=2) for row in ROWS), "a.json"),
}


@pytest.mark.parametrize(("content", "name"), CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_json_is_recognised_by_its_content(read, request, content, name, packed):
    unit = "row" if "array" in request.node.callspec.id else "line"
    content = content if isinstance(content, bytes) else content.encode()
    if packed:  # the file's name does not change: the first bytes tell gzip
        content = gzip.compress(content[:9]) + gzip.compress(content[9:])
    assert numbered(read(content, name)) == [(unit, number, row) for number, row in enumerate(ROWS, start=1)]


def test_one_object_a_file(read):
    assert numbered(read(json.dumps(SFT, indent=2), "a.json")) == [("file", 1, SFT)]
    assert numbered(read(json.dumps(SFT), "a.json")) == [("line", 1, SFT)]


@pytest.mark.parametrize("value", [1, "text", [1, 2], None, True, 1.5])
def test_lines_may_hold_values_of_any_type(read, value):
    assert numbered(read(jsonl([value, value]))) == [("line", 1, value), ("line", 2, value)]
    assert numbered(read(json.dumps([value, value]))) == [("row", 1, value), ("row", 2, value)]


def test_numbers_that_strict_json_lacks_are_read(read):
    values = [float("nan"), float("-inf"), float("inf")]
    for text in (jsonl(values), json.dumps(values)):
        assert repr([source.value for source in read(text)]) == repr(values)


def test_blank_lines_are_no_values_but_count_as_lines(read):
    assert numbered(read("1\n\n \n2\n")) == [("line", 1, 1), ("line", 4, 2)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a"])
@pytest.mark.parametrize("content", ["", " \n\n", "\n\r\n", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b"", mtime=0)])
def test_a_file_without_values_has_none(read, content, name):
    assert read(content, name) == []


def test_an_empty_array_has_no_values(read):
    assert read("[]") == read(" [ \n ] ") == []


BROKEN_VALUES = {
    "no JSON": ("nonsense", "broken JSON, Expecting value: 'nonsense'"),
    "cut": ('{"a": "', 'broken JSON, Unterminated string starting at: \'{"a": "\''),
    "comma": ('{"a": 1},', "broken JSON, Extra data: "),
    "two objects": ('{"a": 1}{"a": 2}', "broken JSON, Extra data: "),
    "Python": ("{'a': 1}", "broken JSON, Expecting property name enclosed in double quotes"),
    "key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "broken JSON, the key 'c' stands twice in an object"),
    "digits": ('{"a": %s}' % ("1" * 5000), "broken JSON, Exceeds the limit (4300 digits)"),
    "deep": ("[" * 101 + "]" * 101, "broken JSON, more than 100 lists and objects inside one another"),
    "very deep": ("[" * 20_000 + "]" * 20_000, "broken JSON, more than 100 lists and objects inside one another"),
    "byte": (b'{"a": "\xe9t\xe9"}', "needed UTF-8, got the byte 0xe9 in "),
    "NUL": (b'{"a": "\0"}', "needed text, got a NUL byte in "),
}


@pytest.mark.parametrize(("line", "message"), BROKEN_VALUES.values(), ids=BROKEN_VALUES.keys())
@pytest.mark.parametrize("place", [0, 1])
def test_a_broken_line_is_named_and_the_others_are_read(read, faults, line, message, place):
    lines = [b'{"b": 1}', b'{"b": "' + b"2" * 99 + b'"}']
    lines.insert(place, line if isinstance(line, bytes) else line.encode())
    ((number, fault),) = faults(b"\n".join(lines)).items()
    assert number == place + 1 and fault.startswith(message) and len(fault) < 250
    assert len(read(b"\n".join(lines))) == 3


@pytest.mark.parametrize("fault", ["key twice", "digits", "deep", "byte"])
def test_a_row_of_an_array_that_is_refused_is_named_and_the_others_are_read(faults, read, fault):
    row, message = BROKEN_VALUES[fault]
    content = b'[{"b": 1},\n' + (row if isinstance(row, bytes) else row.encode()) + b', {"b": 2}]'
    ((number, found),) = faults(content).items()
    assert number == 2 and found.startswith(message)
    assert read(content)[2].value == {"b": 2}


def gz(rows: list) -> bytes:
    return gzip.compress(jsonl(rows).encode())


FILE_ERRORS = {
    "broken array": (
        b'\n[{"prompt": "p"},\n\n{"prompt" "q"}]',
        "needed whole JSON values, got broken JSON (Expecting ':' delimiter: line 4, at '\"q\"}]'); mend the file",
    ),
    "cut array": (b'[{"prompt": "p"},', "needed whole JSON values, got broken JSON (Expecting value: line 1, at '')"),
    "array without its end": (b'[{"a": 1}\n', "needed whole JSON values, got broken JSON (the array breaks off after"),
    "array without a comma": (
        b'[{"a": 1}\n{"a": 2}]',
        "needed whole JSON values, got broken JSON (Expecting ',': line 2",
    ),
    "text after the array": (
        b'[\n{"a": 1}\n]\n[{"a": 2}]',
        "needed whole JSON values, got broken JSON (Extra data: line 4",
    ),
    "deep array": (b"[" * 100_000, "needed whole JSON values, got broken JSON (row 1: more than 100 lists"),
    "cut gzip": (gz([SFT] * 999)[:-9], "needed a whole gzip file, got a file broken after line "),
    "broken gzip": (b"\x1f\x8bnot gzip at all", "needed a whole gzip file, got a file broken after line 0 ("),
    "damaged gzip": (gz([SFT] * 9)[:10] + b"\xff" * 30, "needed a whole gzip file, got a file broken after line 0 ("),
    "gzip, then other bytes": (gz([SFT]) + b"more", "needed a whole gzip file, got a file broken after line 1 ("),
    "gzip in gzip": (gzip.compress(gz([SFT])), "needed text inside the gzip file, got a packed file; unpack it first"),
}


@pytest.mark.parametrize(("content", "expected"), FILE_ERRORS.values(), ids=FILE_ERRORS.keys())
def test_bad_file_is_one_line_with_its_name(read, tmp_path, content, expected):
    with pytest.raises(InputError) as error:
        read(content)
    assert str(error.value).startswith(f"{tmp_path / 'data.jsonl'}: {expected}")
    assert "\n" not in str(error.value)


def test_a_line_beyond_the_limit_is_refused_and_the_next_is_read(read, faults, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)
    content = f'{{"a": 1}}\n{{"a": "{"x" * 5000}"}}\n{{"a": 2}}\n'
    message = "needed at most 100 bytes, got a line of more; cut it into several rows"
    assert faults(content) == {2: message} and read(content)[2].value == {"a": 2}
    assert read('{"a": "' + "x" * 91 + '"}')[0].value == {"a": "x" * 91}  # 100 bytes


def test_a_row_of_an_array_beyond_the_limit_is_refused(read, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"needed at most 1,000 bytes, got row 1 of more; cut it"):
        read(json.dumps(["x" * 200_000]))
    assert len(read(json.dumps(["x" * 900] * 200))) == 200  # the array may be longer


def test_gzip_bomb_is_not_unpacked(read, monkeypatch):
    monkeypatch.setattr(spool, "BOMB_BYTES", 1 << 16)
    with pytest.raises(InputError, match=r"needed a gzip file that becomes up to 200 times as long, got .* unpack"):
        read(gzip.compress(b" " * (1 << 22)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_an_array_is_read_in_chunks_of_any_size(read, monkeypatch, size):
    monkeypatch.setattr(containers, "CHUNK", size)
    rows = [1, 23, -4.5e3, 'a\\"猫\u2028', [], {}, None, True, {"a": [{"b": "é" * 50}, 12345]}, "x" * 300, False, 6]
    for text in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=3)):
        assert [source.value for source in read(text)] == rows


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows):
        path = tmp_path / "a.json"
        path.write_text("[" + ",".join([json.dumps({"text": "x" * 500})] * rows) + "]")
        tracemalloc.start()
        assert sum(1 for _ in open_values(path)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(4000) < 1.2 * peak(2000)  # 2 MB and 1 MB of text


@pytest.mark.parametrize("indent", [None, 1])
def test_several_lists_of_rows_are_refused_with_a_command_that_takes_them_apart(tmp_path, monkeypatch, indent):
    monkeypatch.chdir(tmp_path)
    both = {"data": {"train": ROWS * 2, "test": ROWS}}
    (tmp_path / "both.json").write_text(json.dumps(both, indent=indent))
    with pytest.raises(InputError, match=r"got 2: data.train \(4 objects\), data.test \(2 objects\)") as caught:
        open_values("both.json")
    subprocess.run([sys.executable, "-c", str(caught.value).partition("in Python: ")[2]], check=True)
    assert [source.value for source in open_values("data_train.json")] == ROWS * 2
    (tmp_path / "both.json.gz").write_bytes(gzip.compress(json.dumps(both).encode()))
    with pytest.raises(InputError, match="; write each into a file of its own$"):
        open_values("both.json.gz")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_command_that_takes_lists_apart_overwrites_no_file(tmp_path, monkeypatch, encoding):
    """A file train.json is often {"train": [...], "validation": [...]}: its other list would be lost."""
    monkeypatch.chdir(tmp_path)
    content = json.dumps({"train": ROWS, "validation": ROWS * 2}).encode(encoding)
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(InputError, match="got 2: train") as caught:
        open_values("train.json")
    command = [sys.executable, "-c", str(caught.value).partition("in Python: ")[2]]
    subprocess.run(command, check=True)
    assert (tmp_path / "train.json").read_bytes() == content
    assert [source.value for source in open_values("rows_train.json")] == ROWS
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 1  # nor its own file, a second time


@pytest.mark.parametrize("encoding", [None, "gb18030"])
def test_no_command_for_a_file_that_it_could_not_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(BOTH.encode(encoding) if encoding else gzip.compress(BOTH.encode()))
    with pytest.raises(InputError, match="; write each into a file of its own$"):
        open_values(tmp_path / "a.json", encoding=encoding)


def test_what_stands_beside_wrapped_rows_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS, "system": "be kind"}))
    assert open_values(path).format == "JSON array under data (not read beside it: version, system)"


OBJECTS = {
    "a row with turns": {"messages": [{"role": "user", "content": "a"}]},
    "lists of texts": {"data": {"prompt": ["a"], "response": ["b"]}},
    "turns in an object of another name": {"row": {"messages": [{"role": "user", "content": "a"}]}},
    "an empty list": {"data": []},
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_an_object_without_a_list_of_rows_is_a_row(read, value):
    assert [source.value for source in read(json.dumps(value), "a.json")] == [value]
    assert [source.value for source in read(json.dumps(value, indent=1), "a.json")] == [value]


def test_two_objects_with_lists_are_two_rows(read):
    rows = [{"data": ROWS}, {"data": ROWS}]
    assert [source.value for source in read(jsonl(rows), "a.jsonl")] == rows


def test_a_list_of_rows_may_be_longer_than_the_window(read, monkeypatch):
    monkeypatch.setattr(containers, "CHUNK", 64)
    rows = [SFT | {"prompt": f"{n} " + "x" * (7 * n)} for n in range(40)]
    found = read(json.dumps({"meta": {"n": 40}, "data": rows}), "a.json")
    assert [source.value for source in found] == rows and found[-1].number == 40
