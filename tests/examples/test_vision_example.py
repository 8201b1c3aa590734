"""examples/vision.py, with sizes that take a second."""

import importlib
import sys

from .conftest import EXAMPLES


def test_the_example_trains_and_reports(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tiny = ["--seed", "3", "--questions", "4", "--sft_steps", "2", "--grpo_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["vision.py", *tiny])
    importlib.import_module("vision").main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("right answers untrained, without a list: 0.0")
    assert [line for line in lines if line.startswith("grpo step    0  reward 0.0")]
    assert lines[-1].startswith("right answers after GRPO, with a list: 0.0")
