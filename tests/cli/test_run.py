"""`minirlhf run list | best | show`, as a user calls it."""

import json
import sys

import pytest

from minirlhf.algorithms import PPOConfig
from minirlhf.cli.main import main
from minirlhf.columns import columns_of
from minirlhf.jobs.settings import JobConfig
from minirlhf.model import ModelConfig
from minirlhf.training import RunSettings, checkpoint
from minirlhf.training.settings import settings_to_toml


@pytest.fixture
def call(monkeypatch, capsys):
    """call(*words) -> (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["minirlhf", "run", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(name, golds, ...): a run of PPO below runs/ with an evaluation at each step."""
    monkeypatch.chdir(tmp_path)

    def make(name, golds, saved=(), seed=0, metric="eval/gold_reward", run=None, **ppo):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        settings = {"job": JobConfig(seed=seed), "model": ModelConfig(), "ppo": PPOConfig(**ppo)}
        settings["run"] = run or RunSettings()
        (folder / "config.toml").write_text(settings_to_toml(settings))
        rows = [{"step": k, "loss": 1.0, "kl": k / 2, metric: gold} for k, gold in enumerate(golds)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        samples = [
            {"step": k, "prompt": "一二三\x1b[31m", "completion": "x" * 500, "score": 0.5} for k in range(len(golds))
        ]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        for step in saved:
            with checkpoint.written_whole(folder / f"checkpoints/step-{step}") as part:
                checkpoint.save_state(part, {"step": step, "best": {"step": saved[0], "value": 1.0}})
        return folder

    return make


def fits(text):
    """No line is wider than 80 columns; a path may be, because it is printed to be copied."""
    return max(columns_of(line) for line in text.splitlines() if not line.startswith("run: ")) <= 80


def test_list_shows_steps_metric_differences_and_checkpoints(make, call):
    make("ppo-001/ppo", [0.1, 0.9, 0.4], saved=(2, 3))
    make("ppo-002/ppo", [0.2], seed=3, kl_coef=0.5)
    code, out, _ = call("list")
    assert code == 0 and fits(out)
    lines = [line.split() for line in out.splitlines()]
    assert ["ppo-001/ppo", "3", "-", "eval/gold_reward", "0.9", "2"] in lines
    assert ["ppo-002/ppo", "1", "-", "eval/gold_reward", "0.2", "1"] in lines
    assert "  seed: 0 (ppo-001/ppo); 3 (ppo-002/ppo)\n" in out
    assert f"  ppo.kl_coef: {PPOConfig().kl_coef} (ppo-001/ppo); 0.5 (ppo-002/ppo)\n" in out
    assert "  ppo-001/ppo: step-2 (best), step-3\n  ppo-002/ppo: none\n" in out


def test_list_takes_the_metric_that_is_asked_for(make, call):
    make("a", [0.1, 0.9])
    assert ["a", "2", "-", "kl", "0", "1"] in [line.split() for line in call("list", "--metric", "kl")[1].splitlines()]
    lines = [line.split() for line in call("list", "runs", "--metric", "kl", "--mode", "max")[1].splitlines()]
    assert ["a", "2", "-", "kl", "0.5", "2"] in lines


def test_best_names_the_run_its_step_and_its_checkpoint(make, call):
    make("a", [0.1, 0.7])
    make("b", [0.2, 0.9, 0.4], saved=(2, 3))
    make("c", [5.0], metric="eval/other")
    code, out, _ = call("best", "runs", "--metric", "eval/gold_reward")
    assert code == 0 and fits(out)
    assert out.startswith(
        "eval/gold_reward 0.9 after 2 steps\nrun:        runs/b\ncheckpoint: runs/b/checkpoints/step-2\n\n"
    )
    ranked = [line.split()[0] for line in out.splitlines()[6:8]]
    assert ranked == ["b", "a"] and "  without eval/gold_reward: c" in out
    lowest = call("best", "runs", "--metric", "eval/gold_reward", "--mode", "min")[1]
    assert lowest.startswith("eval/gold_reward 0.1 after 1 steps\nrun:        runs/a\ncheckpoint: of that step none is")


def test_best_without_a_metric_takes_the_metric_that_decides_a_runs_own_best_step(make, call):
    make("a", [0.1, 0.7], saved=(1, 2), metric="eval/chat/loss", run=RunSettings(best_metric="eval/chat/loss"))
    make("b", [0.6, 0.9], metric="eval/chat/loss", run=RunSettings(best_metric="eval/chat/loss"))
    code, out, _ = call("best")
    assert code == 0 and out.startswith(
        "eval/chat/loss 0.1 after 1 steps\nrun:        runs/a\ncheckpoint: runs/a/check"
    )
    make("c", [0.3, 0.2])
    make("d", [0.4], metric="eval/accuracy")
    make("e", [])
    out = call("best", "runs")[1]
    firsts = [line for line in out.splitlines() if " after " in line]
    assert [line.split()[:2] for line in firsts] == [
        ["eval/chat/loss", "0.1"],
        ["eval/gold_reward", "0.3"],
        ["eval/accuracy", "0.4"],
    ]
    assert out.endswith("\n\n  without a metric: e\n") and fits(out)
    most = make("f", [0.1, 0.2], metric="eval/x", run=RunSettings(best_metric="eval/x", best_mode="min"))
    assert call("best", most)[1].startswith("eval/x 0.1 after 1 steps")
    assert call("best", most, "--mode", "max")[1].startswith("eval/x 0.2 after 2 steps")
    code, _, error = call("best", "runs/e")
    assert (
        code == 2
        and error == "error: runs/e: needed a run with a metric, got none that has made a step; wait for its first\n"
    )


def test_an_unknown_metric_names_the_nearest(make, call):
    make("a", [0.1])
    for words in (["list"], ["best", "runs"]):
        code, _, err = call(*words, "--metric", "eval/gold_rewrd")
        assert code == 2
        assert err == "error: --metric: no run has 'eval/gold_rewrd'; the nearest is eval/gold_reward\n"


def test_show_prints_what_differs_from_the_defaults_and_the_last_samples(make, call):
    folder = make("a", [0.1, 0.9], saved=(2,), seed=3, kl_coef=0.5)
    code, out, _ = call("show", folder)
    assert code == 0 and fits(out.partition("\n")[2])
    section = out[out.index("settings that differ") :].split("\n\n")[0].splitlines()
    assert section[1:] == ["  seed = 3 (default: 0)", f"  ppo.kl_coef = 0.5 (default: {PPOConfig().kl_coef})"]
    assert ["eval/gold_reward", "0.9", "0.1", "0.9"] in [line.split() for line in out.splitlines()]
    assert out.startswith(f"{folder}\n  2 steps, not finished\n\n")
    assert "checkpoints\n  step-2 (best)\n" in out
    assert "samples after 2 steps\n  prompt: 一二三\\x1b[31m\n" in out and "\x1b" not in out


def test_show_of_a_pipeline_shows_its_stages_and_refuses_a_folder_of_pipelines(make, call, tmp_path):
    make("ppo-001/sft", [0.1])
    make("ppo-001/ppo", [0.1])
    out = call("show", tmp_path / "runs/ppo-001")[1]
    assert out.count("settings that differ from the defaults\n  none\n") == 2
    code, _, err = call("show", tmp_path / "runs")
    assert code == 2 and "found runs further below; name one of them" in err


def test_many_evaluations_are_thinned_out_with_the_first_and_last(make, call):
    out = call("show", make("a", [k / 100 for k in range(95)]))[1]
    table = out[out.index("20 of 95 evaluations") :].split("\n\n")[0].splitlines()
    assert len(table) == 23 and [table[k].split()[0] for k in (2, -2, -1)] == ["1", "95", "trend"]


def test_wide_names_and_long_names_fit_80_columns(make, call):
    make("强化学习" * 10 + "/ppo", [0.1], seed=1)
    make("x" * 120 + "/ppo", [0.1], seed=2)
    make("tab\tnewline\n/ppo", [0.1], metric="eval/" + "很长" * 20)
    for words in (["list"], ["best", "runs", "--metric", "eval/gold_reward"]):
        code, out, _ = call(*words)
        assert code == 0 and fits(out), out


def test_a_damaged_run_is_named_after_the_others(make, call):
    make("good", [0.1])
    (make("bad", [0.1]) / "metrics.jsonl").write_text("nonsense\n")
    for words in (["list"], ["best", "runs", "--metric", "eval/gold_reward"]):
        code, out, _ = call(*words)
        assert code == 0 and "skipped, because a file is damaged\n  runs/bad/metrics.jsonl: line 1: " in out
    code, _, err = call("list", "runs/bad")
    assert code == 2 and "found none; skipped: runs/bad/metrics.jsonl: line 1" in err


def test_a_folder_without_runs_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("list")[::2] == (2, "error: runs: needed a folder with runs in it, found none; check the path\n")
    code, _, err = call("show", tmp_path)
    assert code == 2 and "a run has config.toml and metrics.jsonl" in err


def test_a_run_before_its_first_step_is_listed(make, call):
    folder = make("a", [])
    (folder / "log.txt").write_text("2026-01-01 00:00:00  started at step 0 of 80\n")
    assert ["a", "0/80", "-", "-", "-", "-"] in [line.split() for line in call("list")[1].splitlines()]
    assert call("show", folder)[0] == 0
