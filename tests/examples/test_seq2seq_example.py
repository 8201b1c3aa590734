"""examples/seq2seq.py, with sizes that take a second."""

import importlib
import sys

from .conftest import EXAMPLES


def test_the_example_trains_and_reports(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tiny = ["--seed", "3", "--rows", "200", "--sft_steps", "2", "--ppo_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["seq2seq.py", *tiny])
    importlib.import_module("seq2seq").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sft step    0") and any(line.startswith("ppo step    0") for line in lines)
    assert lines[-1].startswith("gold reward on 256 held-out reviews: before PPO -")
