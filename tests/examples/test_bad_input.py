"""Bad input ends in exit code 2 and one line that says what and what to do; nothing that was there is overwritten."""

import json
import os
import random
import shutil
import string
import zlib

import pytest

from minirlhf.text.tokenizer import Tokenizer

LETTERS = string.ascii_letters + string.digits


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refusal(call, tmp_path, capsys):
    """refusal(program, *argv): the text after "error: "; every file that was there is as it was."""

    def refusal(program, *argv):
        before = files(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(program, tmp_path, *argv)
        bars = ("sft: ", "reward: ", "ppo: ")  # some faults show only once training has begun
        lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith(bars)]
        assert (caught.value.code, len(lines), lines[0][:7]) == (2, 1, "error: "), lines
        after = files(tmp_path)
        assert [path for path in before if after.get(path) != before[path]] == []
        return lines[0].removeprefix("error: ")

    return refusal


@pytest.fixture
def data(tmp_path):
    def data(content):
        path = tmp_path / "data.jsonl"
        text = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
        path.write_bytes(text)
        return path

    return data


# The data file


@pytest.mark.parametrize("program", ["sft", "reward_model", "ppo"])
def test_a_file_that_is_missing(refusal, tmp_path, program):
    text = refusal(program, "--data", "nowhere.jsonl")
    assert text == "nowhere.jsonl: needed a readable data file, got: No such file or directory; check the path"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read(refusal, tmp_path):
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")  # permissions would not stop root
    assert refusal("ppo", "--data", "loop.jsonl").startswith("loop.jsonl: needed a readable data file, got: ")


def test_a_folder_for_a_file(refusal, tmp_path):
    (tmp_path / "folder").mkdir()
    text = refusal("ppo", "--data", "folder")
    assert text == "folder: needed a folder with data files, got no visible file in it; check the path"


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_an_empty_file(refusal, data, content):
    path = data(content)
    assert refusal("ppo", "--data", path) == (
        f"{path}: needed at least one row, got an empty file; write one JSON object per line"
    )


def test_broken_json_at_a_line(refusal, data, pairs):
    rows = [json.dumps(row) for row in pairs(5)]
    path = data("\n".join([*rows[:2], rows[2][:-4], *rows[3:]]).encode())
    text = refusal("ppo", "--data", path)
    assert text.startswith(f"{path}: needed at most 1.00% of rows refused, got 1 of 5 (line 3: broken JSON, ")
    assert text.endswith("mend these rows, or go on without them: --max_refused 0.2")


def test_a_wrong_encoding(refusal, data):
    path = data('{"prompt": "é", "response": "x"}\n'.encode("latin-1"))
    text = refusal("ppo", "--data", path)
    assert text.startswith(f"{path}: needed a usable row, all 1 were refused (line 1: needed UTF-8, got the byte 0xe9 ")
    assert "name the file's encoding: --encoding latin-1 (or gb18030)" in text


@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_an_empty_response(refusal, data, key, pairs):
    path = data([*pairs(5), pairs(1)[0] | {key: "  "}])
    assert f"got 1 of 6 (line 6: {key}: empty response)" in refusal("ppo", "--data", path)


@pytest.mark.parametrize("program", ["sft", "reward_model", "ppo"])
def test_a_prompt_longer_than_the_context(refusal, data, pairs, program):
    text = "".join(random.Random(0).choices(LETTERS, k=300))
    path = data([pairs(1)[0] | {"prompt": text}, *pairs(20)])
    found = refusal(program, "--data", path)
    assert f" rows cannot be used, at most 1.0% may be refused: {path}: line 1: the prompt has " in found
    assert (
        "shorten the prompts, cut them with --overlong, allow more with --max_refused or raise a new model's " in found
    )


def test_rows_of_a_kind_that_does_not_serve(refusal, data):
    path = data([{"prompt": "a", "response": "b"}] * 5)
    assert refusal("reward_model", "--data", path) == (
        f"{path}: training on pairs needs rows {{prompt, chosen, rejected}}, but the task has none; give --data FILE "
        "with such rows"
    )


# Models


