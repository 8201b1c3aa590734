"""examples/seq2seq.py and `minirlhf train seq2seq`, with sizes that take a second."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from minirlhf.algorithms import PPOTrainer
from minirlhf.cli import train
from minirlhf.errors import InputError
from minirlhf.extras.seq2seq import Seq2Seq, Seq2SeqConfig, Seq2SeqTokenizer, load_seq2seq, program, save_seq2seq, task

from .conftest import EXAMPLES

TINY = ["--sft.steps", "2", "--ppo.steps", "3", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4"]
TINY += ["--run.save_every", "1", "--run.eval_every", "2", "--ppo.max_tokens", "6", "--threads", "1"]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(task, "ROWS", 60)
    monkeypatch.setattr(task, "HELD_OUT", 4)


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(folder):
    return load_seq2seq(folder / "ppo" / "model").state_dict()


def test_the_example_and_the_command_train_the_same_and_report(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["seq2seq.py", *TINY, "--output", str(tmp_path / "a")])
    importlib.import_module("seq2seq").main()
    said = capsys.readouterr().out
    assert "gold reward" in said and "share grammatical" in said
    assert {"sft", "ppo", "summary.json", "page.html"} <= {path.name for path in (tmp_path / "a").iterdir()}
    train.main(["seq2seq", *TINY, "--output", str(tmp_path / "b"), "--tracker", "tensorboard"])
    assert all(len(list((tmp_path / "b" / stage / "tensorboard").iterdir())) == 1 for stage in ("sft", "ppo"))
    assert lines(tmp_path / "a" / "ppo") == lines(tmp_path / "b" / "ppo")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert -1 <= summary["after"]["gold_reward"] <= 1 and summary["kl"] > 0


@pytest.mark.parametrize("how", ["all", "lora"])
def test_a_job_that_was_killed_goes_on_to_the_same_weights(monkeypatch, tmp_path, how):
    flags = ["seq2seq", *TINY, "--train", how]
    train.main([*flags, "--output", str(tmp_path / "whole")])
    real = PPOTrainer.step

    def killed(trainer, batch):
        if trainer.steps_done == 2:
            raise KeyboardInterrupt
        return real(trainer, batch)

    monkeypatch.setattr(PPOTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--output", str(tmp_path / "killed")])
    monkeypatch.setattr(PPOTrainer, "step", real)
    train.main([*flags, "--output", str(tmp_path / "killed"), "--resume"])
    assert lines(tmp_path / "killed" / "ppo") == lines(tmp_path / "whole" / "ppo")
    one, other = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_own_rows_an_own_reward_and_a_t5_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"turn {i} around", "response": f"{i} is turned"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.py").write_text("def score(completions): return [float(len(text)) for text in completions]\n")
    tokenizer = Seq2SeqTokenizer.train([row["prompt"] for row in rows], vocab_size=300)
    save_seq2seq(Seq2Seq(Seq2SeqConfig(vocab_size=tokenizer.vocab_size)), "t5", tokenizer.token_ids)
    tokenizer.save("t5")
    flags = [
        "--policy",
        "t5",
        "--data",
        "rows.jsonl",
        "--reward",
        "my.py:score",
        "--output",
        "job",
        "--skip_sft",
        "true",
    ]
    train.main(["seq2seq", *TINY, *flags])
    assert (
        not (tmp_path / "job" / "sft" / "metrics.jsonl").exists()
        and lines(tmp_path / "job" / "ppo")[0]["score_mean"] >= 0
    )
    with pytest.raises(InputError, match="needed one reward, got several"):
        train.main(["seq2seq", *flags[:-6], "--reward", "my.py:score,exact_match", "--output", "other"])
    with pytest.raises(InputError, match="needed FILE.py:FUNCTION, got a folder"):
        train.main(["seq2seq", *flags[:-6], "--reward", "t5", "--output", "other"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"data": "rows.jsonl"}, "--data: needed --reward"),
        ({"reward": "my.py:score"}, "--reward: the embedded task has its own reward"),
        ({"skip_sft": True}, "--skip_sft: needed --policy DIR"),
        ({"threads": 0}, "threads"),
    ],
)
def test_flags_that_have_no_effect_or_miss_another_are_refused(flags, text):
    with pytest.raises(InputError, match=text):
        program.Seq2SeqJobConfig(**flags)


GOOD = [{"prompt": f"turn {i} around", "response": f"{i} is turned"} for i in range(40)]


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """Rows, a reward and flags that name both."""
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", GOOD)
    Path("my.py").write_text("def score(completions): return [float(len(text)) for text in completions]\n")
    return [*TINY, "--data", "rows.jsonl", "--reward", "my.py:score"]


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_job_is_not_resumed_on_files_that_have_changed(own_files):
    """Other rows make another tokenizer: the same weights would read other ids."""
    train.main(["seq2seq", *own_files, "--output", "job"])
    write("rows.jsonl", [row | {"prompt": row["prompt"][::-1]} for row in GOOD])
    with pytest.raises(InputError, match=r"rows.jsonl: has changed since the job in job began"):
        train.main(["seq2seq", *own_files, "--output", "job", "--resume"])
    write("rows.jsonl", GOOD)
    Path("my.py").write_text("def score(completions): return [0.0 for text in completions]\n")
    with pytest.raises(InputError, match=r"my.py: has changed since the job in job began"):
        train.main(["seq2seq", *own_files, "--output", "job", "--resume"])


@pytest.mark.parametrize(
    ("rows", "flags", "text"),
    [
        ([{"prompt": "a"}] * 9, [], r"SFT needs rows \{prompt, response\}"),
        ([{"text": "a"}] * 9, [], r"sampling needs rows \{prompt\}"),
        ([{"prompt": "word " * 500, "response": "b"}] * 9, [], "rows cannot be used"),
        (GOOD, ["--policy", "decoder"], "needed an encoder-decoder with model_type t5 or mt5, got 'llama'"),
        (GOOD, ["--lora.r", "4"], "--lora.r: all weights are trained; give --train lora"),
        (GOOD, ["--policy", ""], "--policy: needed a value, got empty text"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_a_folder_is_made(own_files, rows, flags, text):
    write("rows.jsonl", rows)
    Path("decoder").mkdir()
    Path("decoder/config.json").write_text('{"model_type": "llama"}')
    Seq2SeqTokenizer.train(["a"], vocab_size=280).save("decoder")
    with pytest.raises(InputError, match=text):
        train.main(["seq2seq", *own_files, *flags, "--output", "job"])
    assert not Path("job").exists()


def test_max_refused_counts_for_rows_that_cannot_be_read_too(own_files):
    write("rows.jsonl", [*GOOD, *[{"prompt": 5}] * 10])
    with pytest.raises(InputError, match="10 of 50"):
        train.main(["seq2seq", *own_files, "--output", "job"])
    train.main(["seq2seq", *own_files, "--output", "job", "--max_refused", "0.5"])


def test_the_encoder_reads_all_earlier_turns_in_sft_as_in_ppo(own_files):
    def turn(role, content):
        return {"role": role, "content": content}

    before = [turn("user", "one"), turn("assistant", "two"), turn("user", "three")]
    write("rows.jsonl", [{"messages": [*before, turn("assistant", str(i))]} for i in range(40)])
    with program.open_job(help="", argv=[*own_files, "--output", "job"]) as job:
        shape = job.first().transformer.config
        (row, *_), _ = job.rows("sft", shape)
        (prompt, *_), _ = job.rows("prompts", shape, reserve=job.config.max_tokens)
    assert row.prompt == prompt.prompt and row.learned is None


def test_settings_of_a_stage_that_is_skipped_are_named(own_files, capsys):
    tokenizer = Seq2SeqTokenizer.train([row["prompt"] for row in GOOD], vocab_size=300)
    save_seq2seq(Seq2Seq(Seq2SeqConfig(vocab_size=tokenizer.vocab_size)), "t5", tokenizer.token_ids)
    tokenizer.save("t5")
    with program.open_job(help="", argv=[*own_files, "--policy", "t5", "--skip_sft", "true", "--output", "job"]):
        assert "not read, because no such stage is trained: sft.steps\n" in capsys.readouterr().out
