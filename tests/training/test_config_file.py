"""The file of --config: TOML or YAML; one file may serve several programs and commands."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from minirlhf.cli.check import COMMANDS
from minirlhf.cli.train import PROGRAMS
from minirlhf.errors import InputError
from minirlhf.jobs.data_flags import with_data_flags
from minirlhf.jobs.settings import JobConfig, sections
from minirlhf.training.config_file import KEYS, TABLES, read_document
from minirlhf.training.fields import fields_of
from minirlhf.training.settings import parse_settings


@dataclass(frozen=True)
class Top:
    seed: int = 0
    data: str | None = "rows"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SFT:
    lr: float = 1.0
    fused: bool = False


@dataclass(frozen=True)
class Split:
    table: ClassVar[str] = "split"
    ratio: float = 0.8
    seed: int = 0


def parse(path, text, *flags, classes=None):
    path.write_text(text)
    return parse_settings(classes or {"job": Top, "sft": SFT}, ["--config", str(path), *flags], description="")


def test_yaml_means_what_toml_means(tmp_path):
    toml = parse(tmp_path / "a.toml", 'seed = 3\ndata = "none"\nnames = ["a", "b"]\n[sft]\nlr = 1e-3\nfused = true\n')
    yaml = parse(tmp_path / "a.yaml", "seed: 3\ndata: null\nnames: [a, b]\nsft:\n  lr: 1e-3\n  fused: true\n")
    assert yaml == toml == {"job": Top(3, None, ("a", "b")), "sft": SFT(1e-3, True)}
    assert parse(tmp_path / "a.yml", "sft: {lr: 2}\n", "--sft.lr", "3")["sft"].lr == 3.0
    assert parse(tmp_path / "empty.yaml", "# nothing\n")["job"] == Top()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("seed: 1\nseed: 2\n", "line 2: 'seed' stands twice"),
        ("sft:\n  lr: 1\n  lr: 2\n", "line 3: 'lr' stands twice"),
        ("seed: [1\n", "needed valid YAML"),
        ("- seed\n", "needed tables and keys"),
        ("1: 2\n", "needed names that are text"),
        ("? [a, b]\n: 1\n", "needed names that are text"),
        ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("seed: 2020-01-01\n", "seed: needed an integer"),
        ("sft: {lr: fast}\n", "sft.lr: needed a number"),
        ("sft: {lrr: 1}\n", "no setting 'sft.lrr'; the nearest is sft.lr"),
        ("a: " + "[" * 1500, "nested too deep"),
        ("a: &a [*a]\n", "no setting 'a'"),
    ],
)
def test_bad_yaml_is_refused_in_a_line(tmp_path, text, why):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        parse(tmp_path / "a.yaml", text)
    assert why in str(error.value)


def test_without_pyyaml_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InputError, match="needs the package PyYAML, which is not installed; pip install pyyaml"):
        parse(tmp_path / "a.yaml", "seed: 1\n")


def test_settings_of_other_programs_are_named_as_not_read(tmp_path, capsys):
    text = 'program = "ppo"\nseed = 1\nstop_sft_at = 0.3\n[sft]\nlr = 2\n[ppo]\nlr = 3\n[split]\nratio = 0.5\n'
    assert parse(tmp_path / "j.toml", text) == {"job": Top(seed=1), "sft": SFT(lr=2.0)}
    line = (
        f"{tmp_path / 'j.toml'}: not read here, because other programs have these settings: stop_sft_at, [ppo], [split]"
    )
    assert capsys.readouterr().out == line + "\n"
    for unknown, near in (
        ("[sftt]\nlr = 1\n", "no table 'sftt'; the nearest is [sft]"),
        ("ppo = 3\n", "no setting 'ppo'"),
    ):
        with pytest.raises(InputError) as error:
            parse(tmp_path / "j.toml", unknown)
        assert near in str(error.value)


def test_a_command_reads_its_own_table_alone_if_the_file_has_it(tmp_path, capsys):
    classes = {"job": Split}
    text = "seed = 1\n[sft]\nlr = 2\n[split]\nratio = 0.5\n"
    assert parse(tmp_path / "j.toml", text, classes=classes)["job"] == Split(ratio=0.5)
    assert parse(tmp_path / "k.toml", "seed = 1\n", classes=classes)["job"] == Split(seed=1)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"\[split\]: no setting 'ratoi'; the nearest is ratio"):
        parse(tmp_path / "j.toml", "[split]\nratoi = 0.5\n", classes=classes)
    with pytest.raises(InputError, match=r"\[split\]: ratio: needed a number, got 'half'"):
        parse(tmp_path / "j.toml", "[split]\nratio = 'half'\n", classes=classes)


def test_the_known_tables_and_keys_are_those_of_all_programs():
    tables, keys = set(), set()
    for name, program in PROGRAMS.items():
        options = {key: value for key, value in program.options.items() if key in ("job", "after", "adapters")}
        classes = sections(program.options.get("section", name), program.config, **options)
        tables |= {*classes} - {"job"}
        keys |= {field for field, _, _ in fields_of("job", classes["job"])}
    assert tables | {*COMMANDS} == {*TABLES}
    assert keys - {name for name, _, _ in fields_of("job", with_data_flags(JobConfig))} == {*KEYS}


def test_a_document_is_read_whole(tmp_path):
    (tmp_path / "a.toml").write_text('program = "ppo"\n[x]\ny = 1\n')
    assert read_document(str(tmp_path / "a.toml")) == {"program": "ppo", "x": {"y": 1}}
    with pytest.raises(InputError, match="needed a YAML file, got: No such file"):
        read_document(str(tmp_path / "b.yaml"))
