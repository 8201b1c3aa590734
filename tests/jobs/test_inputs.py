"""inputs.json: a job goes on with the files that it began with, and with no others."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minirlhf import manifest
from minirlhf.errors import InputError
from minirlhf.jobs.inputs import INPUTS, fingerprints, keep_inputs
from minirlhf.manifest import write_manifest
from minirlhf.rewards.functions import import_file


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Files of every kind that settings can name, and the settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "held.jsonl", "chat.jsonl", "sft.jsonl", "more/a.jsonl", "more/b.jsonl", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    for name in ("policy", "value", "reward"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "beside.py").write_text("WORD = 'a'\n")
    (tmp_path / "my.py").write_text("from beside import WORD\n\ndef score(completions):\n    return [1.0]\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    import_file(tmp_path / "my.py")
    job = SimpleNamespace(
        data="rows.jsonl,more",
        held_out="held.jsonl",
        validation=("chat=chat.jsonl",),
        policy="policy",
        value="value",
        reward="reward,my.py:score,exact_match",
        gold="my.py:score",
    )
    yield {"job": job, "sft": SimpleNamespace(data="sft.jsonl"), "ppo": SimpleNamespace(data=None)}
    for name in ("beside", str(tmp_path / "my.py")):
        sys.modules.pop(name, None)


FOLDER = ["config.json", "manifest.json"]
FILES = ["rows.jsonl", "held.jsonl", "chat.jsonl", "sft.jsonl", "more/a.jsonl", "my.py", "beside.py"]
FILES += ["policy/model.safetensors", "policy/config.json", "value/model.safetensors", "reward/config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_changed_is_named(inputs, tmp_path, name):
    keep_inputs(tmp_path / "job", fingerprints(inputs))
    written = (tmp_path / "job" / INPUTS).read_bytes()
    keep_inputs(tmp_path / "job", fingerprints(inputs))  # unchanged
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        keep_inputs(tmp_path / "job", fingerprints(inputs))
    assert str(caught.value).startswith(f"{name}: has changed since the job in {tmp_path / 'job'} began (sha256 ")
    assert (tmp_path / "job" / INPUTS).read_bytes() == written


def test_every_file_has_its_size_and_checksum_and_no_other_file_is_read(inputs, tmp_path):
    found = fingerprints(inputs)
    assert {name for name, each in found.items() if "sha256" in each} == {
        *(FILES + ["more/b.jsonl", "policy/config.json", "value/config.json", "reward/model.safetensors"])
    }
    assert all(each["size"] == (tmp_path / name).stat().st_size for name, each in found.items() if "size" in each)
    assert found["more"] == {"files": ["more/a.jsonl", "more/b.jsonl"]}


def test_a_rank_takes_the_checksums_of_the_rank_that_has_read_the_files(inputs, monkeypatch):
    heard = []
    monkeypatch.setattr("minirlhf.jobs.inputs.gather", lambda x: heard.append(x) or [x])
    expected = fingerprints(inputs)
    monkeypatch.setattr(manifest, "KNOWN", {})
    monkeypatch.setattr("minirlhf.jobs.inputs.KNOWN", manifest.KNOWN)
    monkeypatch.setattr(manifest, "checksum", lambda path: pytest.fail(f"{path} is read"))
    monkeypatch.setattr("minirlhf.jobs.inputs.rank", lambda: 1)
    answers = iter(heard)
    monkeypatch.setattr("minirlhf.jobs.inputs.gather", lambda x: [next(answers), x])
    assert fingerprints(inputs) == expected
    for name in FILES:  # as the check of a model folder does
        assert manifest.checksum_once(Path(name)) == expected[name]["sha256"]


def test_a_run_may_give_both_the_policy_and_the_value_model(inputs):
    for folder in ("run/model", "run/checkpoints/step-3/value"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")
        write_manifest(Path(folder))
    write_manifest(Path("run/checkpoints/step-3"))
    inputs["job"].policy = inputs["job"].value = "run"
    files = [f"run/{folder}/{file}" for folder in ("checkpoints/step-3/value", "model") for file in FOLDER]
    assert fingerprints(inputs)["run"] == {"files": files}


def test_a_folder_with_more_or_fewer_files_is_named(inputs, tmp_path):
    keep_inputs(tmp_path / "job", fingerprints(inputs))
    (tmp_path / "more/c.jsonl").touch()
    with pytest.raises(InputError, match="^more: has changed since .* began .more/c.jsonl is new"):
        keep_inputs(tmp_path / "job", fingerprints(inputs))
    (tmp_path / "more/c.jsonl").unlink()
    (tmp_path / "more/a.jsonl").unlink()
    with pytest.raises(InputError, match="^more: has changed since .* began .more/a.jsonl is gone"):
        keep_inputs(tmp_path / "job", fingerprints(inputs))


def test_a_later_stage_may_name_another_file(inputs, tmp_path):
    keep_inputs(tmp_path / "job", fingerprints(inputs))
    inputs["job"].reward, inputs["job"].gold = "reward", None
    inputs["ppo"].data = "readme.md"
    keep_inputs(tmp_path / "job", fingerprints(inputs))
    known = json.loads((tmp_path / "job" / INPUTS).read_text())
    assert "readme.md" in known and "my.py" in known  # the first stage began with it
    (tmp_path / "readme.md").write_text("changed")
    with pytest.raises(InputError, match="^readme.md: has changed"):
        keep_inputs(tmp_path / "job", fingerprints(inputs))


def test_a_job_of_an_earlier_version_goes_on_and_says_so(inputs, tmp_path, capsys):
    (tmp_path / "job/sft").mkdir(parents=True)
    (tmp_path / "job/sft/config.toml").touch()
    keep_inputs(tmp_path / "job", fingerprints(inputs))
    assert "files that have changed since the job began are not noticed" in capsys.readouterr().out
    assert (tmp_path / "job" / INPUTS).exists()


def test_a_job_without_files_says_nothing_about_them(tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/config.toml").touch()
    keep_inputs(tmp_path, {})
    assert capsys.readouterr().out == "" and not (tmp_path / "inputs.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows.jsonl": 3}', '{"more": {"files": 3}}'])
def test_a_damaged_list_of_inputs_is_named(inputs, tmp_path, text):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / INPUTS).write_text(text)
    with pytest.raises(InputError, match=f"^({tmp_path / 'job' / INPUTS}: needed|rows.jsonl: has ch|more: has ch)"):
        keep_inputs(tmp_path / "job", fingerprints(inputs))


def test_standard_input_and_names_of_the_hub_are_no_files():
    job = SimpleNamespace(data="-,hub:maker/rows", policy="maker/small", reward="exact_match")
    assert fingerprints({"job": job}) == {}
