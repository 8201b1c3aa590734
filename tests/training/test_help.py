"""--help: one screen, all settings, or a section; unknown sections; no guess where no name is near."""

import dataclasses
import importlib
import sys

import pytest

from minirlhf.algorithms import PPOConfig
from minirlhf.errors import InputError
from minirlhf.jobs import PipelineConfig
from minirlhf.jobs.data_flags import DataFlags, StageData
from minirlhf.jobs.settings import sections
from minirlhf.nearest import nearest
from minirlhf.training import parse_settings
from minirlhf.training.fields import fields_of
from minirlhf.training.help import field_help
from minirlhf.training.vocabulary import METRICS, metrics_help

from ..examples.conftest import EXAMPLES

PROGRAM = sections("ppo", PPOConfig, job=PipelineConfig, after=("sft", "reward"))
NAMES = [name for section, cls in PROGRAM.items() for name, _, _ in fields_of(section, cls)]


def ask(capsys, *words, program=PROGRAM):
    with pytest.raises(SystemExit) as caught:
        parse_settings(program, list(words), description="Train.", epilogue=metrics_help())
    assert caught.value.code == 0
    return capsys.readouterr().out


SCRIPTS = ("letter_e", "vision")  # they write no folder
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in SCRIPTS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_every_example_is_one_screen_of_80_columns(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(name).main()
    lines = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 80
    assert any(line.startswith("  --output ") for line in lines) and "--help SECTION" in " ".join(lines)


def test_the_screen_has_the_common_settings_of_the_program(capsys):
    text = ask(capsys, "--help")
    for flag in ("--data", "--policy", "--reward", "--output", "--resume", "--seed", "--ppo.steps", "--ppo.kl_coef"):
        assert f"  {flag} " in text
    assert "--ppo.lam" not in text and "--model.hidden_size" not in text
    assert "all, job, model, sharding, lora, sft, reward_model, ppo, run, metrics" in " ".join(text.split())


def test_all_settings_and_metrics(capsys):
    for words in (["--help", "all"], ["--help=all"], ["--seed", "1", "-h", "all"]):
        text = ask(capsys, *words)
        assert all(f"  --{name} " in text for name in NAMES) and all(f"  {name} " in text for name in METRICS)


@pytest.mark.parametrize("section", PROGRAM)
def test_a_section(section, capsys):
    text = ask(capsys, "--help", section)
    shown = {line.split()[0] for line in text.splitlines() if line.startswith("  --")}
    config = {"--config"} if section == "job" else set()
    assert shown == config | {f"--{name}" for name, _, _ in fields_of(section, PROGRAM[section])}


def test_the_metrics_are_a_section(capsys):
    text = ask(capsys, "--help", "metrics")
    assert all(f"  {name} " in text for name in METRICS) and "--seed" not in text


@pytest.mark.parametrize("words", [["--help", "nope"], ["--help=nope"], ["-h", "PPO"]])
def test_an_unknown_section_is_refused_with_the_names_of_all(words):
    with pytest.raises(InputError, match="no section '(nope|PPO)'; the sections are all, job, model, .*, metrics$"):
        parse_settings(PROGRAM, words, description="", epilogue=metrics_help())


def test_a_flag_after_help_is_no_section(capsys):
    assert ask(capsys, "--help", "--seed", "1") == ask(capsys, "--help")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, ask(capsys, "--help", "all").splitlines())) <= columns


def test_a_program_of_few_settings_shows_all(capsys):
    @dataclasses.dataclass(frozen=True)
    class Few:
        first: int = 1  # [rows] a number
        second: str = "x"  # [-] a text

    text = ask(capsys, "--help", program={"job": Few})
    assert "  --first   1     [rows] a number" in text and "  --second  x     a text" in text


def test_the_meanings_stand_below_each_other_beside_a_default_of_twelve_letters(capsys):
    @dataclasses.dataclass(frozen=True)
    class Few:
        first: int = 1  # [rows] a number
        second: str = "twelve_chars"  # [-] a text
        third: str = "thirteen_char"  # [-] a name

    lines = ask(capsys, "--help", program={"job": Few}).splitlines()
    meanings = ("[rows] a number", "a text", "a name")
    starts = [line.index(meaning) for line in lines for meaning in meanings if meaning in line]
    assert starts[0] == starts[1] == starts[2] - 1  # a longer default shifts its own line only


@pytest.mark.parametrize("name", ["nonsense", "xyzzy", "q", "banana", "wibble", "lorem", "test", "push_to_hub", "fp16"])
def test_nothing_is_guessed_where_nothing_is_near(name):
    assert nearest(name, NAMES) == ""
    with pytest.raises(InputError) as caught:
        parse_settings(PROGRAM, [f"--{name}", "1"], description="")
    assert str(caught.value) == f"command line: no setting '--{name}'; see --help."


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("clip_esp", "ppo.clip_eps"),
        ("ppo.clip", "ppo.clip_eps"),
        ("batchsize", "sft.batch_size"),
        ("dpo.lr", "ppo.lr"),
        ("ppo.kl", "ppo.kl_coef"),
        ("polcy", "policy"),
        ("out", "output"),
        ("stop-after", "stop_after"),
    ],
)
def test_a_slip_is_guessed(name, known):
    assert nearest(name, NAMES) == f"; the nearest is {known}"


def test_every_setting_of_the_data_has_a_meaning():
    for settings in (DataFlags, StageData):
        assert field_help(settings).keys() == {field.name for field in dataclasses.fields(settings)}
