"""Files, folders, patterns and standard input; files that are no data; reading again."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
from types import SimpleNamespace

import pytest

from minirlhf.data.reading import bounded, open_values, values
from minirlhf.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Two files of different formats, one of them in a folder below, and files that are no data."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.csv").write_text("prompt,response\np,r\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\nbroken\n')
    (tmp_path / ".hidden.jsonl").write_text("{}")
    (tmp_path / "README.md").write_text("About")
    return tmp_path


def seen(found) -> list[tuple]:
    return [(os.path.basename(source.file), source.number) for source in found]


def test_a_folder_is_read_in_order_of_names_and_each_file_alone(folder):
    found = open_values(folder)
    assert seen(found) == [("a.jsonl", 1), ("a.jsonl", 2), ("b.csv", 2)]
    assert found.format == "2 files: JSONL (1), CSV with header (1)"
    assert found.notes == (
        f"{folder}: not read: README.md (name a file to read it)",
        f"{folder}: 1 hidden file not read",
    )
    assert isinstance(list(found)[1].value, InputError)


def test_files_without_known_endings_are_read_if_a_folder_has_no_others(tmp_path):
    for name in ("rt.pos", "rt.neg"):
        (tmp_path / name).write_text("good\nfine\n")
    assert seen(open_values(tmp_path)) == [("rt.neg", 1), ("rt.neg", 2), ("rt.pos", 1), ("rt.pos", 2)]


def test_several_files_in_all_ways(folder, monkeypatch):
    monkeypatch.chdir(folder)
    both = [("a.jsonl", 1), ("a.jsonl", 2), ("b.csv", 2)]
    for source in ("a.jsonl,below", ["a.jsonl", folder / "below/b.csv"], "**/*.[cj]s*", ("a.jsonl", "below/*.csv")):
        assert seen(open_values(source)) == both
    (folder / "a,b[1].jsonl").write_text("1")  # a file of this very name
    assert seen(open_values("a,b[1].jsonl")) == [("a,b[1].jsonl", 1)]


def test_a_file_that_is_named_twice_is_read_once_and_said(folder):
    path = folder / "a.jsonl"
    os.symlink(path, folder / "c.jsonl")
    found = open_values([path, path, folder / "c.jsonl"])
    assert len(list(found)) == 2
    assert found.notes == (
        f"{path} is named twice; it is read once",
        f"{folder / 'c.jsonl'} is named twice (the same file as {path}); it is read once",
    )


def test_a_loop_of_folders_ends(folder):
    os.symlink(folder, folder / "below" / "up")
    found = open_values(folder)
    assert len(list(found)) == 3
    assert f"{folder}/below/up leads back to a folder that is read already; it is left out" in found.notes


PATHS = {
    "none": "needed a readable data file, got: No such file or directory; check the path",
    "loop": "needed a readable data file, got: Too many levels of symbolic links; check the path",
    "empty": "needed a folder with data files, got no visible file in it; check the path",
    "pipe": "needed a file or a folder, got a pipe; give a stream to standard input: --data -",
    "*.parquet": "needed a pattern that fits a file, got none that fits; check the path",
    "nu\0l": "needed a readable data file, got: ",
}


@pytest.mark.parametrize(("name", "message"), PATHS.items())
def test_a_path_without_data_is_named(tmp_path, name, message):
    os.symlink("loop", tmp_path / "loop")
    os.mkdir(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as error:
        open_values(f"{tmp_path}/{name}")
    assert f"/{name.replace(chr(0), chr(92) + 'x00')}: {message}" in str(error.value)


@pytest.mark.parametrize("source", [None, 5, [], "", ",", [{"prompt": "p"}], {"a": 1}, [None]])
def test_a_source_that_is_no_path_is_refused(source):
    with pytest.raises(InputError, match=r"needed the path of a file"):
        open_values(source)


def test_a_device_is_refused():
    with pytest.raises(InputError, match=r"/dev/zero: needed a file or a folder, got a device"):
        open_values("/dev/zero")


BINARY = {
    "zip": (b"PK\x03\x04rest", "got a zip archive (or .xlsx, .docx, .npz, .pt); unpack it first: unzip"),
    "zstd": (b"\x28\xb5\x2f\xfdrest", "got a zstd file; unpack it first: unzstd"),
    "bzip2": (__import__("bz2").compress(b"text"), "got a bzip2 file; unpack it first: bunzip2"),
    "xz": (__import__("lzma").compress(b"text"), "got an xz file; unpack it first: unxz"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\0", "got a tar archive; unpack it first: tar xf"),
    "pickle": (pickle.dumps([1]), "got a pickle, which can run programs; convert it to JSONL first"),
    "PDF": (b"%PDF-1.7", "got a PDF; extract its text first: pdftotext"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "got a PNG picture; name a data file"),
    "JPEG": (b"\xff\xd8\xff\xe0", "got a JPEG picture; name a data file"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}", "needed text, got a binary file that begins with "),
    "random bytes": (random.Random(0).randbytes(5000), "needed text, got a binary file that begins with "),
    "UTF-16 without Latin letters": ("你好世界".encode("utf-16-le"), "is it UTF-16? --encoding utf-16"),
    "NULs later": (b"some text\0\0", "needed text, got a binary file that begins with b'some text"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "got a Git LFS pointer instead of the data; fetch the data: git lfs pull",
    ),
    "page": (b"<!DOCTYPE html>\n<html>", "got an HTML page instead of the data; fetch the data again, by its raw"),
}


@pytest.mark.parametrize(("content", "message"), BINARY.values(), ids=BINARY.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_binary_files_and_pointers_are_named(read, content, message, packed):
    with pytest.raises(InputError) as error:
        read(gzip.compress(content, mtime=0) if packed else content, "a.jsonl.gz" if packed else "a.jsonl")
    assert message in str(error.value) and len(str(error.value)) < 400


@pytest.fixture
def piped(monkeypatch):
    def piped(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    values._standard_input.cache_clear()
    yield piped
    values._standard_input.cache_clear()


@pytest.mark.parametrize(
    "content", [b'{"a": 1}\n', b'[{"a": 1}]', gzip.compress(b'{"a": 1}', mtime=0), '{"a": 1}'.encode("utf-16")]
)
def test_standard_input_may_be_read_again(piped, content):
    piped(content)
    for _ in range(2):  # standard input itself ends once
        found = open_values("-")
        (source,) = found
        assert (source.file, source.value, found.at(source.at)) == ("standard input", {"a": 1}, {"a": 1})


def test_standard_input_that_is_endless_binary_or_of_several_processes_is_refused(piped, monkeypatch):
    piped(b"\0" * 100_000)
    with pytest.raises(InputError, match=r"standard input: needed data, got nothing but NUL bytes"):
        open_values("-")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"standard input: needed one process, got several"):
        open_values("-")


@pytest.mark.parametrize("stream", [None, SimpleNamespace(buffer=io.BytesIO(b"1\n"), isatty=lambda: True)])
def test_a_terminal_is_no_standard_input(piped, monkeypatch, stream):
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(InputError, match=r"^standard input: needed data, got a terminal; write: cat FILE"):
        open_values("-")


def test_a_long_line_ends_where_its_part_of_the_file_ends(monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 8)
    file = io.BytesIO(b"a\n" + b"x" * 28 + b"rest\n")
    assert list(bounded.lines(file, 30)) == [(0, 2, 1, b"a\n"), (2, 30, 2, None)]


def test_a_file_that_becomes_shorter_while_it_is_read_is_noticed():
    with pytest.raises(InputError, match="got a file that became shorter; start again"):
        list(bounded.lines(io.BytesIO(b"ab\nc"), 9))


def test_a_file_that_ends_inside_a_letter_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16") + b"\x00")
    with pytest.raises(InputError, match=r"a.jsonl: needed utf-16.*, got a byte that is none after"):
        list(open_values(tmp_path / "a.jsonl"))


def test_an_unknown_kind_of_documents_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="documents: needed one of line, blank_line, file, got 'page'"):
        open_values(tmp_path / "a.txt", documents="page")


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n")
    found = open_values(path)
    first = next(iter(found))
    path.write_text("1\n2\n3\n")
    for access in (lambda: list(found), lambda: found.at(first.at)):
        with pytest.raises(InputError, match=r"needed the file as it was when it was opened, got 6 bytes instead of 4"):
            access()
    path.write_text("3\n4\n")
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match=r"got one that was written since; start again"):
        found.at(first.at)
    found, numbers = open_values(path), []
    with pytest.raises(InputError, match=r"a.jsonl: needed the file as it was"):
        for source in found:  # changes while it is read
            numbers.append(source.number)
            os.utime(path, ns=(source.number, source.number))


def _values_at(found, positions):
    return [found.at(at) for at in positions]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_the_same_values(tmp_path, method):
    rows = [{"a": i} for i in range(50)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    found = open_values(tmp_path)
    positions = [source.at for source in found][::-1]
    with multiprocessing.get_context(method).Pool(2) as pool:
        parts = pool.starmap(_values_at, [(found, positions[:60]), (found, positions[60:])])
    assert _values_at(pickle.loads(pickle.dumps(found)), positions) == rows[::-1] * 2
    assert parts[0] + parts[1] == rows[::-1] * 2


def _open_and_wait(path, opened):
    found = open_values(path)
    opened.send(len(list(found)))
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_program_leaves_no_copy(tmp_path, monkeypatch, number):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000, mtime=0))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    fork = multiprocessing.get_context("fork")
    opened, end = fork.Pipe()
    process = fork.Process(target=_open_and_wait, args=(tmp_path / "a.gz", end))
    process.start()
    assert opened.poll(60) and opened.recv() == 1000
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == -number and os.listdir(tmp_path / "temporary") == []


def test_no_room_for_a_copy_is_said(monkeypatch, read):
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
    with pytest.raises(
        InputError, match=r"needed room for an unpacked copy in .*, got: No space left on device; unpack"
    ):
        read(gzip.compress(b'{"a": 1}\n', mtime=0))


def test_parquet_needs_pyarrow(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match=r"needed the package pyarrow to read parquet, got none; install it \(pip install"
    ):
        read(b"PAR1", "a.parquet")


def test_a_tilde_behind_a_comma_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p"}\n')
    assert open_values(f"{tmp_path}/a.jsonl,~/b.jsonl").files == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")
