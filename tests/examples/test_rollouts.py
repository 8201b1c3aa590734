"""`--save_rollouts` and `--replay`: a job on recorded rollouts is the job that recorded them."""

import json

import pytest

from .conftest import EXAMPLES


def files(folder):
    return [
        (folder / "ppo" / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors", "samples.jsonl")
    ]


def test_a_job_on_recorded_rollouts_repeats_it_byte_for_byte_and_another_reward_can_be_tried(
    call, inputs, finished, tmp_path, capsys
):
    flags = ["--data", inputs / "pairs.jsonl", "--policy", finished / "sft", "--run.eval_every", 0]
    call("ppo", tmp_path, *flags, "--reward", finished / "reward", "--save_rollouts", "--output", "live")
    call("ppo", tmp_path, *flags, "--reward", finished / "reward", "--replay", "live/ppo", "--output", "again")
    assert files(tmp_path / "live") == files(tmp_path / "again")
    assert "2 steps; nothing is sampled or scored" in capsys.readouterr().out
    (tmp_path / "my.py").write_text("def short(completions): return [-len(text) for text in completions]\n")
    replay = ["--replay", "live/ppo/rollouts", "--replay_scores", "new"]
    call("ppo", tmp_path, *flags, "--reward", "my.py:short", *replay, "--output", "other")
    assert "their scores are computed anew, all else is as recorded" in capsys.readouterr().out
    metrics = [json.loads(line) for line in (tmp_path / "other/ppo/metrics.jsonl").read_text().splitlines()]
    saved = json.loads((tmp_path / "live/ppo/rollouts/step-1/rollout.0-of-1/rollout.json").read_text())
    lengths = [len(text) for text in saved["completions"]]
    assert metrics[0]["score_mean"] == pytest.approx(-sum(lengths) / len(lengths))


@pytest.mark.slow
def test_two_processes_replay_two_processes(forks, inputs, finished, tmp_path):
    program = [str(EXAMPLES / "ppo.py"), "--config", str(inputs / "ppo.toml"), "--data", str(inputs / "pairs.jsonl")]
    program += ["--policy", str(finished / "sft"), "--reward", str(finished / "reward"), "--run.eval_every", "0"]
    live, again = str(tmp_path / "live"), str(tmp_path / "again")
    for more in (["--save_rollouts", "--output", live], ["--replay", live, "--output", again]):
        done = forks.ranks(*program, *more)
        assert [process.returncode for process in done] == [0, 0], done
    assert files(tmp_path / "live") == files(tmp_path / "again")


@pytest.mark.parametrize(
    ("program", "flags", "reason"),
    [
        ("ppo", ["--replay", "nothing"], "--replay nothing: needed a folder with rollouts that --save_rollouts wrote"),
        ("ppo", ["--replay", "x", "--save_rollouts"], "--save_rollouts: a replay samples nothing"),
        ("ppo", ["--replay_scores", "new"], "--replay_scores: needs recorded rollouts; give --replay DIR"),
        (
            "grpo",
            ["--replay", "x", "--replay_scores", "new", "--grpo.algorithm", "dapo"],
            "--replay_scores new: dynamic sampling has chosen prompts by the recorded scores; set --grpo.resample 0",
        ),
        ("online_dpo", ["--save_rollouts"], "--save_rollouts: online_dpo compares pairs, which are not recorded"),
    ],
)
def test_flags_without_effect_are_refused_before_anything_is_written(
    call, inputs, tmp_path, capsys, program, flags, reason
):
    with pytest.raises(SystemExit) as caught:
        call(program, tmp_path, "--data", inputs / "pairs.jsonl", "--output", "job", *flags)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith(f"error: {reason}")
    assert not (tmp_path / "job").exists()
