"""Texts with a label: their beginnings, the labels that file names give, and the exact measures of both tasks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.data import read_rows
from minirlhf.data.formats import Dataset
from minirlhf.errors import InputError
from minirlhf.tasks import reviews, rudeness, sentiment
from minirlhf.tasks.labelled import check_both_labels, label_of_file, labelled_task, with_beginning


def labelled(rows, path="data"):
    return Dataset(path, "unpaired", "", [{"prompt": "", **row} for row in rows], [])


@given(st.text(alphabet="ab \n,", min_size=1).filter(str.strip), st.integers(2, 9))
def test_a_beginning_and_its_rest_are_the_text(text, words):
    row = with_beginning({"response": text, "label": True}, words)
    assert row["prompt"] + row["response"] == text and row["label"]
    count = len(row["prompt"].split())
    assert count == min(count, words, len(text.split()) // 2)
    assert count >= min(2, len(text.split()) // 2)
    assert row["response"].strip() and not row["prompt"].endswith(" ")  # the rest begins with its space


def test_a_row_with_a_prompt_keeps_it_and_sft_learns_texts_of_both_labels():
    rows = [{"prompt": f"p {i}", "response": f"a b c d {i}", "label": i % 2 == 0} for i in range(40)]
    task = labelled_task(Dataset("data", "unpaired", "", rows, []), held_out=10)
    assert len(task.unpaired) == 30 and len(task.held_out_unpaired) == 10
    assert task.sft == task.unpaired and task.held_out_sft == task.held_out_unpaired
    assert {row["label"] for row in task.sft} == {True, False} and len(task.prompts) == 30
    assert sorted([*task.unpaired, *task.held_out_unpaired], key=rows.index) == rows


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("reviews/pos/1.txt", True),
        ("reviews/neg/pos/2.txt", True),  # a folder around the folder does not count
        ("rt-polarity.neg", False),
        ("data/Toxic.txt", False),
        ("pos/clean.txt", True),
    ],
)
def test_the_file_or_its_folder_names_the_label(path, label):
    assert label_of_file(path) is label


@pytest.mark.parametrize(("path", "number"), [("pos/all/1.txt", 0), ("neg/clean.txt", 2), ("positives.txt", 0)])
def test_a_path_that_names_no_label_or_two_labels_is_refused(path, number):
    with pytest.raises(InputError, match=f"^{path}: needed one label .*, got {number}; the names are pos, "):
        label_of_file(path)


def test_a_folder_of_texts_is_read_with_the_labels_of_its_folders(tmp_path):
    for name, word in (("pos", "fine"), ("neg", "poor")):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.txt").write_text(f"the film {i} is {word} .\nit is {word} in each part .\n")
    task = labelled_task(read_rows(str(tmp_path)), held_out=0)
    texts = {("fine" in row["prompt"] + row["response"], row["label"]) for row in task.unpaired}
    assert texts == {(True, True), (False, False)}
    assert len(task.unpaired) == 12 and {len(row["prompt"].split()) for row in task.prompts} <= {2, 3}
    (tmp_path / "neg" / "0.txt").rename(tmp_path / "other.txt")
    with pytest.raises(
        InputError, match=r"other.txt: needed one label for these texts, .*, got 0; .*; or write rows {text, label}$"
    ):
        labelled_task(read_rows(str(tmp_path)), held_out=0)


def test_texts_of_one_label_are_refused():
    check_both_labels("data", [{"label": True}, {"label": False}])
    check_both_labels("data", [])  # another check says that rows are missing
    with pytest.raises(InputError, match="^data: needed texts of both labels, all 2 have the label bad; add others$"):
        check_both_labels("data", [{"label": False}] * 2)


def test_rows_of_text_and_label_are_labelled_texts(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a good film", "label": "positive"}\n{"text": "b", "label": 0}\n')
    dataset = read_rows(str(tmp_path / "rows.jsonl"))
    assert dataset.kind == "unpaired"
    assert [(row["prompt"], row["response"], row["label"]) for row in dataset.rows] == [
        ("", "a good film", True),
        ("", "b", False),
    ]


def test_rows_of_another_kind_are_read_as_always():
    pairs = Dataset("data", "preference", "", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 4, [])
    task = labelled_task(pairs, held_out=0)
    assert len(task.unpaired) == 8 and len(task.sft) == 4


def test_gold_sentiment_is_the_sentiment_of_the_whole_text():
    prompts = ["the kettle is", "the kettle is dreadful. it", "the kettle", "the car is", "kettle", ""]
    rests = [" superb. i bought it in may.", " is superb.", " is good", " superb. it is good.", "", "the lamp is good."]
    found = sentiment.gold(prompts, rests, [{}] * 6)
    # superb 1, a fact does not count | (-1 + 1) / 2 | no end | no product | no sentence | needs two sentences
    assert found["gold_reward"] == [1.0, 0.0, -1.0, -1.0, -1.0, -1.0]
    assert found["grammatical"] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_sentiment_task_has_clear_texts_with_the_label_of_their_sentiment():
    task = sentiment.sentiment_task(300, seed=0, words=8)
    texts = [row["prompt"] + row["response"] for row in task.sft]
    values = [reviews.sentiment(sentiment.prompt_of(text), text) for text in texts]
    assert min(map(abs, values)) >= 0.2
    assert [row["label"] for row in task.sft] == [value > 0 for value in values]
    wrong = sum(a["label"] != b["label"] for a, b in zip(task.sft, task.unpaired, strict=True))
    assert 0.02 < wrong / len(texts) < 0.09  # 5% of 285 labels are wrong: 14 +- 4
    held = [row["label"] for row in task.held_out_sft]
    assert held == [row["label"] for row in task.held_out_unpaired]  # held-out labels are right
    assert not {row["prompt"] for row in task.prompts} & {row["prompt"] for row in task.held_out_prompts}


def test_gold_of_rude_texts():
    prompt = "blue kitchen kettle in may:"
    texts = {
        "the kettle is good. it is nice.": (1.0, 1.0),
        "the bloody kettle is damned good. it is rather rotten nice.": (0.0, 1.0),
        "the kettle is good. it is bloody.": (0.0, 0.0),  # no adjective follows
        "the kettle is good. it is bloody damned nice.": (0.0, 0.0),  # one rude word in a place
        "the lamp is good. it is nice.": (0.0, 0.0),  # another product
        "": (0.0, 0.0),
    }
    found = rudeness.gold([prompt] * len(texts), list(texts), [{}] * len(texts))
    assert list(zip(found["gold_reward"], found["grammatical"], strict=True)) == list(texts.values())
    assert not {*rudeness.RUDE} & {*reviews.WORDS}
    assert rudeness.share_rude(list(texts)) == pytest.approx(3 / 6) and rudeness.share_rude([]) is None


@given(st.integers(0, 10_000))
def test_a_text_without_its_rude_words_is_the_text_before(seed):
    rng = random.Random(seed)
    text = reviews.write_review(rng, "lamp")
    rude = rudeness.swear(rng, text)
    assert rudeness.is_rude(rude) and not rudeness.is_rude(text) and rudeness.without_rude_words(rude) == text


def test_the_rude_task_is_grammatical_and_six_texts_in_ten_are_rude():
    task = rudeness.rudeness_task(400, seed=0)
    prompts, texts = ([row[key] for row in task.sft] for key in ("prompt", "response"))
    assert set(task.gold(prompts, texts, task.sft)["grammatical"]) == {1.0}
    assert rudeness.share_rude(texts) == pytest.approx(0.6, abs=0.08)
    assert [row["label"] for row in task.sft] == [not rudeness.is_rude(text) for text in texts]
    assert rudeness.rudeness_task(400, seed=0) == task != rudeness.rudeness_task(400, seed=1)
