"""page.html in the folder of a job, made when the job ends."""

import json
from types import SimpleNamespace

import pytest

from minirlhf.jobs import pictures
from minirlhf.jobs.pictures import pictured

from ..seeing.made import make_pipeline


@pytest.fixture(autouse=True)
def rough_seconds(monkeypatch):
    monkeypatch.setattr(pictures, "seconds_of_stages", lambda job, after: {"sft": 1.5})


def test_the_page_is_made_at_the_end_also_after_an_error(tmp_path, capsys):
    job = SimpleNamespace(folder=make_pipeline(tmp_path / "job"))
    with pytest.raises(SystemExit), pictured(job, ()):
        raise SystemExit(143)
    assert (tmp_path / "job" / "page.html").stat().st_size > 10_000
    assert capsys.readouterr().out == f"curves and samples: {tmp_path / 'job' / 'page.html'}\n"


def test_a_job_without_a_step_has_no_page(tmp_path, capsys):
    with pictured(SimpleNamespace(folder=tmp_path), ()):
        pass
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").touch()
    with pictured(SimpleNamespace(folder=tmp_path), ()):
        pass
    assert not (tmp_path / "page.html").exists() and capsys.readouterr().out == ""


def test_a_page_that_cannot_be_made_ends_no_job(tmp_path, capsys):
    job = SimpleNamespace(folder=make_pipeline(tmp_path / "job"))
    (job.folder / "page.html").write_text("of the user")
    with pictured(job, ()):
        pass
    assert (job.folder / "page.html").read_text() == "of the user"
    assert capsys.readouterr().out.startswith("no page about this job: InputError: ")


def test_the_stages_are_announced_also_if_their_times_are_not_known(tmp_path, capsys, monkeypatch):
    with pictured(SimpleNamespace(folder=tmp_path), ()):
        assert json.loads((tmp_path / "stages.json").read_text()) == {"sft": 1.5}

    def fails(job, after):
        raise KeyError("no such stage")

    monkeypatch.setattr(pictures, "seconds_of_stages", fails)
    monkeypatch.setattr(pictures, "stages_of", lambda job, after: ["sft"])
    monkeypatch.setattr(pictures, "own_stage", lambda job: "ppo")
    with pictured(SimpleNamespace(folder=tmp_path), ("sft",)):
        assert json.loads((tmp_path / "stages.json").read_text()) == {"sft": None, "ppo": None}
    assert capsys.readouterr().out == "the time left of later stages is not known: KeyError: 'no such stage'\n"
