"""Curves in a terminal: known dots, numbers at the axes, letters of several runs, strange values."""

import random
import re

import pytest

from minirlhf.cli.run import main
from minirlhf.columns import columns_of
from minirlhf.errors import InputError
from minirlhf.seeing.plot import Canvas, plot, plots
from minirlhf.seeing.series import Series

from .made import lines, make_pipeline, make_run


def series(values):
    found = Series(80)
    for step, value in enumerate(values, start=1):
        found.add(step, value)
    return found


def test_known_dots():
    # A canvas of one letter has 2 x 4 dots. From the lower left dot (0x40) to the upper right dot (0x08) a line passes
    # the left dot of row 2 (0x04) and the right dot of row 1 (0x10).
    canvas = Canvas(1, 1)
    canvas.draw([(0, 0), (1, 1)])
    assert list(canvas.rows()) == [chr(0x2800 + 0x40 + 0x04 + 0x10 + 0x08)]
    canvas = Canvas(2, 1)
    canvas.draw([(0, 1), (1, 1)])  # the upper row of dots
    assert list(canvas.rows()) == [chr(0x2800 + 0x01 + 0x08) * 2]
    canvas = Canvas(2, 2)
    canvas.draw([(1, 0)])  # one point, at the lower right end
    assert list(canvas.rows()) == ["  ", " " + chr(0x2800 + 0x80)]


def test_the_frame_has_the_numbers_of_its_axes():
    text = plot("kl", {"ppo": series([1.0, 2.0, 5.0])}).split("\n")
    assert text[0] == "kl" and len(text) == 16
    assert text[1].startswith("        5 ┤") and text[12].startswith("        1 ┤")
    assert ord(text[1][79]) & 0x08 and ord(text[12][11]) & 0x40  # the upper right dot, the lower left dot
    # rows are a twelfth of the range high: the middle of row 6 from above is 5 - 4 * 6.5 / 12 = 2.8333
    assert text[7].startswith("    2.833 ┤")
    assert text[14] == "           step 1" + "3".rjust(63) and text[15] == "ppo: 5 at step 3; 1 to 5"


def test_several_runs_have_letters_and_on_a_terminal_colours():
    curves = {"x": series(range(100)), "y": series(range(0, 300, 3))}
    text = plot("kl", curves).split("\n")
    assert "a" in "".join(text[1:13]) and "b" in "".join(text[1:13]) and "\x1b" not in "".join(text)
    assert text[-2:] == ["a  x: 99 at step 100; 0 to 99", "b  y: 297 at step 100; 0 to 297"]
    coloured = plot("kl", curves, colour=True)
    assert re.sub(r"\x1b\[\d*m", "", coloured).split("\n") == text
    assert coloured.split("\n")[-1].startswith("\x1b[33mb\x1b[0m  y:")


def test_the_command_draws_the_usual_metrics_of_a_pipelines_last_run(tmp_path, capsys):
    main(["plot", str(make_pipeline(tmp_path / "job"))])
    parts = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert [part.split("\n")[0] for part in parts] == ["eval/gold_reward", "score_mean", "kl"]
    assert parts[-1].split("\n")[-1] == "job ppo: 2 at step 20; 0.1 to 2"
    main(["plot", str(tmp_path / "job/sft"), str(tmp_path / "job/ppo"), "--metric", "loss"])
    assert [line[:6] for line in capsys.readouterr().out.splitlines()[-2:]] == ["a  sft", "b  ppo"]


def test_unknown_metrics_many_folders_and_runs_without_a_step_are_refused(tmp_path):
    folder = make_run(tmp_path / "ppo")
    with pytest.raises(InputError, match="--metric: no run has 'kll'; the nearest is kl"):
        plots([folder], ["kll"])
    with pytest.raises(InputError, match="run plot: needed at most 26 folders, got 27; name fewer"):
        plots([folder] * 27)
    lines(folder / "metrics.jsonl", [{"step": 0, "own": 1.0}])
    assert plots([folder]).startswith("own\n")  # without a usual metric, the first metrics
    lines(folder / "metrics.jsonl", [])
    with pytest.raises(InputError, match="needed a run with a metric, got none that has made a step"):
        plots([folder], ["kl"])


def test_every_line_fits_80_columns_whatever_the_values_and_names(tmp_path):
    random.seed(0)
    curves = {
        "如何学习强化学习" * 9: series([random.uniform(-1e299, 1e299) for _ in range(3000)]),
        "a\x1b[2J": series([7]),
        "long" * 50: series([-1e-300] * 5),
    }
    for colour in (False, True):
        for line in re.sub(r"\x1b\[\d*m", "", plot("名\x1b[2J" * 40, curves, colour)).split("\n"):
            assert columns_of(line) <= 80 and line.isprintable(), line
    assert "means of 32 values" in plot("kl", curves)
