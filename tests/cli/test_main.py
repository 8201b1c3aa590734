"""The first word of `minirlhf` chooses a command."""

import subprocess
import sys
from types import ModuleType

import pytest

from minirlhf.cli.main import COMMANDS, main


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_command_the_help_has_a_line_and_an_example_of_each_command(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["minirlhf", *words])
    main()
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} ")]
        assert lines[at + 1].strip().startswith(f"minirlhf {name} ")
    assert len(lines) <= 23 and max(map(len, lines)) <= 96


@pytest.mark.parametrize(("word", "near"), [("trian", "train"), ("evaluate", "eval"), ("adapters", "adapter")])
def test_an_unknown_command_names_the_nearest(monkeypatch, capsys, word, near):
    monkeypatch.setattr(sys, "argv", ["minirlhf", word])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    known = "data, train, eval, chat, adapter, check, plan, run, doctor"
    message = f"error: minirlhf: needed a command ({known}), got '{word}'; the nearest is {near}\n"
    assert capsys.readouterr().err == message


def test_the_words_after_a_command_are_its_own(monkeypatch):
    seen, module = [], ModuleType("mine")
    module.main = seen.append
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setitem(COMMANDS, "chat", "mine")
    monkeypatch.setattr(sys, "argv", ["minirlhf", "chat", "DIR", "--seed", "1"])
    main()
    assert seen == [["DIR", "--seed", "1"]]


def test_the_help_loads_no_torch_and_python_m_is_the_command():
    program = "import sys, runpy; sys.argv = ['minirlhf', '--help']; runpy.run_module('minirlhf', run_name='__main__')"
    program += "; assert not {'torch', 'numpy', 'tokenizers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("minirlhf: RLHF")