@pytest.fixture
def broken(finished, tmp_path):
    """broken(stage, change): a copy of a finished stage's model that `change` was called with."""

    def broken(stage, change):
        folder = shutil.copytree(finished / stage / "model", tmp_path / stage)
        (folder / "manifest.json").unlink()  # that of our own runs; a model from elsewhere has none
        change(folder)
        return folder

    return broken


def edit(name, **changes):
    def edit(folder):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(text) | changes))

    return edit


@pytest.mark.parametrize(("program", "stage"), [("ppo", "sft"), ("sft", "sft"), ("ppo", "reward")])
def test_a_checkpoint_of_another_shape(refusal, broken, inputs, finished, program, stage):
    folder = broken(stage, edit("config.json", intermediate_size=48))
    models = ["--policy", folder] if stage == "sft" else ["--policy", finished / "sft", "--reward", folder]
    text = refusal(program, "--data", inputs / "pairs.jsonl", *models)
    assert text.startswith(f"{folder / 'model.safetensors'}: model.layers.0.mlp.")
    assert "must be (48, 16) as config.json says, got (32, 16)" in text or "must be (16, 48)" in text


@pytest.mark.parametrize("fault", ["short", "gone", "no config", "half a config"])
def test_a_half_written_checkpoint(refusal, broken, inputs, fault):
    def change(folder):
        if fault in ("short", "gone"):
            weights = folder / "model.safetensors"
            os.truncate(weights, 100) if fault == "short" else weights.unlink()
        else:
            (folder / "config.json").unlink() if fault == "no config" else os.truncate(folder / "config.json", 20)

    folder = broken("sft", change)
    text = refusal("ppo", "--data", inputs / "pairs.jsonl", "--policy", folder)
    expected = {
        "short": f"{folder}/model.safetensors: needed a complete safetensors file (",
        "gone": f"{folder}/model.safetensors: needed this file, found no weights; ",
        "no config": f"{folder}: needed a model folder with config.json, found none; check the path",
        "half a config": f"{folder}/config.json: needed a model's JSON with vocab_size and architectures (",
    }
    assert text.startswith(expected[fault])


def test_a_reward_model_for_a_policy_and_the_reverse(refusal, finished, inputs):
    data = "--data", inputs / "pairs.jsonl"
    policy, reward = finished / "sft" / "model", finished / "reward" / "model"
    assert refusal("ppo", *data, "--policy", reward) == (
        f"{reward}: needed a language model, got a RewardModel; check the folder"
    )
    assert refusal("ppo", *data, "--policy", policy, "--reward", policy) == (
        f"{policy}: needed a reward model, got a Transformer; check the folder"
    )


@pytest.mark.parametrize("flag", ["--policy", "--reward"])
def test_a_model_folder_that_is_not_there(refusal, finished, inputs, flag):
    models = ["--policy", finished / "sft"] if flag == "--reward" else []
    assert refusal("ppo", "--data", inputs / "pairs.jsonl", *models, flag, "nowhere").startswith("nowhere: needed a ")


def test_a_tokenizer_with_more_tokens_than_the_model(refusal, broken, inputs):
    texts = ["".join(random.Random(k).choices(LETTERS, k=300)) for k in range(20)]
    more = Tokenizer.train(texts, vocab_size=400)
    folder = broken("sft", more.save)
    text = refusal("ppo", "--data", inputs / "pairs.jsonl", "--policy", folder)
    assert str(folder) in text and f"ids up to {more.vocab_size - 1}, " in text


# The reward


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        (lambda n: [0.5] * (n + 1), "needed 3 scores, one per completion, got 4"),
        (lambda n: [float("nan")] * n, "needed a finite number for every completion, got nan for completion 0"),
        (lambda n: [0.5] * (n - 1) + ["good"], "got 'good' for completion"),
    ],
)
def test_a_reward_function_with_a_wrong_count_or_no_number(refusal, inputs, finished, monkeypatch, scores, text):
    import minirlhf.evaluation.policies as policies
    from minirlhf.rewards import RewardModelScorer
    from minirlhf.rollout.collect import score_completions

    def of_mine(self, prompts, completions, rows):
        return scores(len(completions))

    monkeypatch.setattr(RewardModelScorer, "__call__", of_mine)
    assert policies.score_completions is score_completions  # evaluation and training check alike
    found = refusal(
        "ppo", "--data", inputs / "pairs.jsonl", "--policy", finished / "sft", "--reward", finished / "reward"
    )
    assert found.startswith("reward RewardModelScorer: ") and text.split(", got")[-1].split()[0] in found


