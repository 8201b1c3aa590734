"""The table of evaluations: one header, one short row each, also in a resumed run; and the time evaluations take."""

import io
import json

import pytest
import tiny
from tqdm import tqdm

from minirlhf.columns import columns_of
from minirlhf.training.bar import BAR
from minirlhf.training.progress import LABELS, EvaluationTable, _number, evaluation_seconds, sparkline

from .test_run import go, lines


def test_an_integer_that_no_float_can_hold_is_a_number_too():
    assert [_number(value) for value in (10**400, -(10**400), float("inf"), float("nan"))] == [
        "huge",
        "huge",
        "inf",
        "nan",
    ]


def test_a_row_has_the_numbers_of_the_evaluation_and_of_the_step_in_fixed_columns():
    table = EvaluationTable("ppo", ("score_mean", "kl", "eval/gold_reward"))
    metrics = {"kl": 9.0, "score_mean": 1.5, "lr": 1e-3, "entropy": 0.25, "eval/kl": 3.25, "eval/gold_reward": -0.0294}
    assert table.row(8, metrics).split("\n") == [
        "ppo step     gold       KL  entropy    score",
        "       8   -0.029    3.250    0.250    1.500",
    ]
    del metrics["entropy"], metrics["eval/gold_reward"]
    assert table.row(16, metrics | {"eval/kl": 12345.0}) == "      16        -    1e+04        -    1.500"


def test_the_users_own_measures_come_first_and_no_line_is_wider_than_80_columns():
    names = [f"eval/{name}" for name in ("my_measure_of_success", *LABELS)]
    table = EvaluationTable("a-folder-with-a-long-name", ("loss",))
    for value in (1.0, -99.999, -9999.9, -1e30, float("nan"), float("-inf")):
        text = table.row(123_456, dict.fromkeys(names, value))
        assert max(map(len, text.split("\n"))) <= 80
        assert text.count("\n") == (value == 1.0)
        if value == 1.0:
            assert text.split("\n")[0].split()[:4] == ["a-folder-wit", "step", "my_measure_of_success", "loss"]


def test_what_is_no_number_ends_no_run(tmp_path, capsys):
    go(tmp_path / "sum", evaluate=lambda: {"a": None, "b": "a long text", "c": 3, "d": True}, eval_every=0)
    assert capsys.readouterr().out.splitlines()[1].split() == ["6", "None", "a", "long", "3.000", "1.000", "0.021"]


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_trainers_table_and_bar_fit_80_columns(case):
    trainer = tiny.CASES[case]()
    metrics = trainer.step(tiny.batches(8)[0]) | {"eval/gold_reward": 0.5, "eval/kl": 3.0, "eval/length": 12.5}
    header, row = EvaluationTable("multi_adapter", trainer.headline).row(8, metrics).split("\n")
    assert len(header) == len(row) <= 80 and "gold" in header
    name = type(trainer).__module__.rpartition(".")[2][:12]
    shown = ", ".join(f"{name}=-0.0123" for name in trainer.headline if not name.startswith("eval/"))
    bar = tqdm.format_meter(300, 800, 22.0, ncols=80, prefix=name, bar_format=BAR, job="", postfix=shown)
    assert len(bar) <= 80 and bar.endswith(f"{shown}]")


def test_a_run_prints_a_row_after_each_evaluation_on_stdout(tmp_path, capsys):
    go(tmp_path / "sum", evaluate=lambda: {"goodness": 0.5}, eval_every=2)
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["sum", "step", "goodness", "loss"],
        ["2", "0.500", "0.125"],
        ["4", "0.500", "0.042"],
        ["6", "0.500", "0.021"],
        ["trend", "▁▁▁", "█▂▁"],
    ]
    assert "goodness" not in err and "eval/" not in err  # the bar has the numbers of steps


def test_a_resumed_run_goes_on_with_the_table_and_a_run_without_numbers_has_none(tmp_path, capsys):
    class Stop(Exception):
        pass

    def stop(k):
        if k == 4:
            raise Stop

    options = {"evaluate": lambda: {"goodness": 0.5}, "eval_every": 1, "save_every": 1}
    with pytest.raises(Stop):
        go(tmp_path / "sum", after=stop, **options)
    first = capsys.readouterr().out.splitlines()
    go(tmp_path / "sum", resume=True, **options)
    second = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in first] == ["sum", "1", "2", "3", "4"]
    assert [line.split()[0] for line in second] == ["sum", "5", "6", "trend"] and first[0] == second[0]
    assert second[-1].split()[1] == "▁" * 6  # also the evaluations before the stop
    go(tmp_path / "none", evaluate=dict, eval_every=1)
    assert capsys.readouterr().out == ""


