"""`minirlhf data`: the second word chooses a command."""

import importlib
import re

import pytest

from minirlhf.cli.data import COMMANDS, main
from minirlhf.errors import InputError


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_fits_a_screen_and_names_every_command(capsys, words):
    main(words)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if re.match("[a-z]+ ", line)][1:] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_one_screen(capsys, command):
    assert callable(getattr(importlib.import_module(COMMANDS[command]), command))
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code and len(out.splitlines()) <= 26 and f"minirlhf data {command}" in out


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(InputError, match="got 'spilt'; the nearest is split"):
        main(["spilt"])


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sample"])
def test_a_missing_file_is_named(command):
    with pytest.raises(InputError, match=f"minirlhf data {command}: needed .* first, got nothing; see --help"):
        main([command])
    if command != "download":
        with pytest.raises(InputError, match="no.jsonl"):
            main([command, "no.jsonl", *["no.jsonl"] * (command == "merge"), *more(command)])


def more(command):
    return {"convert": ["--layout", "sft", "--output", "/nowhere/x"], "merge": ["--dry_run"]}.get(
        command, ["--output", "/nowhere/x"] if command in ("pairs", "augment", "split") else []
    )
