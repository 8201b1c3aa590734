"""examples/letter_e.py learns: 30 steps of a random network."""

import importlib.util

from .conftest import EXAMPLES


def test_the_policy_learns_to_write_the_letter_e(capsys):
    spec = importlib.util.spec_from_file_location("letter_e", EXAMPLES / "letter_e.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    last = program.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30 and "share of e 0.00" in lines[0]
    assert last["score_mean"] > 0.3  # 0.5 to 0.8 on seeds 0 to 4
