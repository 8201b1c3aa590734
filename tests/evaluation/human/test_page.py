"""The page for people: rows in, one blinded HTML file out. test_browser.py opens it."""

import json
import re
from collections import Counter

import pytest

from minirlhf.errors import InputError
from minirlhf.evaluation.human.page import compare, pack_key, page_of, read_answers, unpack_key

from ...html import data_of


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name, rows): a JSONL file; paths are relative, as a user types them."""
    monkeypatch.chdir(tmp_path)

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def row(prompt, completion, **more):
    return {"prompt": prompt, "completion": completion, **more}


def test_files_are_matched_by_prompt_not_by_place(write):
    a = write("a.jsonl", [row("p", "p of a"), row("q", "q of a")])
    b = write("b.jsonl", [{"prompt": "q", "response": "q of b"}, {"prompt": "p", "response": "p of b"}])
    found = compare(read_answers([a, b])[0])
    assert found.models == ["a.jsonl", "b.jsonl"] and not found.notes
    assert {(each.prompt, frozenset(each.answers)) for each in found.rows} == {
        ("p", frozenset({"p of a", "p of b"})),
        ("q", frozenset({"q of a", "q of b"})),
    }
    for each in found.rows:  # the models belong to the answers, on whichever side they are
        assert [text[-1] for text in each.answers] == ["ab"[model] for model in each.models]


def test_a_prompt_of_one_model_and_identical_answers_are_named_and_left_out(write):
    a = write("a.jsonl", [row("p", "1"), row("same", "x"), row("only a", "1")])
    b = write("b.jsonl", [row("p", "2"), row("same", "x"), row("only b", "1"), row("also b", "1")])
    found = compare(read_answers([a, b])[0])
    assert [each.prompt for each in found.rows] == ["p"]
    assert found.notes == [
        "a.jsonl: 1 prompt is left out, because no other model has an answer: 'only a'",
        "b.jsonl: 2 prompts are left out, because no other model has an answer: 'only b', 'also b'",
        "a.jsonl and b.jsonl: 1 prompt is not shown, because the two answers are identical: 'same'",
    ]
    assert found.identical == [[0, 1, 1]]


def test_three_models_make_three_pairs_of_each_prompt(write):
    files = [write(f"{name}.jsonl", [row(p, f"{p} of {name}") for p in "pqr"]) for name in "abc"]
    found = compare(read_answers(files)[0])
    assert Counter(tuple(sorted(each.models)) for each in found.rows) == {(0, 1): 3, (0, 2): 3, (1, 2): 3}


def test_models_of_one_file_are_told_apart_by_the_key_model(write):
    mixed = write("all.jsonl", [row("p", "1", model="base"), row("p", "2", model="tuned")])
    assert compare(read_answers([mixed])[0]).models == ["base", "tuned"]
    files = [write(name, [row("p", name, model="policy")]) for name in ("a.jsonl", "b.jsonl")]
    assert compare(read_answers(files)[0]).models == ["policy (a.jsonl)", "policy (b.jsonl)"]


def test_several_answers_to_one_prompt_are_compared_one_by_one(write):
    a = write("a.jsonl", [row("p", "1"), row("p", "2"), row("p", "3")])
    b = write("b.jsonl", [row("p", "4"), row("p", "5")])
    found = compare(read_answers([a, b])[0])
    assert {frozenset(each.answers) for each in found.rows} == {frozenset("14"), frozenset("25")}
    assert found.notes == ["a.jsonl: 1 prompt is left out, because no other model has an answer: 'p'"]


def test_the_page_names_no_model_and_no_file_and_balances_the_sides(write):
    files = [
        write(f"{name}.jsonl", [row(f"p{n}", f"{n}{'+' * k}", model=name, category="math") for n in range(200)])
        for k, name in enumerate(("zebra", "walrus"))
    ]
    found = compare(read_answers(files)[0])
    html = page_of(found)
    assert not re.search("zebra|walrus|math", html)
    assert 70 < sum(each.models == (0, 1) for each in found.rows) < 130  # a coin: 100 +- 7
    key = unpack_key(data_of(html)["key"])
    assert key["models"] == ["zebra", "walrus"] and key["categories"] == ["math"] * 200
    for pair, shown in zip(key["pairs"], data_of(html)["comparisons"], strict=True):
        assert ["+" in text for text in shown["answers"]] == [model == 1 for model in pair]


def test_the_same_files_and_seed_make_the_same_page(write):
    files = [write(name, [row(f"{n}", f"{n}{name}") for n in range(20)]) for name in ("a.jsonl", "b.jsonl")]
    pages = [page_of(compare(read_answers(files)[0], seed=seed)) for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]
    assert data_of(pages[0])["page"] != data_of(pages[2])["page"]  # progress of one is not taken for the other's


def test_max_rows_limits_the_prompts_and_is_named(write):
    files = [write(name, [row(f"{n}", f"{n}{name}") for n in range(20)]) for name in ("a.jsonl", "b.jsonl")]
    found = compare(read_answers(files)[0], max_rows=5)
    assert len(found.rows) == 5 and found.notes == ["5 of 20 prompts are taken, at random"]
    write("a.jsonl", [row(f"{n}", "a") for n in range(40)])  # 20 of them have no second answer
    found = compare(read_answers(files)[0], max_rows=20)
    assert len(found.rows) == 20 and not any("at random" in note for note in found.notes)


@pytest.mark.parametrize(("alone", "end"), [(1, "'q0'"), (5, "'q3', 'q4'"), (6, "'q3', 'q4' and 1 more")])
def test_at_most_five_prompts_that_are_left_out_are_named(write, alone, end):
    files = [write("a.jsonl", [row("p", "one")] + [row(f"q{n}", "x") for n in range(alone)])]
    found = compare(read_answers([*files, write("b.jsonl", [row("p", "two")])])[0])
    (note,) = found.notes
    assert note.startswith(f"a.jsonl: {alone} prompt") and note.endswith(end)


def test_the_comparisons_stand_in_a_random_order(write):
    files = [write(name, [row(f"{n:02}", name) for n in range(20)]) for name in ("a.jsonl", "b.jsonl")]
    prompts = [each.prompt for each in compare(read_answers(files)[0]).rows]
    assert prompts != sorted(prompts) == [f"{n:02}" for n in range(20)]


STRANGE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>",
    "&lt;",
    "中文\n第二行",
    "\u2028\u2029",
    "a\0b",
    "'\"\\",
]


def test_texts_of_strangers_stay_texts(write):
    files = [write(name, [row(text, text + name) for text in STRANGE]) for name in ("a.jsonl", "b.jsonl")]
    html = page_of(compare(read_answers(files)[0]), question="<b>?</b>")
    data = data_of(html)
    assert {each["prompt"] for each in data["comparisons"]} == set(STRANGE)
    assert data["question"] == "<b>?</b>"
    assert html.count("<script") == 2 and html.count("</script") == 2 and "<!--<" not in html


def test_half_a_surrogate_pair_is_written_as_a_browser_shows_it(write):
    files = [write(name, [row("\ud800 \U0001f600", name)]) for name in ("a.jsonl", "b.jsonl")]
    html = page_of(compare(read_answers(files)[0]))
    html.encode()
    assert data_of(html)["comparisons"][0]["prompt"] == "\ufffd \U0001f600"


def test_500_comparisons_of_long_texts_are_a_page_under_5_mb(write):
    prompt, answer = "如何学习强化学习？" * 20, "答案很长。" * 200  # 180 and 1,000 letters
    files = [write(name, [row(f"{n}{prompt}", answer + name) for n in range(500)]) for name in ("a.jsonl", "b.jsonl")]
    assert len(page_of(compare(read_answers(files)[0])).encode()) < 5_000_000


def test_columns_that_are_not_read_are_named(write):
    a = write("a.jsonl", [row("p", "1", score=1.0, system="be short"), row("q", "1", step=2)])
    assert read_answers([a])[1] == ["a.jsonl: not read: score, step, system"]


NEEDED = "needed prompt and completion (or response), each a text, got "


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"prompt": "p"}, NEEDED + "{'prompt': 'p'}"),
        ({"completion": "p"}, NEEDED + "{'completion': 'p'}"),
        ({"text": "p"}, NEEDED + "['text']"),
        ({"prompt": "p", "completion": 3}, NEEDED + "{'prompt': 'p', 'completion': 3}"),
        ({"prompt": "p", "completion": None}, NEEDED + "{'prompt': 'p', 'completion': None}"),
        ({"prompt": ["p"], "completion": "c"}, NEEDED + "{'prompt': ['p'], 'completion': 'c'}"),
        ({"prompt": "p", "completion": "c", "response": "r"}, NEEDED + "{'prompt': 'p', 'completion': 'c', 'respon"),
        (["p", "c"], NEEDED + "['p', 'c']"),
        (row("p", "c", model=["m"]), "model: needed a text, got ['m']"),
        (row("p", "c", model=3), "model: needed a text, got 3"),
        (row("p", "c", category={"a": 1}), "category: needed a text, got {'a': 1}"),
    ],
)
def test_a_row_without_its_texts_is_refused_with_file_and_line(write, broken, message):
    a = write("a.jsonl", [row("p", "c"), broken])
    with pytest.raises(InputError) as error:
        read_answers([a])
    assert str(error.value).startswith(f"a.jsonl: line 2: {message}")


def test_a_broken_line_is_refused_with_its_number(write, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"^a\.jsonl: line 2: broken JSON"):
        read_answers(["a.jsonl"])


def test_nothing_to_compare_is_refused(write):
    a = write("a.jsonl", [row("p", "1")])
    with pytest.raises(InputError, match="needed the answers of at least two models, got 1"):
        compare(read_answers([a])[0])
    b = write("b.jsonl", [row("p ", "2")])
    with pytest.raises(InputError, match=r"found none; the prompts of the files must be the same texts; a\.jsonl: 1 p"):
        compare(read_answers([a, b])[0])


@pytest.mark.parametrize("text", ["", "!", "AAAA", pack_key({"models": []})[:-8], None])
def test_a_broken_key_is_a_value_error(text):
    with pytest.raises((ValueError, TypeError)):
        unpack_key(text)


def test_a_key_that_unpacks_to_gigabytes_is_refused(monkeypatch):
    monkeypatch.setattr("minirlhf.evaluation.human.page.MOST_KEY", 1000)
    with pytest.raises(ValueError, match="cut short or too large"):
        unpack_key(pack_key({"models": ["x" * 2000]}))
