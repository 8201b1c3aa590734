"""`minirlhf run samples`: who wrote what."""

import json
import sys

import pytest

from minirlhf.algorithms import PPOConfig
from minirlhf.cli.main import main
from minirlhf.cli.run_samples import show_samples
from minirlhf.errors import InputError
from minirlhf.training.settings import settings_to_toml

TURNS = [
    {"by": "policy", "text": "<calculator>1+2</calculator>"},
    {"by": "environment", "text": "<result>3\x1b[2J</result>"},
    {"by": "policy", "text": "3"},
]


@pytest.fixture
def run(tmp_path):
    """run(*rows of samples.jsonl) -> the folder of a run."""

    def run(*rows):
        folder = tmp_path / "grpo"
        folder.mkdir()
        (folder / "config.toml").write_text(settings_to_toml({"ppo": PPOConfig()}))
        (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return run


def test_the_last_samples_on_a_pipe(run, monkeypatch, capsys):
    folder = run(
        {"step": 0, "prompt": "old", "completion": "x"},
        {"step": 4, "prompt": "1+2=", "completion": "...", "score": 1.0, "turns": TURNS},
        {"step": 4, "prompt": "2+2=", "completion": "4", "score": None},
    )
    monkeypatch.setattr(sys, "argv", ["minirlhf", "run", "samples", str(folder)])
    main()
    assert capsys.readouterr().out == (
        "--- grpo, after 5 steps, sample 1, score 1\n"
        "1+2=[+<calculator>1+2</calculator>+][-<result>3\\x1b[2J</result>-][+3+]\n\n"
        "--- grpo, after 5 steps, sample 2, score None\n"
        "2+2=[+4+]\n\n"
        "prompt, [+policy+], [-environment-]\n"
    )
    assert show_samples(folder, step=1).startswith("--- grpo, after 1 steps, sample 1\nold[+x+]")
    assert "sample 2" not in show_samples(folder, n=1)


def test_colours_on_a_terminal_unless_the_user_wants_none(run, monkeypatch):
    folder = run({"step": 4, "prompt": "1+2=", "completion": "...", "turns": TURNS})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m<calculator>1+2</calculator>\x1b[0m\x1b[33m<result>3\\x1b[2J" in show_samples(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in show_samples(folder)


def test_lists_of_tokens_are_no_facts(run):
    row = {"step": 0, "prompt": "p", "completion": "ab", "score": 1.0, "tokens": ["a", "b"], "logps": [-1.0, -2.0]}
    assert show_samples(run(row)).splitlines()[0].endswith("sample 1, score 1")


def test_missing_samples_and_strange_turns(run, tmp_path):
    with pytest.raises(InputError, match="needed a folder with runs"):
        show_samples(tmp_path)
    folder = run({"step": 1, "prompt": 5, "turns": [7, {"by": "judge", "text": "x"}]})
    assert "57{'by': 'judge', 'text': 'x'}" in show_samples(folder)
    with pytest.raises(InputError, match="needed samples after 9 steps; the last steps with samples: 2"):
        show_samples(folder, step=9)
    with pytest.raises(InputError, match="at least 1 sample"):
        show_samples(folder, n=0)
    (folder / "samples.jsonl").unlink()
    with pytest.raises(InputError, match="needed samples, found none"):
        show_samples(folder)
