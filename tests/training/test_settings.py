"""Settings: precedence, accepted values, refusals and their texts, --help, and the round trip through TOML."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirlhf.errors import InputError
from minirlhf.training.defaults import with_defaults
from minirlhf.training.help import field_help, help_text
from minirlhf.training.settings import parse_settings, settings_to_toml


@dataclass(frozen=True)
class Common:
    output: str | None = None  # [-] folder of the run
    seed: int = 0  # [-] all randomness follows from it
    resume: bool = False  # [-] go on with the run in --output


@dataclass(frozen=True)
class Optimizer:
    """What every stage shares."""

    lr: float = 3e-4  # [1/step] peak learning rate;
    # the schedule multiplies it
    betas: tuple[float, float] = (0.9, 0.999)  # [-] decay of the two moments

    # A comment after a blank line belongs to no field.
    warmup: int = 10  # [updates] linear


@dataclass(frozen=True)
class PPO(Optimizer):
    clip_eps: float = 0.2  # [ratio] half-width of the trust region
    clip_high: float | None = 0.3  # [ratio] none: as clip_eps
    kl: Literal["k1", "k3"] = "k1"  # [-] estimator
    stop_token: Literal["eos"] | int | None = "eos"  # [-] ends a completion
    stop: tuple[str, ...] = (
        "\n\nHuman:",  # not the help
        "it's so",
    )  # [-] strings that end a completion
    layers: list[int] = field(default_factory=lambda: [1, 2])  # [-] which
    adapter: Path | None = None  # [-] folder
    whiten: bool = True  # [-] advantages
    undocumented: int = 0  # no unit, so no help

    def __post_init__(self) -> None:
        local: int = self.warmup  # [-] not a field
        if local < 0:
            raise ValueError(f"PPO: warmup must be at least 0, got {local}.")


@dataclass(frozen=True)
class Required:
    data: str  # [-] rows


SECTIONS = {"job": Common, "ppo": PPO}


def parse(*argv: str) -> dict:
    return parse_settings(SECTIONS, list(argv), description="Train.")


def ppo(*argv: str) -> PPO:
    return parse(*argv)["ppo"]


@pytest.fixture
def toml(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "run.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence


def test_no_argument_gives_the_defaults():
    assert parse() == {"job": Common(), "ppo": PPO()}


def test_the_file_overrides_defaults_and_flags_override_the_file_in_any_order(toml):
    path = toml("seed = 5\nresume = true\n[ppo]\nlr = 1\nwarmup = 7\n")
    for argv in (["--config", path, "--ppo.warmup", "8"], ["--ppo.warmup=8", f"--config={path}"]):
        assert parse(*argv) == {"job": Common(seed=5, resume=True), "ppo": PPO(lr=1.0, warmup=8)}


def test_argv_none_takes_the_words_of_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo.py", "--seed", "4"])
    assert parse_settings({"job": Common}, description="")["job"].seed == 4


# Other defaults for one program


def test_a_program_can_have_other_defaults_and_nothing_else_changes():
    changed = with_defaults(PPO, lr=1, betas=(0.5, 0.6), clip_high=None)
    assert changed() == changed(lr=1.0, betas=(0.5, 0.6), clip_high=None) and isinstance(changed(), PPO)
    assert vars(changed()) == vars(PPO(lr=1.0, betas=(0.5, 0.6), clip_high=None)) and type(changed().lr) is float
    assert list(vars(changed())) == list(vars(PPO()))  # the order of the fields
    assert PPO().lr == 3e-4
    assert get_type_hints(changed) == get_type_hints(PPO) and field_help(changed) == field_help(PPO)
    assert repr(changed()).partition("(")[2] == repr(PPO(lr=1.0, betas=(0.5, 0.6), clip_high=None)).partition("(")[2]
    with pytest.raises(FrozenInstanceError):
        changed().lr = 2.0
    with pytest.raises(ValueError, match=r"^PPO: warmup must be at least 0, got -1\.$"):
        changed(warmup=-1)


def test_the_file_and_flags_override_other_defaults_and_help_shows_them(toml):
    sections = {"job": with_defaults(Common, seed=7), "ppo": with_defaults(PPO, warmup=3, lr=0.5)}
    path = toml("[ppo]\nwarmup = 4\n")
    built = parse_settings(sections, ["--config", path, "--ppo.clip_eps", "0.1"], description="")
    assert vars(built["job"]) == vars(Common(seed=7))
    assert vars(built["ppo"]) == vars(PPO(warmup=4, lr=0.5, clip_eps=0.1))
    lines = [" ".join(line.split()) for line in help_text(sections, "").splitlines()]
    assert "--seed 7 all randomness follows from it" in lines and "--ppo.warmup 3 [updates] linear" in lines


def test_other_defaults_are_written_and_read_back(toml):
    sections = {"ppo": with_defaults(PPO, clip_high=None, stop=("a", "b"))}
    built = parse_settings(sections, ["--ppo.clip_high", "0.4"], description="")
    assert parse_settings(sections, ["--config", toml(settings_to_toml(built))], description="") == built


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({"clip_epz": 1.0}, "PPO: no field 'clip_epz'; the nearest is clip_eps."),
        ({"warmup": 1.5}, "PPO: warmup: needed an integer, got 1.5; see --help."),
        ({"kl": "k2"}, "PPO: kl: needed one of k1, k3, got 'k2'; see --help."),
    ],
)
def test_other_defaults_that_do_not_fit_are_refused(defaults, text):
    with pytest.raises(InputError) as caught:
        with_defaults(PPO, **defaults)
    assert str(caught.value) == text


# Accepted values


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--ppo.lr", "1e-3"], "lr", 1e-3),
        (["--ppo.lr", "-2"], "lr", -2.0),
        (["--ppo.lr=-2"], "lr", -2.0),
        (["--ppo.warmup", "10_000"], "warmup", 10_000),
        (["--ppo.clip_high", "none"], "clip_high", None),
        (["--ppo.clip_high", "1"], "clip_high", 1.0),
        (["--ppo.kl", "k3"], "kl", "k3"),
        (["--ppo.stop_token", "eos"], "stop_token", "eos"),
        (["--ppo.stop_token", "-7"], "stop_token", -7),
        (["--ppo.stop_token", "none"], "stop_token", None),
        (["--ppo.betas", "0,-.5"], "betas", (0.0, -0.5)),
        (["--ppo.stop", " a,b=c"], "stop", (" a", "b=c")),
        (["--ppo.stop=--,-"], "stop", ("--", "-")),
        (["--ppo.stop="], "stop", ()),
        (["--ppo.layers", "3"], "layers", [3]),
        (["--ppo.adapter", "a b"], "adapter", Path("a b")),
        (["--ppo.whiten", "false"], "whiten", False),
        (["--ppo.whiten"], "whiten", True),
    ],
)
def test_flag_values(argv, name, value):
    got = getattr(ppo(*argv), name)
    assert got == value and type(got) is type(value)


def test_a_lone_bool_does_not_swallow_the_next_flag():
    assert parse("--resume", "--seed", "3")["job"] == Common(seed=3, resume=True)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr = 1", "lr", 1.0),
        ("betas = [1, 0.5]", "betas", (1.0, 0.5)),
        ("layers = 3", "layers", [3]),
        ('clip_high = "none"', "clip_high", None),
        ("stop_token = 3", "stop_token", 3),
        ('stop = ["a,b"]', "stop", ("a,b",)),
    ],
)
def test_toml_values(toml, text, name, value):
    got = getattr(ppo("--config", toml(f"[ppo]\n{text}")), name)
    assert got == value and type(got) is type(value)


# Refusals and their texts


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("--ppo.clip_epz .1", "command line: no setting '--ppo.clip_epz'; the nearest is --ppo.clip_eps; see --help."),
        ("--clip_eps .1", "command line: no setting '--clip_eps'; the nearest is --ppo.clip_eps; see --help."),
        ("--ppo.clip-epz=.1", "command line: no setting '--ppo.clip-epz'; the nearest is --ppo.clip_eps; see --help."),
        ("--dpo.warmup 1", "command line: no setting '--dpo.warmup'; the nearest is --ppo.warmup; see --help."),
        ("-seed 3", "command line: no setting '-seed'; the nearest is --seed; see --help."),
        ("--confg x", "command line: no setting '--confg'; the nearest is --config; see --help."),
        ("seed 3", "command line: needed --name value, got 'seed' alone; see --help."),
        ("--seed 1 2", "command line: needed --name value, got '2' alone; see --help."),
        ("--seed", "--seed: needed an integer, got no value; give a value, or see --help."),
        ("--output --seed 3", "--output: needed text or none, got no value; give a value, or see --help."),
        ("--seed 1 --seed=2", "--seed: needed once, got a second time with '2'; keep one of the two."),
        ("--seed 1.0", "--seed: needed an integer, got '1.0'; see --help."),
        ("--seed true", "--seed: needed an integer, got 'true'; see --help."),
        ("--seed=", "--seed: needed an integer, got ''; see --help."),
        ("--seed none", "--seed: needed an integer, got 'none'; see --help."),
        ("--resume 1", "--resume: needed true or false, got '1'; see --help."),
        ("--ppo.lr fast", "--ppo.lr: needed a number, got 'fast'; see --help."),
        ("--ppo.clip_high x", "--ppo.clip_high: needed a number or none, got 'x'; see --help."),
        ("--ppo.kl k2", "--ppo.kl: needed one of k1, k3, got 'k2'; see --help."),
        ("--ppo.stop_token x", "--ppo.stop_token: needed one of eos or an integer or none, got 'x'; see --help."),
        ("--ppo.betas 1", "--ppo.betas: needed a list of 2 (a number, a number), got '1'; see --help."),
        ("--ppo.layers 1,x", "--ppo.layers: needed a list (each an integer), got '1,x'; see --help."),
        ("--ppo.warmup -1", "PPO: warmup must be at least 0, got -1."),
    ],
)
def test_refused_flags(argv, text):
    assert refusal(*argv.split(" ")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "no setting 'sed'; the nearest is seed; see --help."),
        ("config = 'x'", "no setting 'config'; see --help."),
        ("[ppo]\nclip_epz = 1", "no setting 'ppo.clip_epz'; the nearest is ppo.clip_eps; see --help."),
        ("clip_eps = 1", "no setting 'clip_eps'; the nearest is ppo.clip_eps; see --help."),
        ("[pp0]\nlr = 1", "no table 'pp0'; the nearest is [ppo]; see --help."),
        ("ppo = 1", "no setting 'ppo'; the nearest is [ppo]; see --help."),
        ("[ppo.optimizer]\nlr = 1", "no table 'ppo.optimizer'; see --help."),
        ("seed = true", "seed: needed an integer, got True; see --help."),
        ("seed = 1.0", "seed: needed an integer, got 1.0; see --help."),
        ("resume = 1", "resume: needed true or false, got 1; see --help."),
        ("[seed]\nx = 1", "seed: needed an integer, got {'x': 1}; see --help."),
        ("[ppo]\nlr = true", "ppo.lr: needed a number, got True; see --help."),
        ("[ppo]\nlr = '1'", "ppo.lr: needed a number, got '1'; see --help."),
        (f"[ppo]\nlr = 1{'0' * 400}", "ppo.lr: needed a number, got 0x"),
        ("[ppo]\nlayers = true", "ppo.layers: needed a list (each an integer), got True; see --help."),
        ("[ppo]\nlayers = 0.5", "ppo.layers: needed a list (each an integer), got 0.5; see --help."),
        ("[ppo]\nbetas = 0.5", "ppo.betas: needed a list of 2 (a number, a number), got 0.5; see --help."),
        ("[ppo]\nlayers = '1'", "ppo.layers: needed a list (each an integer), got '1'; see --help."),
        ("[ppo]\nlayers = [{}]", "ppo.layers: needed a list (each an integer), got [{}]; see --help."),
        ("[ppo]\nbetas = [1, 2, 3]", "ppo.betas: needed a list of 2 (a number, a number), got [1, 2, 3]; see --help."),
        ("[ppo]\nkl = 1979-05-27", "ppo.kl: needed one of k1, k3, got datetime.date(1979, 5, 27); see --help."),
        ("[ppo]\nadapter = 3", "ppo.adapter: needed a path or none, got 3; see --help."),
    ],
)
def test_refused_toml(toml, text, message):
    path = toml(text)
    assert refusal("--config", path).startswith(f"{path}: {message}")


def test_a_flag_does_not_excuse_a_bad_value_in_the_file(toml):
    assert "needed an integer, got True" in refusal("--seed", "1", "--config", toml("seed = true"))


def test_broken_files_are_named_with_the_line(toml, tmp_path):
    missing = tmp_path / "none.toml"
    assert refusal("--config", str(missing)) == (
        f"--config {missing}: needed a TOML file, got: No such file or directory; check the path."
    )
    assert "Is a directory" in refusal("--config", str(tmp_path))
    path = toml("seed = 1\nseed ==\n")
    message = (
        f"--config {path}: needed valid TOML in UTF-8, got: Invalid value (at line 2, column 7); correct the file."
    )
    assert refusal("--config", path) == message
    assert "needed valid TOML in UTF-8, got: 'utf-8' codec" in refusal("--config", toml(b"output = '\xff'"))


def test_a_missing_required_setting_is_named():
    with pytest.raises(InputError, match=r"^--data: needed text, got nothing; give a value, or see --help\.$"):
        parse_settings({"job": Required}, [], description="")
    assert parse_settings({"job": Required}, ["--data", "x"], description="")["job"] == Required("x")


# Help


def test_help_comes_from_the_comments_of_the_class_and_its_bases():
    notes = field_help(PPO)
    assert notes["lr"] == ("1/step", "peak learning rate; the schedule multiplies it")
    assert notes["betas"] == ("", "decay of the two moments")
    assert notes["stop"] == ("", "strings that end a completion")
    assert set(PPO.__dataclass_fields__) - set(notes) == {"undocumented"}
    assert list(notes)[:4] == ["lr", "betas", "warmup", "clip_eps"]


@dataclass(frozen=True)
class Awkward:
    """A docstring with a line like a field:

    sign: str = "!"  # [-] not the comment
    """

    sign: str = "#"  # [letter] begins a comment [in Python]
    both: str = "a # [b] c"  # [text] holds a comment's
    #                               beginning
    table: tuple[str, ...] = field(
        default=("[", "#"),
    )  # [-] closes brackets
    # below a closing bracket

    # not about the table
    plain: str = "# [x]"
    after: int = 1  # [-] follows a field without help

    def method(
        self,
    ) -> None:  # [-] not about a field
        self.sign: int  # [-] not a field


def test_comments_of_fields_are_found_beside_signs_brackets_and_methods():
    assert field_help(Awkward) == {
        "sign": ("letter", "begins a comment [in Python]"),
        "both": ("text", "holds a comment's beginning"),
        "table": ("", "closes brackets below a closing bracket"),
        "after": ("", "follows a field without help"),
    }


@pytest.mark.parametrize("argv", [["--help", "all"], ["-h", "all"], ["--help=all"], ["--bad", "1", "--help", "all"]])
def test_help_is_an_aligned_table_on_stdout_and_exits_0(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "86")
    with pytest.raises(SystemExit) as caught:
        parse_settings(SECTIONS, argv, description="Train a policy.", epilogue="Read docs/ppo.md.")
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert not err
    assert out == HELP


HELP = r"""Train a policy.

