"""No run is lost: a run killed at any instant resumes and ends with the same bytes."""

import re

import crash
import pytest


def killed_runs(forks, *arguments):
    """(exit code, lines of the table, the last line) of the program."""
    (done,) = forks.run([crash.__file__, *arguments], seconds=3600)
    lines = [line for line in done.stdout.splitlines() if re.match(r"\| (ppo|grpo)/", line)]
    return done.returncode, lines, done.stdout.splitlines()[-1:], done.stderr[-3000:]


def test_three_killed_runs_resume_and_end_with_the_same_files(forks):
    code, lines, last, errors = killed_runs(forks, "--kills", "3", "--runs", "ppo/one,grpo/ddp-2")
    assert last == ["3 of 3 killed runs resumed and ended with the same files"], errors
    assert code == 0 and len(lines) == 3


def test_a_changed_byte_and_a_leftover_are_noticed(tmp_path):

    (tmp_path / "model").mkdir()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text('{"step": 0}\n')
    before = crash.files(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert crash.files(tmp_path) != before
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert crash.files(tmp_path) == before
    (tmp_path / ".step-3.7.tmp").write_text("")  # a leftover counts too
    assert crash.files(tmp_path) != before


@pytest.mark.slow
def test_25_killed_runs_resume_and_end_with_the_same_files(forks):
    code, lines, last, errors = killed_runs(forks, "--kills", "25")
    assert last == ["25 of 25 killed runs resumed and ended with the same files"], (lines, errors)
    assert code == 0 and any("| yes | yes | yes |" in line for line in lines)  # some kills hit a write
