"""Programs on files of their own for each stage, validation sets, a value model and a gold reward; going back."""

import json

import pytest

ROWS = {
    "sums": [{"prompt": f"{n} + 1 =", "response": str(n + 1), "answer": n + 1} for n in range(40)],
    "liked": [{"prompt": f"say {n}:", "completion": f"hm {n}", "label": n % 2 == 0} for n in range(40)],
}


@pytest.fixture
def files(tmp_path, inputs):
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (inputs / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:4]))
    return {"pairs": inputs / "pairs.jsonl", **{name: tmp_path / f"{name}.jsonl" for name in ("few", *ROWS)}}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_single_answers_with_labels_train_kto_and_a_validation_set_of_pairs_is_split_in_two(call, tmp_path, files):
    flags = (
        "--data",
        files["liked"],
        "--sft.data",
        files["pairs"],
        "--validation",
        f"both={files['few']}",
        "--run.eval_every",
        0,
    )
    call("unpaired", tmp_path, *flags, "--run.best_metric", "eval/both/accuracy", "--output", "job")
    last = metrics(tmp_path / "job/unpaired")[-1]
    assert 0 <= last["eval/both/accuracy"] <= 1 and 0 <= last["eval/accuracy"] <= 1 and "eval/both/kl" in last
    assert "eval/both/loss" in metrics(tmp_path / "job/sft")[-1]


def test_ppo_from_a_given_value_model_with_checked_answers_and_then_back_to_its_first_step(
    call, finished, tmp_path, files, capsys
):
    (tmp_path / "gold.py").write_text("def short(completions): return [-len(text) for text in completions]\n")
    flags = ["--policy", finished / "sft", "--value", finished / "reward", "--ppo.value_lr", "0.01"]
    flags += ["--data", files["sums"], "--reward", "exact_match", "--gold", "gold.py:short", "--log_level", "quiet"]
    flags += ["--reward_timeout", "60"]
    flags += ["--validation", f"chat={files['few']}", "--run.save_every", 1, "--run.keep", 9, "--output", "job"]
    call("ppo", tmp_path, *flags)
    assert capsys.readouterr().out.count("\n") == 1  # the last line
    run = tmp_path / "job/ppo"
    first = metrics(run)
    assert first[-1]["eval/gold_reward"] < 0 <= first[-1]["eval/model_reward"] <= 1
    assert first[-1]["eval/chat/gold_reward"] < 0 and "eval/chat/model_reward" not in first[-1]  # pairs have no answers
    assert (run / "checkpoints/step-1/value/model.safetensors").exists()

    before = (run / "metrics.jsonl").read_bytes(), (run / "model/model.safetensors").read_bytes()
    call("ppo", tmp_path, *flags, "--resume", "step-1")
    assert before == ((run / "metrics.jsonl").read_bytes(), (run / "model/model.safetensors").read_bytes())
    assert {path.name for path in (run / "left-001").iterdir()} >= {"step-2", "model", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--reward", "exact_match"], 'exact_match: line 1: needed text or a number under "answer", got None'),
        (["--reward", "json_shap"], "json_shap: needed a reward model's folder or FILE.py:FUNCTION, found neither"),
        (["--reward", "a,b", "--reward_weights", "1,2", "--reward_ensemble", "min"], "--reward_weights: an ensemble"),
        (["--reward", "tags", "--reward_ensemble", "min"], "reward ensemble: needed at least two rewards, got tags"),
        (["--reward_ensemble", "min"], "--reward_ensemble: needs rewards; give --reward"),
        (["--reward", "tags", "--reward_timeout", "0"], "PipelineConfig: reward_timeout must be above 0, got"),
        (["--value", "{sft}"], "--value {sft}: needed a reward or value model, got a Transformer"),
        (["--resume", "step-3"], "--resume step-3: needed a complete checkpoint"),
        (
            ["--run.best_metric", "eval/chat/kl"],
            "--run.best_metric eval/chat/kl: needed a set of --validation, got chat;",
        ),
        (["--run.best_metric", "kl"], "--run.best_metric: needed a metric of evaluations, such as eval/loss, got 'kl'"),
        (["--sft.data", "none.jsonl"], "none.jsonl: "),
    ],
)
def test_flags_that_cannot_be_used_are_refused_before_anything_is_written(
    call, finished, tmp_path, files, capsys, flags, reason
):
    names = {"sft": finished / "sft"}
    with pytest.raises(SystemExit) as caught:
        call("ppo", tmp_path, "--data", files["pairs"], "--output", "job", *(flag.format(**names) for flag in flags))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {reason.format(**names)}")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("flags", [["--run.final", "best"], ["--run.patience", 2]])
def test_a_best_step_that_no_evaluation_can_name_is_refused_at_once(call, finished, tmp_path, files, capsys, flags):
    (tmp_path / "my.py").write_text("def short(completions): return [-len(text) for text in completions]\n")
    with pytest.raises(SystemExit) as caught:
        given = ["--data", files["few"], "--reward", "my.py:short", "--output", "job"]
        call("grpo", tmp_path, "--policy", finished / "sft", *given, *flags)
    assert caught.value.code == 2 and "needed" not in (said := capsys.readouterr().err)
    assert said.startswith(f"error: {flags[0]}: the best step is that of eval/gold_reward, which these rows do not")
    assert not (tmp_path / "job").exists()
