"""`minirlhf data check`: every number worked by hand."""

import pytest

from minirlhf.data.formats import read_rows
from minirlhf.data.tools.inspect import contamination, duplicates, histogram, quantile, report, same_answers
from minirlhf.data.tools.texts import normalised, question, script_of, sentences_of, words_of
from minirlhf.model import ModelConfig, Transformer, save_pretrained
from minirlhf.text import Tokenizer
from minirlhf.text.checkpoint_tokenizer import template


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("请解释一下这个算法。", "Chinese"),
        ("请用 Python 写一个排序函数", "Chinese"),  # 10 letters of Han, 1 word of Latin
        ("この関数を説明してください。", "Japanese"),
        ("東京都の人口", "Japanese"),  # one kana among Han letters
        ("이 함수를 설명해 주세요.", "Korean"),
        ("اشرح هذه الدالة من فضلك", "Arabic"),
        ("Объясни эту функцию, пожалуйста.", "Cyrillic"),
        ("Please explain this function.", "Latin"),
        ("Bitte erkläre größere Maße.", "Latin"),
        ("Hello 你好 привет", "mixed"),  # 2 letters of 4 words
        ("Translate: 早上好", "Chinese"),  # 3 letters of 4 words: 75%
        ("Translate this: 早上好", "mixed"),  # 3 of 5: 60%
        ("12 + 30 = ?", "no letters"),
        ("", "no letters"),
    ],
)
def test_language_by_script(text, script):
    assert script_of(text) == script


def test_normalised_texts():
    assert normalised("  Ｈello,\n WORLD？! ") == normalised("hello, world") == "hello, world"
    assert normalised("1 + 1 =") != normalised("1 - 1 =")
    assert words_of("Don't 你好, R2D2") == ["don", "t", "你", "好", "r2d2"]
    assert sentences_of("One. Two!  Three？四。五") == ["One.", "Two!", "Three？", "四。", "五"]


def rows(*texts):
    return [{"prompt": p, "response": r, "line": i} for i, (p, r) in enumerate(texts, start=1)]


def test_duplicates_by_hand():
    given = rows(("a", "1"), ("A?", "1"), ("a", "1"), ("a", "2"))
    texts = [[row["prompt"], row["response"]] for row in given]
    assert duplicates(given, texts) == (1, [("1", "3")])
    assert duplicates(given, [map(normalised, row) for row in texts]) == (2, [("1", "2"), ("1", "3")])
    assert duplicates(given, [row[:1] for row in texts]) == (2, [("1", "3"), ("1", "4")])
    assert duplicates(given[:2], [["ab", "c"], ["a", "bc"]]) == (0, [])


def test_answers_under_several_questions():
    given = rows(("a", "yes"), ("b", "Yes."), ("c", "no"), ("c", "no"))
    assert same_answers(given, "sft") == (2, [("yes", 2)])


def test_histogram_and_quantiles_by_hand():
    lines = [line.split() for line in histogram([0, 1, 2, 3, 3, 9])]
    assert [line[:2] for line in lines] == [["0", "1"], ["1", "1"], ["2-3", "3"], ["4-7", "0"], ["8-15", "1"]]
    assert [len(line[2]) if len(line) > 2 else 0 for line in lines] == [10, 10, 30, 0, 10]
    assert [quantile(range(1, 101), part) for part in (0.5, 0.95, 1.0)] == [50, 95, 100]
    assert quantile([7], 0.5) == 7


def test_contamination_finds_a_planted_row(write, call):
    planted = "the quick brown fox jumps over the lazy dog and runs far away from here today"
    write("train.jsonl", [
        {"prompt": f"Question number {i}?", "response": f"Answer {i}."} for i in range(20)
    ] + [
        {"prompt": "Tell me a story", "response": f"Once, {planted.upper()}!"},
        {"prompt": "WHAT IS IT", "response": "a"},
    ])  # fmt: skip
    write("test.jsonl", [{"prompt": planted, "response": "x"}, {"prompt": "What is it?", "response": "b"}])
    found = contamination(read_rows("train.jsonl"), read_rows("test.jsonl"), 13)
    assert [(row.place, row.other) for row in found] == [("21", "1"), ("22", "2")]
    assert contamination(read_rows("train.jsonl"), read_rows("test.jsonl"), 17)[0].place == "22"  # it has 16 words
    code, out, _ = call("check", "train.jsonl", "--against", "test.jsonl")
    assert code == 0 and "rows that test.jsonl has too: 2 of 22" in out
    assert "line 22 as line 2 of test.jsonl: same question" in out


def test_a_system_turn_is_no_contamination():
    system = {
        "role": "system",
        "content": "You are a helpful assistant that answers in short and clear sentences only.",
    }
    row = {"prompt": "p", "prompt_turns": [system, {"role": "user", "content": "Hi"}]}
    assert question(row) == "Hi"


def test_lengths_in_tokens_and_a_context(call, write, tmp_path):
    tokenizer = Tokenizer.train(["some words"], 300)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, max_position_embeddings=16, **shape)
    save_pretrained(Transformer(config), tmp_path / "model", tokenizer.token_ids)
    tokenizer.save(tmp_path / "model")
    write("rows.jsonl", [{"prompt": "z" * n, "response": "q" * n} for n in (1, 3, 20)])
    # bytes as tokens, BOS and EOS: 4, 8 and 42 tokens; the prompts have 2, 4 and 21
    code, out, _ = call("check", "rows.jsonl", "--policy", "model", "--context", 16)
    assert code == 0 and "length in tokens, prompt and longest answer: median 8 95% 42 longest 42" in out
    assert "at a context of 16: 1 rows are too long; in 1 of them the prompt alone is" in out


def test_turns_that_the_template_refuses_are_named_and_have_no_length(monkeypatch, write, tmp_path):
    source = "{% if messages[0].content == 'bad' %}{{ raise_exception('a bad turn') }}{% endif %}"
    source += "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    monkeypatch.setattr(template, "BUILT_IN", {*template.BUILT_IN, source})  # no child process
    tokenizer = Tokenizer.train(["some words"], 300).with_template(source)
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "r"}] for text in ("good", *["bad"] * 4)
    ]
    write("rows.jsonl", [{"messages": each} for each in turns])
    lines = report(read_rows(tmp_path / "rows.jsonl"), tokenizer, 1).splitlines()
    assert sum("a bad turn" in line for line in lines) == 3  # of four
    assert "at a context of 1: 1 rows are too long; in 1 of them the prompt alone is" in lines


def test_places_in_several_files(call, write):
    for name in ("a.jsonl", "b.jsonl"):
        write(name, [{"prompt": "p", "response": "r"}])
    assert "rows that stand twice: 1 (line 1 of b.jsonl as line 1 of a.jsonl)" in call("check", "a.jsonl", "b.jsonl")[1]


def test_the_report_names_refused_rows_and_duplicates(call, write):
    write("rows.jsonl", [
        {"prompt": "p", "response": "r"}, {"prompt": "p", "response": "r"}, {"prompt": " ", "response": "s"},
        *[{"prompt": "q", "response": ""}] * 4,
    ])  # fmt: skip
    code, out, _ = call("check", "rows.jsonl")
    assert code == 0
    for line in (
        "3 kept, 4 refused",
        "refused 4 times: response: empty response",
        "empty prompts: 1",
        "rows that stand twice: 1 (line 2 as line 1)",
        "prompts that stand twice: 1 (line 2 as line 1)",
        "language by script: Latin 3",
    ):
        assert line in out
