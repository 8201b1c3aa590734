"""The page about runs: its data, its sentences, its bounds. test_browser.py opens it."""

import json
import re
import time
from pathlib import Path

import pytest

from minirlhf.cli.run import main
from minirlhf.errors import InputError
from minirlhf.rollout.samples import LISTS
from minirlhf.seeing import page
from minirlhf.seeing.page import TEMPLATE, names_of, page_of, plain, write_page
from minirlhf.seeing.reading import read_job
from minirlhf.seeing.story import duration, number, sentences

from ..html import data_of
from .made import lines, make_pipeline, make_run

STRANGE = {
    "</script><script>document.title = 'taken'</script>": "<img src=x onerror=document.title=1> &amp; <b>x</b>",
    "a NUL \0, an escape \x1b[31m and half a pair \ud800": "\u2028 \u202e <!-- ]]>",
    "如何学习强化学习？": "先读论文。\n\n再写代码。",
    "كيف حالك؟": "x" * 5000,
    "an empty answer": "",
}


def drawn(*folders):
    return data_of(page_of([read_job(folder) for folder in folders]))


def test_the_page_loads_nothing_from_anywhere():
    html = TEMPLATE.read_text(encoding="utf-8")
    assert "default-src 'none'" in html and html.count("{{data}}") == 1
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", html
    )
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", html)


def test_a_pipeline_stands_on_one_page_in_three_sentences(tmp_path):
    data = drawn(make_pipeline(tmp_path / "job"))
    assert data["stages"] == ["sft", "reward_model", "ppo"] and [run["stage"] for run in data["runs"]] == [0, 1, 2]
    assert [run["label"] for run in data["runs"]] == ["job sft", "job reward", "job ppo"]
    (job,) = data["jobs"]
    assert job["story"] == [
        "sft (20 steps), reward (20 steps) and ppo (20 steps) ran in 30 s; all of it finished.",
        "On held-out prompts the gold reward rose from -0.250 to 0.750.",
        "In the training batches of ppo, the KL to the reference rose from 0.100 to 2.000 nats.",
    ]
    assert job["measures"] == [["gold_reward", -0.25, 0.75]] and job["rest"] == {"seconds": 30.0, "kl": 2.0}


def test_the_doctor_s_findings_stand_on_the_page_with_links_into_the_docs(tmp_path):
    folder = make_run(tmp_path / "ppo", steps=1)
    lines(folder / "metrics.jsonl", [{"step": k, "clip_fraction": 0.5} for k in range(9)])
    write_page([folder], tmp_path / "my page.html")
    data = data_of((tmp_path / "my page.html").read_text(encoding="utf-8"))
    evidence = "in the last 5 steps the clip took the gradient from 50% of the tokens"
    found = ["ppo", 5, "the clip acts on too many tokens", evidence, "lower lr or epochs"]
    assert data["jobs"][0]["findings"] == [[*found, "docs/metrics.md#clip_fraction"]]
    assert (tmp_path / data["docs"] / "docs/metrics.md").is_file() and not data["docs"].startswith("/")
    assert drawn(folder)["docs"] is None


def test_an_unfinished_run_without_a_summary_tells_its_own_evaluations(tmp_path):
    folder = make_run(tmp_path / "ppo", steps=20, planned=50, finished=False)
    assert sentences(read_job(folder))[:2] == [
        "ppo (20 of 50 steps) ran in 10 s; ppo has not finished.",
        "On held-out rows the gold reward of ppo rose from 0.050 to 0.200; the best was 0.200 at step 20.",
    ]


def test_durations_and_numbers_read_well():
    assert [duration(x) for x in (0.4, 48, 59.9, 176, 3600, 11_100)] == [
        "0 s", "48 s", "60 s", "2 min 56 s", "1 h 0 min", "3 h 5 min"
    ]  # fmt: skip
    assert [number(x) for x in (7.9e-07, -0.25, 99.5, 1234.5, -2e12)] == [
        "0.000", "-0.250", "99.500", "1,234", "-2.000e+12"
    ]  # fmt: skip