common settings
  --config            none                  TOML or YAML file; flags override it
  --output            none                  folder of the run
  --seed              0                     all randomness follows from it
  --resume            false                 go on with the run in --output

[ppo]
  --ppo.lr            0.0003     [1/step]   peak learning rate; the schedule
                                            multiplies it
  --ppo.betas         0.9,0.999             decay of the two moments
  --ppo.warmup        10         [updates]  linear
  --ppo.clip_eps      0.2        [ratio]    half-width of the trust region
  --ppo.clip_high     0.3        [ratio]    none: as clip_eps
  --ppo.kl            k1                    estimator (one of k1, k3)
  --ppo.stop_token    eos                   ends a completion (one of eos or an
                                            integer or none)
  --ppo.stop          $'\n\nHuman:,it\'s so'             strings that end a completion
  --ppo.layers        1,2                   which
  --ppo.adapter       none                  folder
  --ppo.whiten        true                  advantages
  --ppo.undocumented  0

Read docs/ppo.md.
"""


def test_only_rank_0_prints_the_help(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse("--help")
    assert not capsys.readouterr().out


def test_a_default_shown_by_help_means_the_default_when_typed_in_a_shell():
    shown = r"$'\n\nHuman:,it\'s so'"
    typed = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, text=True, check=True).stdout
    assert ppo("--ppo.stop", typed) == PPO()


# Round trip

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
whole = st.integers(1 - 2**63, 2**63 - 1)
numbers = st.floats(-9e18, 9e18)
some_ppo = st.builds(
    PPO,
    lr=numbers,
    betas=st.tuples(numbers, numbers),
    warmup=st.integers(0, 2**63 - 1),
    clip_high=st.none() | numbers,
    kl=st.sampled_from(["k1", "k3"]),
    stop_token=st.none() | st.just("eos") | whole,
    stop=st.lists(texts).map(tuple),
    layers=st.lists(whole),
    adapter=st.none() | st.just(Path("a/b")),
    whiten=st.booleans(),
)
some_common = st.builds(Common, output=st.none() | texts.filter(lambda text: text != "none"), seed=whole)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(common=some_common, stage=some_ppo)
def test_written_settings_read_back_equal(tmp_path_factory, common, stage):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    settings = {"ppo": stage, "job": common}  # top-level keys are written first in any order
    path.write_text(settings_to_toml(settings), encoding="utf-8")
    assert parse("--config", str(path)) == settings


def test_written_settings_as_text():
    text = settings_to_toml({"job": Common(output='a "b"\n'), "ppo": PPO(clip_high=None, lr=1e18)})
    assert text.startswith(
        'output = "a \\"b\\"\\n"\nseed = 0\nresume = false\n\n[ppo]\nlr = 1e+18\nbetas = [0.9, 0.999]'
    )
    assert 'clip_high = "none"\n' in text  # its default is not None; the default of adapter is None, so it is left out
    assert "adapter" not in text


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (["--ppo.lr", "nan"], "[ppo]\nlr = nan"),
        (["--ppo.clip_high", "nan"], "[ppo]\nclip_high = nan"),
        (["--seed", str(2**63)], f"seed = {2**63}"),
        (["--seed", "9" * 5000], "seed = 0x" + "f" * 5000),
        (["--seed", "9" * 5000], "seed = " + "9" * 5000),
        (["--ppo.layers", f"1,{-(2**63)}"], f"[ppo]\nlayers = [1, {-(2**63)}]"),
        (["--output", "a\0b"], 'output = "a\\u0000b"'),
        (["--ppo.adapter", "a\0b"], "[ppo]\nadapter = 'x'\n'lr\x1b' = 1"),
        (["--seed", "\x1b[2J\udcff" + "a" * 100_000], "seed = '" + "a" * 100_000 + "'"),
        (["--\x1b[2J\udcff" + "a" * 100_000, "1"], "'" + "a" * 100_000 + "' = 1"),
        (["a" * 100_000], "seed = " + "[" * 5000),
        (["--seed", "[[1]]"], "seed = " + "[" * 90 + "]" * 90),
        (["--seed", "{}"], "seed = " + "{x=" * 90 + "1" + "}" * 90),
        (["--ppo.lr", "1,2"], "'ppo.lr' = 1\n[ppo]\nlr = 2"),
    ],
    ids=range(14),
)
def test_a_value_that_nothing_can_use_is_refused_in_one_printable_line(toml, flags, file):
    for argv in (flags, ["--config", toml(file)]):
        message = refusal(*argv)
        assert message.isprintable() and len(message) < 500, argv[:1]


def test_a_byte_order_mark_at_the_beginning_of_a_file_is_no_fault(toml):
    assert parse("--config", toml(b"\xef\xbb\xbfseed = 3\n"))["job"].seed == 3


@pytest.mark.parametrize(
    "values",
    [{"output": "none"}, {"output": "\ud800"}, {"output": "\0"}, {"seed": 2**63}, {"seed": None}, {"seed": True}],
)
def test_a_value_that_would_not_read_back_is_refused(values):
    with pytest.raises(InputError, match=r"^(output|seed): needed a value that TOML can give back, got .*; choose"):
        settings_to_toml({"job": Common(**values)})


def test_hyphens_and_underscores_in_flags_are_the_same():
    assert ppo("--ppo.clip-eps", "0.1") == ppo("--ppo.clip_eps", "0.1") == PPO(clip_eps=0.1)


def test_a_tilde_at_the_beginning_of_a_path_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("--output=~/runs")["job"].output == f"{tmp_path}/runs"
    assert parse("--ppo.stop=a,~/b,c=~/d,e~/f,~")["ppo"].stop == (
        "a",
        f"{tmp_path}/b",
        f"c={tmp_path}/d",
        "e~/f",
        str(tmp_path),
    )
    (tmp_path / "a.toml").write_text('output = "~/x,~/y"\n')
    assert parse("--config=~/a.toml")["job"].output == f"{tmp_path}/x,{tmp_path}/y"
