"""`minirlhf data sample`, `pairs` and `augment`."""

import json
import random
from collections import Counter

import pytest

from minirlhf.data.tools.augment import CHANGES, augmented
from minirlhf.data.tools.manifest import as_line, write_new
from minirlhf.data.tools.pairs import DAMAGES, judged, pairs_of
from minirlhf.data.tools.texts import words_of
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Transformer, save_pretrained
from minirlhf.tasks import questions_zh
from minirlhf.text import Tokenizer

TEXT = "One two three. Four five six! Seven eight nine?"
ROWS = [
    {"prompt": f"Question {i}", "response": f"Sentence {i} is here. Sentence {i + 50} is there.", "line": i}
    for i in range(20)
]


def test_damages_keep_or_lose_what_they_say():
    words = Counter(TEXT.split())
    for seed in range(50):
        rng = random.Random(seed)
        shuffled = DAMAGES["shuffled"](TEXT, rng, ())
        assert Counter(shuffled.split()) == words and shuffled != TEXT
        truncated = DAMAGES["truncated"](TEXT, rng, ())
        assert TEXT.startswith(truncated) and 1 <= len(truncated.split()) <= 8
        corrupted = DAMAGES["corrupted"](TEXT, rng, ())  # 9 words: one fault
        assert abs(len(corrupted.split()) - 9) <= 1 and corrupted != TEXT
        assert {*words_of(corrupted)} <= {*words_of(TEXT)}
    assert DAMAGES["shuffled"]("一。二。", random.Random(0), ()) == "二。一。"
    assert DAMAGES["shuffled"]("Only one sentence.", random.Random(0), ()) is None
    assert DAMAGES["truncated"]("two words", random.Random(0), ()) is None
    assert DAMAGES["corrupted"]("One.", random.Random(0), ()) is None
    assert len(DAMAGES["corrupted"]("人工智能模型", random.Random(0), ())) in (5, 6, 7)


def test_pairs_by_kind():
    found, left_out = pairs_of(ROWS, tuple(DAMAGES), 0)
    assert Counter(row["damage"] for row in found) == dict.fromkeys(DAMAGES, 20) and left_out == 0
    by_prompt = {row["prompt"]: row["response"] for row in ROWS}
    for row in found:
        assert row["chosen"] == by_prompt[row["prompt"]] != row["rejected"] and "response" not in row
        assert (row["rejected"] in by_prompt.values()) == (row["damage"] == "other")
    assert pairs_of(ROWS, tuple(DAMAGES), 0)[0] == found != pairs_of(ROWS, tuple(DAMAGES), 1)[0]
    with pytest.raises(InputError, match="needed some of corrupted"):
        pairs_of(ROWS, ("broken",), 0)


def test_the_other_answer_belongs_to_another_question():
    same = [{"prompt": "p", "response": str(i), "line": i} for i in range(5)]
    assert pairs_of(same, ("other",), 0) == ([], 5)


def test_the_judge_chooses_the_higher_score():
    row = {"prompt": "p", "response": "x", "line": 1}
    assert judged(row, ["a", "b"], [0.5, 2.0]) == {
        "prompt": "p", "line": 1, "chosen": "b", "rejected": "a", "gap": 1.5,
    }  # fmt: skip
    assert judged(row, ["a", "b"], [1.0, 1.0]) is None and judged(row, ["a", " a"], [0.0, 1.0]) is None