def test_curves_hold_steps_values_and_ranges(tmp_path):
    run = drawn(make_run(tmp_path / "ppo", steps=20))["runs"][0]
    assert run["metrics"]["kl"] == {"x": list(range(1, 21)), "y": [k / 10 for k in range(1, 21)]}
    assert run["metrics"]["eval/gold_reward"]["x"] == [5, 10, 15, 20]
    run = drawn(make_run(tmp_path / "long", steps=1001))["runs"][0]
    kl = run["metrics"]["kl"]
    assert len(kl["x"]) == 501 and kl["y"][0] == 0.15 and (kl["low"][0], kl["high"][0]) == (0.1, 0.2)


def test_the_settings_of_two_runs_are_compared(tmp_path):
    data = drawn(make_run(tmp_path / "a/ppo", lr=0.1, clip=0.2), make_run(tmp_path / "b/ppo", lr=0.3, clip=0.2))
    assert data["differences"] == [{"runs": ["a/ppo", "b/ppo"], "settings": {"ppo.lr": [0.1, 0.3]}}]
    assert data["runs"][0]["settings"]["ppo.clip"] == 0.2 and "output" not in data["runs"][0]["settings"]


def test_names_are_the_shortest_that_differ(tmp_path):
    paths = [tmp_path / "x/a/ppo", tmp_path / "x/b/ppo", tmp_path / "y/b/ppo"]
    assert names_of(paths[:1]) == ["ppo"] and names_of(paths[:2]) == ["a/ppo", "b/ppo"]
    assert names_of(paths) == ["x/a/ppo", "x/b/ppo", "y/b/ppo"]
    assert len(names_of(paths[:1] * 2)) == 2  # the same folder twice


def test_texts_of_strangers_stay_texts(tmp_path):
    folder = make_run(tmp_path / "</script><b>", lr=1.0)
    rows = [
        {"step": 0, "prompt": p, "completion": c, "</script>": 1, "score": float("nan")} for p, c in STRANGE.items()
    ]
    lines(folder / "samples.jsonl", rows)
    lines(folder / "metrics.jsonl", [{"step": 0, "</script>": 1.5}])
    (folder / "config.toml").write_text('a = "</script>"\nd = 2020-01-01\nn = nan\n[ppo]\nbig = 9007199254740993\n')
    html = page_of([read_job(folder)])
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("{{data}}")
    inside = html.removeprefix(before).removesuffix(after)
    assert "<" not in inside and "\0" not in inside
    html.encode("utf-8")
    run = data_of(html)["runs"][0]
    first, second, *_, empty = run["samples"][0][1]
    assert first["prompt"] in STRANGE and first["score"] == "nan" and first["</script>"] == 1
    assert second["prompt"] == "a NUL \0, an escape \x1b[31m and half a pair \ufffd"
    assert run["samples"][0][1][3]["completion"] == "x" * 1000 + " [... 3,000 letters ...] " + "x" * 1000
    assert empty["completion"] == "" and run["metrics"]["</script>"]["y"] == [1.5]
    assert run["settings"] == {"a": "</script>", "d": "2020-01-01", "n": "nan", "ppo.big": "9007199254740993"}


def test_the_page_paints_the_lists_that_trainers_write(tmp_path):
    html = TEMPLATE.read_text(encoding="utf-8")
    names = html.partition("const LISTS = [")[2].partition("]")[0]
    assert [name.strip().strip('"') for name in names.split(",")] == list(LISTS)
    paints = html.partition("const PAINTS = {")[2].partition("};")[0]
    assert all(f"row.{name}" in paints for name in LISTS[2:])
    folder, numbers = make_run(tmp_path / "ppo"), {name: [-0.5, None] for name in LISTS[2:]}
    lines(folder / "samples.jsonl", [{"step": 0, "prompt": "p", "completion": "ab", "tokens": ["a", "b"], **numbers}])
    ((_, (row,)),) = drawn(folder)["runs"][0]["samples"]
    assert row["tokens"] == ["a", "b"] and {name: row[name] for name in numbers} == numbers