def test_a_resumed_table_keeps_its_columns_whatever_its_first_evaluation_measures(tmp_path, capsys):
    class Stop(Exception):
        pass

    def stop(k):
        if k == 2:
            raise Stop

    options = {"eval_every": 1, "save_every": 1}
    with pytest.raises(Stop):
        go(tmp_path / "sum", after=stop, evaluate=lambda: {"goodness": 0.5, "other": 1, "chat/loss": 2}, **options)
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split() == ["sum", "step", "goodness", "other", "loss"]
    go(tmp_path / "sum", resume=True, evaluate=lambda: {"late": 3, "other": 2}, **options)
    second = capsys.readouterr().out.splitlines()
    assert second[0] == header and [line.split()[:3] for line in second[1:3]] == [
        ["3", "-", "2.000"],
        ["4", "-", "2.000"],
    ]


def test_the_bar_fits_80_columns_and_has_the_steps_metrics(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(screen, "isatty", lambda: True)
    go(tmp_path / "a-folder-with-a-long-name", evaluate=lambda: {"goodness": 0.5}, eval_every=1)
    bars = [line for line in screen.getvalue().replace("\r", "\n").split("\n") if "|" in line]
    assert max(map(len, bars)) <= 80 and "6/6 [" in bars[-1] and bars[-1].rstrip().endswith("loss=0.0208]")


def test_timings_have_the_seconds_of_evaluations_and_metrics_have_not(tmp_path):
    run, _ = go(tmp_path / "job" / "sum", evaluate=lambda: {"goodness": 0.5}, eval_every=2)
    timings = lines(run.folder, "timings.jsonl")
    assert ["evaluation_seconds" in row for row in timings] == [False, True] * 3
    assert all(0 <= row.get("evaluation_seconds", 0) <= row["seconds"] + 1e-3 for row in timings)
    assert "evaluation_seconds" not in lines(run.folder)[1]
    other = tmp_path / "job" / "other"
    other.mkdir()
    rows = [{"step": 0, "seconds": 3.0, "evaluation_seconds": 1.0}, {"step": 1, "seconds": 5.0}]
    (other / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations, seconds = evaluation_seconds(tmp_path / "job")
    assert evaluations == pytest.approx(1.0 + sum(row.get("evaluation_seconds", 0) for row in timings))
    assert seconds == pytest.approx(8.0 + sum(row["seconds"] for row in timings))


def test_evaluations_leave_training_as_it_is(tmp_path):
    with_table, _ = go(tmp_path / "a", evaluate=lambda: {"goodness": 0.5}, eval_every=1)
    without, _ = go(tmp_path / "b")
    strip = [{name: x for name, x in row.items() if "/" not in name} for row in lines(with_table.folder)]
    assert strip == lines(without.folder)


def test_small_bars_average_neighbours_and_equal_values_are_low():
    # a third and two thirds of the range: round(7 / 3) = 2 and round(14 / 3) = 5 of the bars 0 to 7
    assert sparkline([0, 1, 2, 3], 7) == "▁▃▆█" and sparkline([5.0, 5.0], 7) == "▁▁" and sparkline([], 7) == ""
    assert sparkline([0, 2, 2, 4, 8, 8], 3) == "▁▃█"  # means 1, 3, 8
    assert len(sparkline(range(1000), 7)) == 7 and set(sparkline([-1e299, 1e299], 2)) == {"▁", "█"}


def test_a_name_of_wide_letters_keeps_the_columns_in_line_and_controls_are_escaped():
    table = EvaluationTable("如何学习强化学习", ())
    lines = table.row(1, {"eval/名\x1b[2J": 1.0, "eval/如何/loss": 2.0}).split("\n")
    assert len({columns_of(line) for line in lines}) == 1 and "\x1b" not in "".join(lines)


def test_large_numbers_have_fewer_digits():
    assert [_number(x) for x in (99.99, -99.99, 100.0, 9_999.94, 10_000.0)] == [
        "99.990", "-99.990", "100.0", "9999.9", "1e+04"
    ]  # fmt: skip