# The output folder


def test_an_output_that_holds_a_run(refusal, call, inputs, tmp_path):
    call("sft", tmp_path, "--data", inputs / "pairs.jsonl", "--output", "job")
    for program in ("sft", "ppo"):
        text = refusal(program, "--data", inputs / "pairs.jsonl", "--output", "job")
        assert text == "job: holds a run already; give --resume or choose another --output"


def test_an_output_that_holds_a_run_with_other_settings(refusal, call, inputs, tmp_path):
    call("sft", tmp_path, "--data", inputs / "pairs.jsonl", "--output", "job")
    text = refusal("sft", "--data", inputs / "pairs.jsonl", "--output", "job", "--resume", "--sft.lr", "0.5")
    assert text == (
        "job/sft: holds another run: it began with 'lr = 0.008', but the settings now say 'lr = 0.5'; resume with "
        "its own settings or choose another --output"
    )


def test_an_output_with_files_that_are_no_run_is_named_as_such(refusal, inputs, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    text = refusal("sft", "--data", inputs / "pairs.jsonl", "--output", "notes")
    assert text == "notes: holds files that are no run's; choose another --output"


@pytest.mark.parametrize("output", ["/proc/minirlhf", "long" * 80, "dangling", "loop", "dangling/below"])
def test_an_output_that_cannot_be_made(refusal, inputs, tmp_path, output):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    text = refusal("sft", "--data", inputs / "pairs.jsonl", "--output", output)
    assert text.startswith(f"{output}: needed a folder for --output, ") and text.endswith("; choose another")


@pytest.mark.parametrize("content", [b"{", b"a =\n", b"\xff"])
def test_a_run_whose_settings_are_broken_does_not_resume(refusal, call, inputs, tmp_path, content):
    job = "--data", inputs / "pairs.jsonl", "--output", "job"
    call("sft", tmp_path, *job)
    (tmp_path / "job" / "sft" / "config.toml").write_bytes(content)
    text = refusal("sft", *job, "--resume")
    assert text.startswith("job/sft/config.toml: needed the settings of a run in TOML, got: ")


@pytest.mark.parametrize("first", ["sft", "reward_model"])
def test_stages_of_single_programs_serve_a_pipeline(call, inputs, tmp_path, capsys, first):
    stages = (inputs / "ppo.toml").read_text()
    own = stages if first == "sft" else stages.replace("[sft]\nsteps = 4\nbatch_size = 8\n", "")
    keep = [
        block for block in own.split("[") if not block.startswith("ppo") and (first != "sft" or "reward" not in block)
    ]
    (tmp_path / "own.toml").write_text("[".join(keep))
    job = "--data", inputs / "pairs.jsonl", "--output", "job"
    call(first, tmp_path, "--config", "own.toml", *job)
    capsys.readouterr()
    call("ppo", tmp_path, *job, "--resume")
    assert f"{'sft' if first == 'sft' else 'reward'}: finished already" in capsys.readouterr().out


def test_an_output_that_holds_other_files(refusal, inputs, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    text = refusal("sft", "--data", inputs / "pairs.jsonl", "--output", "thesis")
    assert text.startswith("thesis: holds ") and text.endswith("choose another --output")
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("output", ["notes.txt", "notes.txt/job"])
def test_an_output_that_is_a_file_or_inside_one(refusal, inputs, tmp_path, output):
    (tmp_path / "notes.txt").write_text("notes")
    assert refusal("sft", "--data", inputs / "pairs.jsonl", "--output", output).startswith(output)


# Settings


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--sft.learning_rate", "1"], "command line: no setting '--sft.learning_rate'; see --help."),
        (
            ["--ppo.clip_epz", "1"],
            "command line: no setting '--ppo.clip_epz'; the nearest is --ppo.clip_eps; see --help.",
        ),
        (["--out", "x"], "command line: no setting '--out'; the nearest is --output; see --help."),
        (["--ppo.steps", "many"], "--ppo.steps: needed an integer, got 'many'; see --help."),
        (["--ppo.kl_estimator", "k4"], "--ppo.kl_estimator: needed one of k1, k2, k3, got 'k4'; see --help."),
        (["--ppo.lr", "0"], "PPOConfig: lr must be above 0, got 0.0"),
        (["--ppo.batch_size", "10"], "PPOConfig: batch_size must be a multiple of minibatch_size, got 10 and 4"),
        (["--ppo.top_k", "5"], "PPOConfig: top_k 5 and top_p 1.0 sample from a truncated distribution"),
        (["--model.qk_norm", "head"], "ModelConfig: qk_norm cannot be stored in a llama config.json, and would be"),
        (["--model.num_attention_heads", "3"], "ModelConfig: hidden_size must be a multiple of num_attention_heads"),
        (["--run.keep", "0"], "RunSettings: keep must be at least 1, got 0"),
        (
            ["--task", "poems"],
            "task: needed reviews or arithmetic, got 'poems'; or give your own rows with --data FILE",
        ),
        (["--device", "gpu"], "device: needed auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["--vocab_size", "100"], "Tokenizer.train: vocab_size must be 259"),
        (["--vocab_size", "99999999999"], "Tokenizer.train: vocab_size must be 259"),
        (["--threads", "10000000"], "PipelineConfig: threads must be at least 1 and at most 1024, got 10000000"),
        (["--threads", "0"], "PipelineConfig: threads must be at least 1 and at most 1024, got 0"),
    ],
)
def test_settings_that_are_unknown_ill_typed_or_do_not_go_together(refusal, inputs, tmp_path, argv, text):
    data = [] if "--task" in argv else ["--data", inputs / "pairs.jsonl"]
    assert refusal("ppo", *data, *argv).startswith(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        "--ppo.minibatch_size 0",
        "--ppo.epochs 0",
        "--ppo.max_tokens 0",
        "--ppo.allow_truncation true --ppo.top_p 2",
        "--ppo.clip_eps 0",
        "--ppo.dual_clip 0.5",
        "--ppo.value_clip 0",
        "--ppo.lam 1.5",
        "--ppo.gamma -1",
        "--ppo.kl_controller adaptive --ppo.kl_horizon 0",
        "--ppo.kl_controller adaptive --ppo.kl_target 0",
        "--sft.batch_size 0",
        "--sft.beta1 1",
        "--sft.beta2 1",
        "--sft.weight_decay -1",
        "--reward_model.batch_size 0",
        "--model.num_attention_heads 0",
        "--model.num_key_value_heads 0",
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written_or_trained(refusal, inputs, tmp_path, argv):
    text = refusal("ppo", "--data", inputs / "pairs.jsonl", *argv.split())
    assert argv.split()[-2].split(".")[-1] in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[ppo]\nclip_epz = 1.0\n", "{}: no setting 'ppo.clip_epz'; the nearest is ppo.clip_eps; see --help."),
        ("[ppo\n", "--config {}: needed valid TOML in UTF-8, got: "),
        (None, "--config {}: needed a TOML file, got: No such file or directory; check the path."),
    ],
)
def test_a_settings_file_that_is_wrong(refusal, tmp_path, content, text):
    path = tmp_path / "my.toml"
    if content:
        path.write_text(content)
    assert refusal("ppo", "--config", path).startswith(text.format(path))


def test_held_out_rows_that_were_all_refused_stop_no_program(call, tmp_path, data, pairs, capsys):
    # the one held-out prompt does not fit
    rows = [row for row in pairs(60) if _held_out(row)][:1]
    path = data([row | {"prompt": _longer(row["prompt"])} for row in rows] + [r for r in pairs(60) if not _held_out(r)])
    call("ppo", tmp_path, "--data", path, "--output", "job")
    assert f"{path}: held-out prompts: 0 kept, 0 truncated, 1 refused" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "job" / "summary.json").read_text())["after"].values()) == {None}


def _held_out(row):
    return zlib.crc32(row["prompt"].encode()) % 20 == 0


def _longer(prompt):
    while len(prompt) < 300 or not _held_out({"prompt": prompt}):
        prompt += " ab"
    return prompt
