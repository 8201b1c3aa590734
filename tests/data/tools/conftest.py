"""Files of rows, and `minirlhf data ...` as a user calls it."""

import json
import sys

import pytest

from minirlhf.cli.main import main


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call(*words) -> (exit code, stdout, stderr) of `minirlhf data ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["minirlhf", "data", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def write(tmp_path):
    """write(name, rows): a JSONL file in the folder of `call`."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return name

    return write


@pytest.fixture
def read(tmp_path):
    def read(name):
        return [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]

    return read
