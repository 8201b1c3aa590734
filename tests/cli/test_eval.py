"""`minirlhf eval` with tiny models: the numbers of its files, the rows left out, the requests it refuses."""

import errno
import json
import math
import os
import sys
from types import ModuleType

import pytest
import torch

import minirlhf.cli
from minirlhf.cli import eval as command
from minirlhf.errors import InputError
from minirlhf.evaluation.bleu import bleu
from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.likelihood import likelihoods
from minirlhf.model import ModelConfig, RewardModel, Transformer, load_policy, save_pretrained
from minirlhf.rewards.answers import is_right
from minirlhf.text import Tokenizer

SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
PAIRS = [
    {"prompt": f"{n} lamp:", "chosen": f"the lamp {n} is good.", "rejected": "bad", "category": "lamps"}
    for n in range(4)
]
FUNCTIONS = """
def length(completions):
    return [len(text) for text in completions]
def first(prompts, firsts, seconds, rows):
    return [1.0] * len(prompts)
def broken(completions):
    return [len(text) / 0 for text in completions]
def picky(prompts, completions, rows):
    if any(prompt.startswith("2") for prompt in prompts):
        raise ValueError("no opinion on 2")
    return [1.0 for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    texts = ["the lamp is good. 1 2 3 bad"] * 8
    for seed, (name, vocabulary, context) in enumerate(
        [("a", 280, 64), ("b", 270, 64), ("c", 280, 24), ("rm", 280, 64)]
    ):
        torch.manual_seed(seed)
        tokenizer = Tokenizer.train(texts if name != "b" else ["a lamp"] * 8, vocabulary)
        shape = ModelConfig(tokenizer.vocab_size, hidden_size=16, **SIZE, max_position_embeddings=context)
        model = RewardModel(Transformer(shape)) if name == "rm" else Transformer(shape)
        save_pretrained(model, folder / name, tokenizer.token_ids)
        tokenizer.save(folder / name)
    write(folder / "pairs.jsonl", PAIRS)
    (folder / "functions.py").write_text(FUNCTIONS)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(words, output):
    """-> (eval.json, lines of samples.jsonl) of a command."""
    command.main([*words.split(), "--output", str(output), "--max_tokens", "8"])
    samples = output / "samples.jsonl"
    lines = samples.read_text(encoding="utf-8").splitlines() if samples.exists() else []
    return json.loads((output / "eval.json").read_text()), [json.loads(line) for line in lines]


def test_the_numbers_are_those_of_the_samples(tmp_path, capsys):
    found, lines = run("a b --data pairs.jsonl --reward functions.py:length --samples 2", tmp_path / "out")
    assert [line["model"] for line in lines] == ["a", "a", "b", "b"] * 4
    assert lines[0].keys() == {"prompt", "completion", "model", "line", "category", "reward"}
    assert [line["line"] for line in lines[::4]] == [1, 2, 3, 4]
    scores = {name: [len(x["completion"]) for x in lines if x["model"] == name] for name in "ab"}
    assert found["baseline"] == "a"
    for name, own in found["models"].items():
        texts = [line["completion"] for line in lines if line["model"] == name]
        refs = [row["chosen"] for row in PAIRS for _ in range(2)]
        assert own["prompts"] == 4 and own["bleu"] == pytest.approx(bleu(texts, refs))
        assert own["reward"] == own["characters"] == sum(scores[name]) / 8
    wins = [(b > a) + 0.5 * (b == a) for a, b in zip(scores["a"], scores["b"], strict=True)]
    rates = [(x + y) / 2 for x, y in zip(wins[::2], wins[1::2], strict=True)]
    rate = found["models"]["b"]["reward_wins"]
    assert rate["rate"] == sum(rates) / 4 and tuple(rate["interval"]) == bootstrap(rates)
    assert "reward_wins" not in found["models"]["a"]
    assert found["reward_model"]["accuracy"] == 1.0 and found["reward_model"]["by_length"].keys() == {"longer"}
    out = capsys.readouterr().out
    assert "by reward against a" in out and "bits per byte" in out and (tmp_path / "out/table.txt").read_text() in out
    side_by_side = (tmp_path / "out/side_by_side.txt").read_text(encoding="utf-8")
    assert side_by_side.count("line 1 =") == 1 and side_by_side.count("--- b, reward") == 8


def test_the_likelihood_is_that_of_the_answers_without_end_token(tmp_path):
    found, _ = run("a --data pairs.jsonl", tmp_path / "out")
    policy, tokenizer = load_policy("a"), Tokenizer.load("a")
    texts = [(tokenizer.encode_prompts([row["prompt"]])[0], tokenizer.encode(row["chosen"])) for row in PAIRS]
    rows = [(prompt + answer, [False] * len(prompt) + [True] * len(answer)) for prompt, answer in texts]
    nll = sum(nll for nll, _ in likelihoods(policy, rows))
    own = found["models"]["a"]
    size = sum(len(row["chosen"].encode()) for row in PAIRS)
    assert own["text_tokens"] == sum(len(answer) for _, answer in texts) and own["text_bytes"] == size
    assert own["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)
    assert own["perplexity"] == pytest.approx(math.exp(nll / own["text_tokens"]))


def test_a_prompt_that_one_model_cannot_read_is_left_out_for_all_and_named(tmp_path, capsys):
    write(tmp_path / "rows.jsonl", [{"prompt": "lamp"}, {"prompt": "lamp " * 30}, {"prompt": "good"}])
    found, lines = run(f"a c --data {tmp_path}/rows.jsonl", tmp_path / "out")
    assert [own["prompts"] for own in found["models"].values()] == [2, 2]
    assert {line["prompt"] for line in lines} == {"lamp", "good"} and found["left_out"] == 1
    (line,) = (tmp_path / "out/left_out.txt").read_text().splitlines()
    assert line.startswith("line 2: c: the prompt has") and line.endswith("the context holds 24")
    assert "left out: 1, such as line 2" in capsys.readouterr().out
    assert not {"bleu", "perplexity"} & found["models"]["a"].keys()  # no answers, so nothing is averaged over nothing


def test_a_long_text_is_measured_in_windows(tmp_path):
    write(tmp_path / "rows.jsonl", [{"prompt": "", "response": "the lamp is good. " * 20}])
    found, _ = run(f"c --data {tmp_path}/rows.jsonl", tmp_path / "one")
    more, _ = run(f"c --data {tmp_path}/rows.jsonl --overlap 12", tmp_path / "two")
    assert found["models"]["c"]["text_tokens"] == more["models"]["c"]["text_tokens"] > 24
    assert found["models"]["c"]["perplexity"] != more["models"]["c"]["perplexity"]


def test_a_judge_that_prefers_the_first_answer_decides_nothing(tmp_path):
    found, _ = run("a b --data pairs.jsonl --judge functions.py:first --baseline b", tmp_path / "out")
    assert found["baseline"] == "b" and found["models"]["a"]["judge_wins"]["rate"] == 0.5
    assert found["models"]["a"]["judge_bias"] == {"first": 1.0, "changed": 1.0}


@pytest.mark.parametrize("judge", ["rm", "functions.py:length", "longer"])
def test_judges_of_scores_have_no_bias(judge, tmp_path):
    found, lines = run(f"a --baseline b --data pairs.jsonl --judge {judge}", tmp_path / "out")
    assert found["models"]["a"]["judge_bias"] == {"first": pytest.approx(0.5), "changed": 0.0}
    if judge != "rm":
        texts = [line["completion"] for line in lines]
        wins = [win(len(a), len(b)) for a, b in zip(texts[::2], texts[1::2], strict=True)]
        assert found["models"]["a"]["judge_wins"]["rate"] == sum(wins) / 4


def win(a, b):
    return (a > b) + 0.5 * (a == b)


def test_answers_that_can_be_checked(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", [{"prompt": "1 + 1 =", "answer": 2}, {"prompt": "why?"}])
    monkeypatch.setattr("minirlhf.evaluation.generated.is_right", lambda text, answer: answer == 2)
    found, _ = run(f"a --data {tmp_path}/rows.jsonl --samples 2", tmp_path / "out")
    own = found["models"]["a"]
    assert own["answers"] == 1 and own["exact_match"] == own["pass@1"] == own["pass@2"] == 1.0 and "pass@4" not in own


def test_a_reward_that_refuses_a_row_leaves_its_answers_out(tmp_path):
    found, lines = run("a b --data pairs.jsonl --reward functions.py:picky", tmp_path / "out")
    assert found["models"]["a"]["scored"] == 3 and found["models"]["b"]["reward_wins"]["prompts"] == 3
    assert ["reward" in line for line in lines] == [True] * 4 + [False] * 2 + [True] * 2
    left_out = (tmp_path / "out/left_out.txt").read_text()
    assert "line 3: a: reward: reward functions.py:picky: functions.py" in left_out and "no opinion on 2" in left_out
    assert found["reward_model"]["pairs"] == 3


def test_several_rewards_are_summed_as_in_training(tmp_path):
    rows = [{"prompt": f"{n} lamp:", "answer": 2} for n in range(2)]
    write(tmp_path / "rows.jsonl", rows)
    flags = f"--data {tmp_path}/rows.jsonl --reward functions.py:length,exact_match --reward_weights 2,-1"
    _, lines = run(f"a {flags}", tmp_path / "out")
    right = [is_right(line["completion"], 2) for line in lines]
    assert [line["reward"] for line in lines] == [
        2 * len(x["completion"]) - r for x, r in zip(lines, right, strict=True)
    ]


def test_samples_outlive_a_scoring_that_is_stopped(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.measuring, "scored", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("a --data pairs.jsonl --reward functions.py:length", tmp_path / "out")
    assert len((tmp_path / "out/samples.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("config.toml", "samples.jsonl", "side_by_side.txt")
    ]


def test_a_full_disk_is_an_error_of_the_user(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="config.toml: needed to write it, got: No space left"):
        run("a --data pairs.jsonl", tmp_path / "out")


def test_kl_to_a_reference(tmp_path, capsys):
    found, _ = run("a b --data pairs.jsonl --reference a", tmp_path / "out")
    assert found["models"]["a"]["kl"] == pytest.approx(0, abs=1e-5) and found["models"]["b"]["kl"] is None
    assert "b: no KL, because the tokenizer of the reference a is another" in capsys.readouterr().out


def test_a_reward_model_alone(tmp_path):
    found, lines = run("--data pairs.jsonl --reward rm", tmp_path / "out")
    assert found["reward_model"]["pairs"] == 4 and found["models"] == {} and lines == []


def test_the_folder_is_fresh(tmp_path, monkeypatch, folder):
    (tmp_path / "runs/eval-007").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    command.main([str(folder / "a"), "--data", str(folder / "pairs.jsonl"), "--max_tokens", "2"])
    assert (tmp_path / "runs/eval-008/eval.json").exists()
    (tmp_path / "file").write_text("")
    for output, message in (
        ("runs/eval-008", "holds files already; choose another"),
        ("file", "not a writable folder"),
    ):
        with pytest.raises(InputError, match=message):  # before anything is read
            command.main([str(folder / "a"), "--data", "none.jsonl", "--output", output])


def test_a_model_with_broken_weights_is_named_and_the_others_are_measured(tmp_path, capsys, folder):
    broken = load_policy("a").transformer
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    save_pretrained(broken, tmp_path / "broken")
    Tokenizer.load("a").save(tmp_path / "broken")
    found, _ = run(f"a {tmp_path}/broken --data pairs.jsonl --reward functions.py:length", tmp_path / "out")
    assert "not finite" in found["models"]["broken"]["error"] and found["models"]["a"]["prompts"] == 4
    assert "broken: not measured: " in capsys.readouterr().out
    with pytest.raises(InputError, match="no model could be measured: .* not finite"):
        run(f"{tmp_path}/broken --data pairs.jsonl", tmp_path / "none")


def test_a_reward_that_scores_no_pair_is_an_error_if_nothing_else_is_measured(tmp_path):
    write(tmp_path / "rows.jsonl", [{**row, "prompt": row["prompt"].replace("0", "2")} for row in PAIRS[:3:2]])
    with pytest.raises(InputError, match="no opinion on 2"):
        run(f"--data {tmp_path}/rows.jsonl --reward functions.py:picky", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data pairs.jsonl", "needed a model first, or rows of pairs and --reward"),
        ("a a/ --data pairs.jsonl", "needed each model once"),
        ("rm --data pairs.jsonl", "needed a language model, got a RewardModel"),
        ("a --data pairs.jsonl --reward functions.py:length,", "needed a name before and after each comma"),
        ("a --data pairs.jsonl --reward exact_match --reward_weights 1,2", "needed a weight for each of the 1 rewards"),
        ("a --data pairs.jsonl --reward nowhere", "nowhere: needed a reward model's folder or FILE.py:FUNCTION"),
        ("a --data pairs.jsonl --judge longer", "--judge: needed two models"),
        ("a --data pairs.jsonl --reward a", "needed a reward model, got a Transformer"),
        ("a --data pairs.jsonl --reward functions.py:broken", "line 7: ZeroDivisionError"),
        ("a b --data pairs.jsonl --judge functions.py:second", "needed a function of functions.py, got second"),
        ("a --data pairs.jsonl --greedy --samples 2", "greedy samples of a prompt are all equal"),
        ("a --data pairs.jsonl --greedy --reference b", "greedy samples have no KL"),
        ("a --data pairs.jsonl --overlap 65", "a has a context of 64, got 65"),
        ("a --data pairs.jsonl --samples 0", "samples must be at least 1"),
        ("a", "--data: needed"),
        ("a, --data pairs.jsonl", "needed a model before and after each comma, got 'a,'; drop a comma"),
        ("a,,b --data pairs.jsonl", "needed a model before and after each comma"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_and_leave_no_folder(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        command.main([*words.split(), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_people_are_asked_by_a_file_of_their_own(monkeypatch):
    called = []
    people = ModuleType("minirlhf.cli.eval_human")
    people.main = called.append
    monkeypatch.setitem(sys.modules, people.__name__, people)
    monkeypatch.setattr(minirlhf.cli, "eval_human", people, raising=False)
    command.main(["human", "A.jsonl"])
    assert called == [["A.jsonl"]]


def test_a_word_with_commas_names_several_models_unless_it_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    monkeypatch.setenv("HOME", "/me")
    assert command.named_models(["a,b", "c, ~/d", "e"]) == ["a,b", "c", "/me/d", "e"]
