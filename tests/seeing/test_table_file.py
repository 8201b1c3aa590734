"""Runs as one CSV file."""

import csv
from pathlib import Path

import pytest

from minirlhf.cli.run import main
from minirlhf.errors import InputError
from minirlhf.seeing import table_file
from minirlhf.seeing.table_file import write_csv

from .made import lines, make_pipeline, make_run


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pipeline_becomes_a_row_for_each_step_with_its_times(tmp_path, capsys):
    folder, path = make_pipeline(tmp_path / "job"), tmp_path / "metrics.csv"
    for _ in range(2):  # its own file may be replaced
        main(["csv", str(folder), "-o", str(path)])
    assert capsys.readouterr().out.splitlines()[-1] == f"60 rows with 10 columns: {path}"
    found = rows(path)
    assert list(found[0])[:6] == ["run", "step", "loss", "kl", "score_mean", "eval/gold_reward"]
    assert {row["run"] for row in found} == {"sft", "reward", "ppo"} and found[0]["step"] == "1"
    assert (found[4]["eval/gold_reward"], found[3]["eval/gold_reward"]) == ("0.05", "")
    assert (found[4]["seconds"], found[4]["memory_mb"], found[4]["gpu_memory_mb"]) == ("0.5", "104", "")


def test_broken_lines_and_strange_values_are_left_out(tmp_path):
    folder = make_run(tmp_path / "ppo", steps=2)
    lines(
        folder / "metrics.jsonl", [{"step": 0, "a,b\n": 1.5, "run": 7, "c": "=cmd()"}, {"step": 2, "c": float("nan")}]
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "a"')
    notes = write_csv([folder], tmp_path / "x.csv")
    assert notes[0] == f"{folder}: metrics.jsonl: the last line is half-written" and len(notes) == 2
    first, second = rows(tmp_path / "x.csv")
    assert (first["run"], first["a,b\n"], first["c"], first["seconds"]) == ("ppo", "1.5", "", "0.5")
    assert (second["step"], second["c"], second["seconds"]) == ("3", "nan", "")


def test_other_files_stay_and_columns_are_bounded(tmp_path, monkeypatch):
    folder, mine = make_run(tmp_path / "ppo"), tmp_path / "mine.csv"
    mine.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="mine.csv: holds another file already; choose another --output"):
        write_csv([folder], mine)
    with pytest.raises(InputError, match="needed a folder with a run in it, found none; check the path"):
        write_csv([tmp_path / "none"], mine)
    assert mine.read_text() == "a,b\n1,2\n"
    monkeypatch.setattr(table_file, "MOST_COLUMNS", 1)
    assert write_csv([folder], tmp_path / "x.csv")[0] == "3 metrics are left out"
    assert list(rows(tmp_path / "x.csv")[0])[:4] == ["run", "step", "loss", "seconds"]


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_is_no_table(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "job")
    with pytest.raises(InputError, match="needed to write it, got: Is a directory"):
        write_csv([Path("job")], Path(path))
    assert [file.name for file in tmp_path.iterdir()] == ["job"]
