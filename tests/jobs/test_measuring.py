"""Several models on the same rows: prompts and answers of a file, chat templates, rows left out."""

import pytest

from minirlhf.data.formats import Dataset
from minirlhf.errors import InputError
from minirlhf.jobs import measuring
from minirlhf.jobs.measuring import Entrant, Rows, encode_answers, encode_prompts, rows_of, short_names
from minirlhf.model import ModelConfig
from minirlhf.text import Tokenizer

TURNS = [{"role": "user", "content": "is it good?"}]


def dataset(kind, rows, path="rows.jsonl"):
    return Dataset(path, kind, "test", [{"line": i, **row} for i, row in enumerate(rows, start=1)], [])


@pytest.fixture(scope="module")
def entrant():
    tokenizer = Tokenizer.train(["<|im_start|>user\nthe lamp is good.<|im_end|>\n"] * 8, 300)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = tokenizer.with_template("chatml")
    return Entrant("chat", "chat", tokenizer, ModelConfig(tokenizer.vocab_size, max_position_embeddings=64))


def test_short_names():
    assert short_names(["runs/a/sft", "runs/b/sft"]) == ["a/sft", "b/sft"]
    assert short_names(["runs/ppo-001", "models/sft"]) == ["ppo-001", "sft"]
    assert short_names(["sft", "runs/sft"]) == ["sft", "runs/sft"]
    assert short_names(["/models/x"]) == ["x"] and short_names(["."]) == ["."] and short_names([]) == []


def test_all_answers_of_a_prompt_are_its_references():
    rows = rows_of([dataset("sft", [{"prompt": p, "response": r} for p, r in ["xa", "yb", "xc", "xa"]])])
    assert [row["prompt"] for row in rows.prompts] == ["x", "y"] and rows.references == [["a", "c"], ["b"]]
    assert [row["response"] for row in rows.texts] == ["a", "b", "c", "a"] and rows.pairs == []


def test_kinds_of_rows():
    pairs = rows_of([dataset("preference", [{"prompt": "x", "chosen": "a", "rejected": "b"}])])
    assert pairs.references == [["a"]] and pairs.texts[0]["response"] == "a" and len(pairs.pairs) == 1
    liked = [{"prompt": "x", "response": "a", "label": True}, {"prompt": "x", "response": "b", "label": False}]
    assert rows_of([dataset("unpaired", liked)]).references == [["a"]]
    text = rows_of([dataset("text", [{"prompt": "", "response": "a b"}])])
    assert text.prompts == [] and text.texts[0]["response"] == "a b"
    bare = rows_of([dataset("prompt", [{"prompt": "x"}])])
    assert bare.references == [[]] and bare.texts == []


def test_rows_of_several_files_keep_their_file():
    one, two = (dataset("prompt", [{"prompt": p}], f"{p}.jsonl") for p in "xy")
    rows = rows_of([one, two])
    rows.leave_out(rows.prompts[1], "model", "why")
    assert rows.left_out == ["y.jsonl: line 1: model: why"]


def test_a_chat_template_writes_text_as_a_user_turn_unless_it_is_to_stay(entrant, capsys):
    rows = [{"prompt": "is it good?", "line": 1}]
    (turns,), (plain,) = (encode_prompts(entrant, rows, wrap) for wrap in ("turns", "plain"))
    assert turns.prompt == entrant.tokenizer.encode_turns(TURNS)[0]
    assert plain.prompt == entrant.tokenizer.encode_prompts(["is it good?"])[0]
    assert "chat: 1 prompts are text: the chat template writes each as a user turn" in capsys.readouterr().out


def test_only_the_text_of_an_answer_is_counted(entrant):
    (answer,) = encode_answers(entrant, [{"prompt": "p", "prompt_turns": TURNS, "response": "the lamp."}], "turns")
    assert entrant.tokenizer.decode([i for i, counted in zip(answer.ids, answer.counted, strict=True) if counted]) == (
        "the lamp."
    )
    assert answer.size == len("the lamp.") and not answer.counted[-1]  # the end token is no text


def test_an_answer_of_several_turns_is_counted_as_the_template_writes_it(entrant):
    turns = [
        {"role": "assistant", "content": "I look."},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "good."},
    ]
    row = {"prompt": "p", "prompt_turns": TURNS, "response": "I look.\n\ngood.", "response_turns": turns}
    (answer,) = encode_answers(entrant, [row], "turns")
    counted = [i for i, is_counted in zip(answer.ids, answer.counted, strict=True) if is_counted]
    text = entrant.tokenizer.backend.decode(counted, False)
    assert text == "I look.<|im_end|>good." and answer.size == len(text)


def test_a_long_prompt_is_left_out_and_named(entrant):
    rows = Rows([{"prompt": "good " * 80, "line": 3}, {"prompt": "x", "line": 4}], [[], []], [], [], "line")
    kept, (encoded,) = measuring.readable_by_all([entrant], rows, rows.prompts, encode_prompts, "turns")
    assert kept == [1] and len(encoded) == 1
    assert rows.left_out[0].startswith("line 3: chat: the prompt has") and "the context holds 64" in rows.left_out[0]


def test_work_that_refuses_some_rows_is_done_for_the_others():
    def work(indices):
        if 2 in indices:
            raise InputError("not 2")
        return [10 * i for i in indices]

    rows = Rows([], [], [], [], "row")
    sources = [{"line": i} for i in range(4)]
    assert measuring.known_or_named(work, rows, sources, "m", None) == [0, 10, None, 30]
    assert rows.left_out == ["row 2: m: not 2"]
    assert measuring.known_or_named(lambda indices: work([2]), rows, sources[:2], "m", None) == [None, None]
    assert measuring.known_or_named(work, rows, [], "m", None) == []
