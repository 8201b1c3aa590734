"""What can be refused is refused before the first stage, and a refused job leaves no folder."""

import json
import shutil

import pytest

from minirlhf.errors import InputError

MY = """
def length(prompts, completions, rows):
    return [len(c) / 100 for c in completions]

def polite(completions, **rest):
    return [float("please" in c) for c in completions]

def right(completions, answer):
    return [float(c == a) for c, a in zip(completions, answer)]

def some(completions):
    return [None if not c else 1.0 for c in completions]

def short(completions):
    return [0.5]

def nothing(completions):
    pass

def broken(completions):
    return [1 / len(c) for c in completions]
"""


@pytest.fixture
def my(tmp_path):
    (tmp_path / "my.py").write_text(MY)


@pytest.fixture
def refusal(call, tmp_path, capsys):
    """refusal(program, *argv): the text after "error: "; no file is written."""

    def refusal(program, *argv):
        before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(program, tmp_path, *argv)
        lines = [line for line in capsys.readouterr().err.splitlines() if line and "writing rows" not in line]
        assert (caught.value.code, len(lines), lines[0][:7]) == (2, 1, "error: "), lines
        assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
        return lines[0].removeprefix("error: ")

    return refusal


REWARDS = [
    ("nowhere", "nowhere: needed a reward model's folder or FILE.py:FUNCTION, found neither; check the path"),
    ("nowhere.py:f", "reward nowhere.py:f: needed a Python file, found no nowhere.py; check the path"),
    ("my.py:lenght", "reward my.py:lenght: needed a function of my.py, got lenght; it has length, "),
    ("my.py", "reward my.py: needed a function of my.py, got no name; it has length, "),
    ("my.py:short", "reward my.py:short: needed 2 scores, one per completion, got 1; return a list of scores"),
    ("my.py:nothing", "reward my.py:nothing: needed 2 scores, one per completion, got 1"),
    ("my.py:broken", "reward my.py:broken: my.py, line 21: ZeroDivisionError: division by zero (in return [1 / len(c)"),
    ("my.py:right", "reward my.py:right: the parameter answer is neither prompts, completions nor rows, and a row has"),
    ("my.py:length,nowhere", "nowhere: needed a reward model's folder or"),
    ("my.py:length,my.py:length", "--reward: needed each reward once, got my.py:length,my.py:length"),
    ("my.py:length,", "--reward: needed a name before and after each comma, got my.py:length,; drop a comma"),
    (".", ".: needed a model folder with config.json, found none"),
    ("", "--reward: needed a value, got empty text"),
]


@pytest.mark.parametrize(("reward", "text"), REWARDS)
def test_a_reward_that_cannot_be_used(refusal, my, inputs, reward, text):
    for program in ("ppo", "online_dpo", "grpo") if reward == "nowhere" else ("ppo",):
        assert refusal(program, "--data", inputs / "pairs.jsonl", f"--reward={reward}").startswith(text)


def test_a_function_that_returns_none_serves_grpo_and_sums_alone(refusal, call, my, inputs, tmp_path):
    data = "--data", inputs / "pairs.jsonl"
    assert "needed a finite number for every completion, got None" in refusal("ppo", *data, "--reward", "my.py:some")
    call("ppo", tmp_path, *data, "--reward", "my.py:some,my.py:length", "--stop_after", "sft")


COMBINATIONS = [
    (
        "--reward my.py:length --reward_weights 1,2",
        "--reward_weights: needed a weight for each of the 1 rewards my.py:",
    ),
    (
        "--reward my.py:length,my.py:polite --reward_weights 1",
        "--reward_weights: needed a weight for each of the 2 rew",
    ),
    ("--reward my.py:length --reward_weights nan", "--reward_weights: needed a list (each a number) or none, got"),
    (
        "--reward my.py:length --reward_weights inf",
        "--reward_weights: needed a list (each a number) or none, got 'inf'",
    ),
    ("--reward my.py:length --reward_weights 0", "--reward_weights: needed finite weights other than 0, got 0.0"),
    ("--reward_weights 1", "--reward_weights: needs rewards to weigh; give --reward"),
    ("--task arithmetic", "--task arithmetic: --data "),
    ("--stop_after reward --reward my.py:length", "--reward replaces this stage"),
    ("--train lora --lora.target_modules nothing_of_this_name", "nothing_of_this_name"),
    ("--freeze nothing_of_this_name", "nothing_of_this_name"),
    ("--freeze model", "--freeze model: no parameter is left to train; freeze fewer"),
    ("--ppo.stop_token 9999", "PPOConfig: stop_token must be an id of the vocabulary, got 9999"),
    ("--ppo.max_tokens 95", "56 of 56 rows cannot be used"),
    ("--policy nowhere", "nowhere: needed a model folder with config.json"),
    ("--policy=", "--policy: needed a value, got empty text; give a value, or drop the flag"),
    ("--data=", "--data: needed a value, got empty text"),
    ("--output=", "--output: needed a value, got empty text"),
    (
        "--ignore_columns colour",
        "ignore_columns: needed columns of the file, got colour; the file has prompt, chosen, rejected",
    ),
]


