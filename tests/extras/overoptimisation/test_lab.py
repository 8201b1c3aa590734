"""The lab: its folder, its resume, and the parts of a seed, with sizes that take a second."""

import importlib
import json
import statistics
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from minirlhf.errors import InputError
from minirlhf.extras.overoptimisation import measure as measure_file
from minirlhf.extras.overoptimisation import start as start_file
from minirlhf.extras.overoptimisation.cells import CROSS, MIDDLE, Cell
from minirlhf.extras.overoptimisation.fits import Curve, fit, gain_at
from minirlhf.extras.overoptimisation.lab import Lab
from minirlhf.extras.overoptimisation.measure import measure
from minirlhf.extras.overoptimisation.report import HEADER, Measured, report
from minirlhf.jobs import opened
from minirlhf.rewards.best_of import best_of_each, kl_bound

from ...examples.conftest import EXAMPLES, small_task

TINY = ["--best_of", "4", "--best_of_prompts", "3", "--evaluated", "8", "--sft.steps", "3", "--reward_model.steps", "2"]
TINY += ["--ppo.steps", "2", "--ppo.batch_size", "4", "--ppo.minibatch_size", "4", "--ppo.max_tokens", "6"]
TINY += ["--dpo.epochs", "0.1", "--model.hidden_size", "16", "--model.num_hidden_layers", "1"]


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "embedded_task", small_task)
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The folder of a finished `--quick`."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", ["overoptimisation.py", *TINY, "--quick", "--output", str(folder)])
        importlib.import_module("overoptimisation").main()
    return folder


@pytest.fixture
def open_lab(finished):
    """The lab of that folder, with some settings changed."""

    def open_lab(*flags):
        kept = {name: value for name, value in zip(TINY[::2], TINY[1::2], strict=True) if name not in flags}
        return Lab.open(help="", argv=["--quick", "--output", str(finished), *sum(kept.items(), ()), *flags])

    return open_lab


@pytest.fixture(scope="module")
def start(finished):
    return Lab.open(help="", argv=[*TINY, "--output", str(finished)]).start(0)


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "results").iterdir()}


