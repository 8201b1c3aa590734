"""page.html in the folder of a job, made when the job ends."""

from types import SimpleNamespace

import pytest

from minirlhf.jobs.pictures import pictured

from ..seeing.made import make_pipeline


def test_the_page_is_made_at_the_end_also_after_an_error(tmp_path, capsys):
    job = SimpleNamespace(folder=make_pipeline(tmp_path / "job"))
    with pytest.raises(SystemExit), pictured(job):
        raise SystemExit(143)
    assert (tmp_path / "job" / "page.html").stat().st_size > 10_000
    assert capsys.readouterr().out == f"curves and samples: {tmp_path / 'job' / 'page.html'}\n"


def test_a_job_without_a_step_has_no_page(tmp_path, capsys):
    with pictured(SimpleNamespace(folder=tmp_path)):
        pass
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").touch()
    with pictured(SimpleNamespace(folder=tmp_path)):
        pass
    assert not (tmp_path / "page.html").exists() and capsys.readouterr().out == ""


def test_a_page_that_cannot_be_made_ends_no_job(tmp_path, capsys):
    job = SimpleNamespace(folder=make_pipeline(tmp_path / "job"))
    (job.folder / "page.html").write_text("of the user")
    with pictured(job):
        pass
    assert (job.folder / "page.html").read_text() == "of the user"
    assert capsys.readouterr().out.startswith("no page about this job: InputError: ")