@pytest.mark.parametrize(("argv", "text"), COMBINATIONS)
def test_flags_that_do_not_go_together(refusal, my, inputs, argv, text):
    data = [] if "--data" in argv else ["--data", inputs / "pairs.jsonl"]
    assert text in refusal("ppo", *data, *argv.split())


def test_flags_that_need_a_data_file(refusal):
    assert refusal("sft", "--ignore_columns", "label").startswith("--ignore_columns: the embedded task has no columns")


def test_sft_cannot_stop_early_on_a_task_that_does_not_check_answers(refusal, my, inputs):
    argv = ["--data", inputs / "pairs.jsonl", "--reward", "my.py:length", "--stop_sft_at", "0.9"]
    assert refusal("grpo", *argv).startswith("--stop_sft_at: this task does not check answers")


def test_a_stage_that_the_task_replaces_is_no_place_to_stop(refusal):
    text = refusal("ppo", "--task", "arithmetic", "--stop_after", "reward")
    assert (
        text
        == "--stop-after reward: this job has no such stage, because the task checks its answers itself; drop the flag"
    )


@pytest.mark.parametrize(
    ("program", "rows", "text"),
    [
        ("sft", [{"prompt": "a"}], "SFT needs rows {prompt, response}"),
        ("unpaired", [{"prompt": "a"}], "training on single answers needs rows {prompt, response, label}"),
        ("ppo", [{"prompt": "a"}], "give --data FILE with such rows, or --reward FILE.py:FUNCTION or DIR"),
        ("multi_adapter", [{"prompt": "a"}], "training on pairs needs rows {prompt, chosen, rejected}"),
        ("reward_model", [{"prompt": "a", "response": "b"}], "training on pairs needs rows {prompt, chosen, rejected}"),
        ("dpo", [{"prompt": "a", "response": "b"}], "training on pairs needs rows {prompt, chosen, rejected}"),
        ("distillation", [{"prompt": "a"}], "SFT needs rows {prompt, response}"),
    ],
)
def test_rows_of_a_kind_that_a_later_stage_cannot_use(refusal, tmp_path, program, rows, text):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    assert text in refusal(program, "--data", "rows.jsonl")


def test_a_model_of_the_wrong_kind_leaves_no_folder(refusal, finished, inputs):
    data = "--data", inputs / "pairs.jsonl"
    assert "needed a language model, got a RewardModel" in refusal("ppo", *data, "--policy", finished / "reward")
    assert "needed a reward model, got a Transformer" in refusal("ppo", *data, "--reward", finished / "sft")


def test_rows_that_do_not_fit_a_given_student_are_refused_first(refusal, finished, inputs, tmp_path):
    shutil.copytree(finished / "sft" / "model", tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 4}))
    (tmp_path / "student" / "manifest.json").unlink()
    argv = "--policy", finished / "sft", "--student", "student", "--data", inputs / "pairs.jsonl"
    assert "of the context's 4, needed 1" in refusal("distillation", *argv)


def test_settings_of_a_later_stage_that_fit_no_model_are_refused_first(refusal, inputs, tmp_path):
    data = "--data", inputs / "pairs.jsonl"
    assert "hidden_size" in refusal("distillation", *data, "--student_width", "13")
    lora = "--train", "lora", "--dpo.ref_update_every", "1", "--dpo.ref_update_mix", "0.5"
    assert refusal("dpo", *data, *lora).startswith("DPOTrainer: ref_update_mix must be 1 if adapters are trained")
    text = refusal("process_reward", "--task", "arithmetic")
    assert text == "--task: this program has a task of its own; drop the flag"


def test_a_later_stage_that_began_with_other_settings_ends_the_job_before_the_first_stage(
    call, refusal, my, finished, inputs, tmp_path
):
    argv = ("--data", inputs / "pairs.jsonl", "--reward", "my.py:length", "--output", "job")
    call("ppo", tmp_path, *argv, "--policy", finished / "sft")
    text = refusal("ppo", *argv, "--resume")
    assert text.startswith("job/ppo: holds another run: it began with 'policy = ") and "policy = " in text
    text = refusal("ppo", *argv, "--policy", finished / "sft", "--resume", "--ppo.kl_coef", "0.5")
    assert text.startswith("job/ppo: holds another run: it began with 'kl_coef = ")


def test_settings_of_a_run_that_are_no_toml(refusal, inputs, tmp_path):
    (tmp_path / "job" / "ppo").mkdir(parents=True)
    (tmp_path / "job" / "ppo" / "config.toml").write_text("[")
    text = refusal("ppo", "--data", inputs / "pairs.jsonl", "--output", "job", "--resume")
    assert text.startswith("job/ppo/config.toml: needed the settings of a run in TOML, got: ")