def test_values_are_cut_to_a_bounded_depth():
    deep = value = []
    for _ in range(50):
        value.append([])
        value = value[0]
    assert "[1 values]" in json.dumps(plain(deep))


def test_many_runs_and_much_text_stay_below_the_bounds_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_POINTS", 1000)
    monkeypatch.setattr(page, "MOST_TEXT", 20_000)
    folders = [make_run(tmp_path / name / "ppo", steps=300) for name in "abc"]
    data = drawn(*folders)
    curves = [curve for run in data["runs"] for part in ("metrics", "timings") for curve in run[part].values()]
    assert 500 < sum(len(curve["x"]) for curve in curves) <= 1000
    assert all(curve["x"][-1] == 300 for curve in curves)
    text = sum(len(json.dumps(run["samples"], separators=(",", ":"))) for run in data["runs"])
    assert 8000 < text <= 20_000 and all(run["samples"][-1][0] == 300 for run in data["runs"])
    assert all("steps fit on the page" in job["notes"][-1] for job in data["jobs"])


def test_the_text_of_a_page_is_bounded_in_bytes_not_in_letters(tmp_path):
    folder = make_run(tmp_path / "ppo", samples=0)
    texts = [
        {"step": k, "prompt": f"{k} {i} " + "学" * 2000, "completion": "习" * 2000} for k in range(48) for i in range(8)
    ]
    lines(folder / "samples.jsonl", texts)
    assert len(page_of([read_job(folder)]).encode()) < 3_000_000


def test_more_than_40_runs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "ppo")
    monkeypatch.setattr(page, "read_job", None)
    with pytest.raises(InputError, match="needed at most 40 runs on a page, got 41; name fewer folders"):
        write_page([folder] * 41, tmp_path / "page.html")


def test_the_command_writes_into_the_folder_and_replaces_only_its_own_page(tmp_path, capsys):
    folder = make_pipeline(tmp_path / "job")
    for _ in range(2):
        main(["page", str(folder)])
    assert capsys.readouterr().out.endswith(f"open {folder / 'page.html'} in a browser\n")
    assert data_of((folder / "page.html").read_text(encoding="utf-8"))["title"] == "job"
    mine = tmp_path / "mine.html"
    mine.write_text("<title>mine</title>")
    with pytest.raises(InputError, match=r"holds another file already; choose another --output"):
        main(["page", str(folder), "-o", str(mine)])
    assert mine.read_text() == "<title>mine</title>"
    with pytest.raises(InputError, match=r"no/page.html: needed to write it, got: No such file or directory"):
        main(["page", str(folder), "-o", str(tmp_path / "no/page.html")])


@pytest.mark.parametrize("path", [".", "/", "", "job"])
def test_a_folder_is_no_page(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "job")
    with pytest.raises(InputError, match="needed to write it, got: Is a directory"):
        write_page([Path("job")], Path(path))
    assert [file.name for file in tmp_path.iterdir()] == ["job"]


@pytest.mark.slow
def test_10000_steps_and_50_mb_of_samples_make_a_page_below_5_mb(tmp_path):
    folder = make_run(tmp_path / "ppo", steps=10_000, samples=0)
    rows = ({"step": k // 4, "prompt": f"p{k}", "completion": "word " * 240, "score": k / 1e4} for k in range(40_000))
    with (folder / "samples.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    metrics = [{"step": k, **{f"m{i}": k + i / 7 for i in range(30)}} for k in range(10_000)]
    lines(folder / "metrics.jsonl", metrics)
    assert (folder / "samples.jsonl").stat().st_size > 50_000_000
    started = time.process_time()
    notes = write_page([folder], tmp_path / "page.html")
    size = (tmp_path / "page.html").stat().st_size
    print(f"{time.process_time() - started:.1f} s of processor time, {size / 1e6:.2f} MB")
    assert size < 5_000_000 and len(notes) == 3 and all("long" in note for note in notes)