def test_pairs_of_two_samples(call, write, read, tmp_path):
    tokenizer = Tokenizer.train(["some words"], 300)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, max_position_embeddings=32, **shape)
    save_pretrained(Transformer(config), tmp_path / "model", tokenizer.token_ids)
    tokenizer.save(tmp_path / "model")
    (tmp_path / "my.py").write_text(
        "def length(prompts, completions, rows):\n    return [len(c) for c in completions]\n"
    )
    write("rows.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(8)])
    flags = "--policy", "model", "--reward", "my.py:length", "--max_tokens", 8, "--device", "cpu"
    code, out, err = call("pairs", "rows.jsonl", *flags, "--output", "pairs.jsonl")
    rows = read("pairs.jsonl")
    assert code == 0 and rows and f"{8 - len(rows)} prompts left out" in out, err
    assert all(len(row["chosen"]) - len(row["rejected"]) == row["gap"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("case", "Explain it.", "explain it."),
        ("ending", "Is it so?", "Is it so"),
        ("ending", "对吗？", "对吗"),
        ("width", "你好，世界！", "你好,世界!"),
        ("typo", "a big house", "a big hosue"),  # the single long word; two inner places: o-u or u-s
        ("typo", "07 + 35 =", "07 + 35 ="),
        ("typo", "r2d2x and v10000", "r2d2x and v10000"),
    ],
)
def test_changes_by_hand(change, before, after):
    found = {CHANGES[change](before, random.Random(seed)) for seed in range(20)}
    assert after in found and (len(found) == 1 or change == "typo")


def test_only_the_last_user_turn_changes():
    turns = [{"role": "system", "content": "S."}, {"role": "user", "content": "A."},
             {"role": "assistant", "content": "B."}, {"role": "user", "content": "C."}]  # fmt: skip
    row = {"prompt": "...", "prompt_turns": turns, "response": "D.", "line": 1}
    (new,) = augmented([row], ("ending",), 0)
    assert [turn["content"] for turn in new["prompt_turns"]] == ["S.", "A.", "B.", "C"]
    assert new["prompt"].endswith("User:\nC\n\nAssistant:\n") and new["response"] == "D."
    assert augmented([row | {"prompt_turns": [{"role": "system", "content": "s."}]}], ("ending",), 0) == []
    for changes in ([], ["ending", "nothing"]):
        with pytest.raises(
            InputError, match="--changes: needed some of typo, case, ending, width, got '(none|nothing)'"
        ):
            augmented([row], changes, 0)
    assert augmented([{"prompt": "```Code```.", "response": "r", "line": 1}], ("ending", "case"), 0) == []


def test_half_a_surrogate_pair_is_written_as_an_escape_and_letters_stay_readable():
    assert as_line({"a": "é 中"}) == '{"a": "é 中"}\n'
    assert as_line({"a": "é\ud800"}) == '{"a": "\\u00e9\\ud800"}\n'


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    write_new(path, b"first")
    with pytest.raises(InputError, match=f"^{path}: needed a file that can be made, got: File exists"):
        write_new(path, b"second")
    assert path.read_bytes() == b"first" and [*path.parent.iterdir()] == [path]


def test_augmented_files_name_their_change(call, write, read):
    write("rows.jsonl", [{"prompt": "Explain gravity.", "response": "It pulls."}])
    code, out, _ = call("augment", "rows.jsonl", "--changes", "case,ending", "--output", "more.jsonl")
    assert code == 0 and "2 new rows" in out and "more.jsonl: 3 rows" in out
    assert [(row["prompt"], row.get("change")) for row in read("more.jsonl")] == [
        ("Explain gravity.", None), ("explain gravity.", "case"), ("Explain gravity", "ending"),
    ]  # fmt: skip


def test_chinese_answers_are_true_and_wrong_answers_are_not():
    held_out = {row["prompt"] for row in questions_zh.questions(held_out=True)}
    sft = questions_zh.sft_rows(300, 0)
    assert len({row["prompt"] for row in sft}) == 300 and not {row["prompt"] for row in sft} & held_out
    asked = {row["prompt"]: questions_zh.answer(row["about"], row["asks"]) for row in questions_zh.all_questions()}
    assert len(asked) == len(questions_zh.all_questions()) > 5000
    assert all(asked[row["prompt"]] == row["response"] for row in sft)
    pairs = questions_zh.preference_rows(300, 0, held_out=True)
    assert all(asked[row["prompt"]] == row["chosen"] != row["rejected"].strip() != "" for row in pairs)
    assert {row["prompt"] for row in pairs} <= held_out
    assert questions_zh.answer(["栈"], "trait") == "栈的特点是只在一端放入和取出。"


def test_samples_are_files_that_the_tools_read(call, read, tmp_path):
    code, out, _ = call("sample", "--rows", "20", "--output", "sample")
    names = {path.name for path in (tmp_path / "sample").glob("*.jsonl")}
    assert code == 0 and len(names) == 11 and "questions_zh-sft.jsonl" in names
    manifest = json.loads((tmp_path / "sample/questions_zh-sft.jsonl.manifest.json").read_text())
    assert manifest["sources"] == [{"file": "questions_zh", "task": "questions_zh", "part": "sft"}]
    code, out, _ = call("check", "sample/questions_zh-pairs.jsonl")
    assert code == 0 and "20 kept, 0 refused" in out and "language by script: Chinese 20" in out
    assert call("sample", "reviewz")[0] == 2 and call("sample", "--output", "sample")[0] == 2