def test_quick_measures_the_middle_and_writes_table_and_figure(finished):
    assert set(files(finished)) == {f"{cell.name}-seed-0.json" for cell in MIDDLE}
    assert {"table.md", "figure.svg", "seed-0"} <= {path.name for path in finished.iterdir()}
    rows = (finished / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| best_of_n", "| ppo", "| dpo"]
    assert len({row.count("|") for row in rows}) == 1
    ElementTree.parse(finished / "figure.svg")


def test_a_result_begins_at_the_sft_policy(finished):
    for cell in MIDDLE:
        found = json.loads((finished / f"results/{cell.name}-seed-0.json").read_text())
        assert found["points"][0]["kl"] == pytest.approx(0, abs=1e-4) and len(found["points"]) >= 2
        assert (found["accuracy"] is None) == (cell.method == "dpo")


def test_the_same_command_measures_nothing_again(open_lab):
    lab = open_lab()
    assert lab.todo() == []
    report(lab)
    assert lab._start is None  # neither the policy nor a row was opened


def test_a_lost_result_alone_is_measured_again_and_is_the_same(finished, open_lab):
    before, lab = files(finished), open_lab()
    (finished / "results/ppo-seed-0.json").unlink()
    assert lab.todo() == [(0, Cell("ppo"))]
    lab.keep(0, Cell("ppo"), measure(lab.start(0), Cell("ppo")))
    assert files(finished) == before


def test_other_settings_measure_only_the_cells_that_read_them(open_lab):
    assert open_lab("--dpo.beta", "0.2").todo() == [(0, Cell("dpo"))]
    assert open_lab("--ppo.lam", "0.9").todo() == [(0, Cell("ppo"))]
    assert open_lab("--reward_model.lr", "0.1").todo() == [(0, Cell("best_of_n")), (0, Cell("ppo"))]
    assert open_lab("--best_of", "8").todo() == [(0, Cell("best_of_n"))]
    for flags in (["--evaluated", "9"], ["--ppo.max_tokens", "7"], ["--ppo.temperature", "0.9"], ["--sft.lr", "0.1"]):
        assert open_lab(*flags).todo() == [(0, cell) for cell in MIDDLE], flags


def test_another_default_of_a_setting_that_is_not_read_changes_no_result(open_lab):
    lab = open_lab()
    lab.settings["ppo"] = replace(lab.settings["ppo"], kl_coef=0.5)
    assert lab.todo() == []


def test_the_whole_lab_goes_on_from_quick(finished):
    todo = Lab.open(help="", argv=[*TINY, "--seeds", "2", "--output", str(finished)]).todo()
    assert todo == [*((0, cell) for cell in CROSS if cell not in MIDDLE), *((1, cell) for cell in CROSS)]


def test_a_damaged_result_is_named(finished, open_lab):
    path = finished / "results/dpo-seed-0.json"
    whole = path.read_bytes()
    try:
        for text in (whole[:40], b"[]", b"{}"):
            path.write_bytes(text)
            with pytest.raises(InputError, match=r"dpo-seed-0.json: needed a result of the lab.*delete it"):
                open_lab().todo()
    finally:
        path.write_bytes(whole)


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="needed a new folder or a folder of the lab"):
        Lab.open(help="", argv=["--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is not a writable folder"):
        Lab.open(help="", argv=["--output", str(tmp_path / "thesis.tex")])


@pytest.mark.parametrize(
    "flags", [["--seeds", "0"], ["--best_of", "1"], ["--evaluated", "1"], ["--best_of_prompts", "0"]]
)
def test_sizes_that_measure_nothing_are_refused(flags):
    with pytest.raises(InputError, match=f"LabConfig: {flags[0][2:]} must be at least"):
        Lab.open(help="", argv=flags)


@pytest.mark.parametrize("flag", ["--ppo.kl_coef=0.2", "--ppo.separate_value_model", "--dpo.precompute_ref_logps"])
def test_settings_that_the_lab_would_ignore_are_refused(flag, tmp_path):
    with pytest.raises(InputError, match=f"^{flag.partition('=')[0]}: needed .*; leave it out"):
        Lab.open(help="", argv=[flag, "--output", str(tmp_path / "lab")])
    assert not (tmp_path / "lab").exists()


def test_rewards_have_the_unit_of_the_sft_policys_samples(start):
    for reward in (start.gold, start.proxy(Cell("ppo")), start.proxy(Cell("ppo", ensemble="min"))):
        scores = reward(*start.samples.flat)
        assert statistics.fmean(scores) == pytest.approx(0, abs=1e-5)
        assert statistics.pstdev(scores) == pytest.approx(1, abs=1e-3) or not any(scores)


def test_best_of_n_reads_one_pool_for_all_n(start):
    points = measure(start, Cell("best_of_n"))["points"]
    samples = start.pool
    proxy = samples.measured(start.proxy(Cell("best_of_n"))(*samples.flat))
    assert [point["n"] for point in points] == [1, 2, 4]
    assert [point["kl"] for point in points] == [kl_bound(n) for n in (1, 2, 4)]
    assert [point["gold"] for point in points] == [best_of_each(proxy, samples.scores)[n - 1].item() for n in (1, 2, 4)]
    assert points[-1]["proxy"] == pytest.approx(proxy.amax(1).mean().item())


def test_an_ensemble_joins_members_of_their_own_weights(start):
    single, ensemble = (start.proxy(Cell("ppo", ensemble=name)) for name in ("none", "min"))
    members = ensemble.reward.members
    assert len(members) == 3 and members[0].reward is single.reward
    texts = start.samples.flat
    scores = [member(*texts) for member in members]
    assert scores[0] != scores[1] != scores[2]
    assert ensemble.reward(*texts) == pytest.approx([min(column) for column in zip(*scores, strict=True)])


def test_a_proxy_learns_from_the_first_comparisons_and_has_its_size(start, monkeypatch):
    real, seen = start_file.Batches.of, []

    def spy(rows, *config, **options):
        seen.append(rows)
        return real(rows, *config, **options)

    monkeypatch.setattr(start_file.Batches, "of", spy)
    cells = [Cell("ppo", comparisons=10, size="small"), Cell("ppo", comparisons=100, size="large")]
    widths = [start._reward_model(cell, 0)[0].model.config.hidden_size for cell in cells]
    assert widths == [16, 128] and seen == [start.pairs[:10], start.pairs[:100]]


def test_a_pool_of_more_prompts_than_are_evaluated_is_refused():
    with pytest.raises(InputError, match="LabConfig: best_of_prompts must be at least 1 and at most 8, got 9"):
        Lab.open(help="", argv=["--evaluated", "8", "--best_of_prompts", "9"])


def test_more_evaluated_prompts_than_are_held_out_are_refused(open_lab):
    with pytest.raises(InputError, match=r"^--evaluated: needed at most [\d,]+, all held-out prompts, got 100,000$"):
        open_lab("--evaluated", "100000").start(0)


def test_the_last_step_of_ppo_is_measured(start, monkeypatch):
    monkeypatch.setitem(start.settings, "ppo", replace(start.settings["ppo"], steps=5))
    monkeypatch.setattr(measure_file, "EVALUATIONS", 2)  # every second step
    assert [point["step"] for point in measure(start, Cell("ppo"))["points"]] == [0, 2, 4, 5]


def test_a_peak_beyond_the_last_point_but_within_the_measured_distances_is_in_the_table():
    d = np.array([0.0, 1.0, 2.0, 1.2])  # the policy came back
    curve = Curve(d, gain_at("best_of_n", d, 1.2, 0.4))
    measured = Measured(Cell("best_of_n"), [curve], [], None, fit("best_of_n", [curve]))
    assert dict(zip(HEADER, measured.row(), strict=True))["peak at d"] == "1.50"


def test_the_kl_coefficient_of_a_cell_reaches_ppo(start, monkeypatch):
    real, seen = measure_file.PPOTrainer, []

    def spy(*models, **options):
        seen.append(models[-1].kl_coef)
        return real(*models, **options)

    monkeypatch.setattr(measure_file, "PPOTrainer", spy)
    measure(start, Cell("ppo", kl_coef=0.5))
    assert seen == [0.5]
