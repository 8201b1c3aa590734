"""The first word of `minirlhf` chooses a command."""

import sys

import pytest

from minirlhf.cli.main import COMMANDS, main


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_command_the_help_names_every_command(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["minirlhf", *words])
    main()
    out = capsys.readouterr().out
    assert all(f"minirlhf {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minirlhf", "trian"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: minirlhf: the first word must be one of adapter, chat, got 'trian'\n"


def test_the_words_after_a_command_are_its_own(monkeypatch):
    seen = []
    monkeypatch.setitem(COMMANDS, "chat", seen.append)
    monkeypatch.setattr(sys, "argv", ["minirlhf", "chat", "DIR", "--seed", "1"])
    main()
    assert seen == [["DIR", "--seed", "1"]]