def test_a_foreign_folder_in_the_place_of_a_later_stage(call, refusal, inputs, tmp_path):
    (tmp_path / "job" / "ppo").mkdir(parents=True)
    (tmp_path / "job" / "ppo" / "notes.txt").write_text("notes")
    text = refusal("ppo", "--data", inputs / "pairs.jsonl", "--output", "job", "--resume")
    assert text == "job/ppo: holds files that are not a run's; choose another --output"
    (tmp_path / "job" / "ppo").rename(tmp_path / "job" / "reward")  # the folder of the program reward_model.py
    text = refusal("reward_model", "--data", inputs / "pairs.jsonl", "--output", "job", "--resume")
    assert text == "job/reward: holds files that are not a run's; choose another --output"


# Rewards that work


@pytest.mark.parametrize("program", ["ppo", "grpo", "online_dpo"])
def test_functions_with_weights_are_the_reward_of_each_program(call, my, inputs, tmp_path, program):
    rewards = "--reward", "my.py:length,my.py:polite", "--reward_weights", "1,0.5"
    argv = ("--data", inputs / "pairs.jsonl", *rewards, "--output", "job")
    call(program, tmp_path, *argv)
    assert sorted(path.name for path in (tmp_path / "job").iterdir() if path.is_dir()) == [
        *sorted([program, "sft"]),
        "tokenizer",
    ]
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["after"]["model_reward"] is not None
    call(program, tmp_path, *argv, "--resume")


def test_grpo_on_prompts_with_answers_needs_a_function_and_no_pairs(call, my, finished, tmp_path):
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = "--policy", finished / "sft", "--data", "rows.jsonl"
    call("grpo", tmp_path, *policy, "--reward", "my.py:right", "--output", "job")
    metrics = [json.loads(line) for line in (tmp_path / "job" / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2 and all("score_mean" in line for line in metrics)


@pytest.mark.parametrize("flag", ["--reward_weights", "--grpo.reward_weights"])
def test_the_weight_of_a_single_reward_reaches_grpo(call, my, finished, inputs, tmp_path, flag):
    reward = "--reward", "my.py:length", flag, "2"
    call("grpo", tmp_path, "--data", inputs / "pairs.jsonl", "--policy", finished / "sft", *reward, "--output", "job")
    assert "\nreward_weights = [2.0]\n" in (tmp_path / "job" / "grpo" / "config.toml").read_text().split("[grpo]")[1]


def test_a_reward_model_and_a_function_are_weighed_together(call, my, finished, inputs, tmp_path):
    mixed = "--reward", f"{finished / 'reward'},my.py:length", "--reward_weights", "0.1,1"
    call("ppo", tmp_path, "--data", inputs / "pairs.jsonl", "--policy", finished / "sft", *mixed, "--output", "job")
    assert (tmp_path / "job" / "summary.json").exists()


# The folder


def test_rows_that_are_left_out_are_all_in_a_file(call, tmp_path, pairs, capsys):
    rows = [
        *pairs(60),
        *([{"prompt": "a", "chosen": "b", "rejected": " "}] * 5),
        {"prompt": "q " * 200, "chosen": "b", "rejected": "c"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    call("reward_model", tmp_path, "--data", "rows.json", "--max_refused", "0.5", "--output", "job")
    lines = (tmp_path / "job" / "refused.txt").read_text().splitlines()
    assert lines[:5] == [f"rows.json: row {n}: rejected: empty response" for n in range(61, 66)]
    assert len(lines) == 6 and lines[5].startswith("rows.json: row 66: the prompt has ")
    out = capsys.readouterr().out
    assert out.count("empty response") == 3 and "rows.json: and 2 more refused" in out
    assert "every row that was left out: job/refused.txt" in out


def test_two_jobs_that_chose_one_folder_get_two(tmp_path, monkeypatch):
    from minirlhf.jobs.folder import find_output, take_output
    from minirlhf.jobs.settings import JobConfig

    monkeypatch.chdir(tmp_path)
    job = JobConfig()
    chosen = [find_output(job, "ppo") for _ in range(2)]
    assert chosen[0] == chosen[1] and not chosen[0].exists()
    taken = [take_output(folder, job, "ppo", "sft") for folder in chosen]
    assert [folder.name for folder in taken] == ["ppo-001", "ppo-002"]
    mine = JobConfig(output="mine")
    chosen = [find_output(mine, "ppo") for _ in range(2)]
    take_output(chosen[0], mine, "ppo", "sft")
    with pytest.raises(InputError, match="^mine: holds a run already"):
        take_output(chosen[1], mine, "ppo", "sft")
    (tmp_path / "runs" / "ppo-999").mkdir()
    assert find_output(job, "ppo").name == "ppo-1000"
    (tmp_path / "runs" / "ppo-1000").mkdir()
    assert find_output(job, "ppo").name == "ppo-1001"
    assert find_output(JobConfig(resume=True), "ppo").name == "ppo-1000"
    assert find_output(job, "pp").name == "pp-001"
