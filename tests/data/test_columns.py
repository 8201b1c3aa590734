"""No column with a meaning is dropped without a word; all others are listed."""

import json

import pytest

from minirlhf.data.columns import has_meaning
from minirlhf.data.formats import read_rows
from minirlhf.errors import InputError

SFT = {"prompt": "p", "response": "r"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
DIALOGUE = {"messages": TURNS}


@pytest.fixture
def read(tmp_path):
    def read(*rows, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_rows(path, **settings)

    return read


def turn(index, **keys):
    """A dialogue whose turn `index` has more keys."""
    return {"messages": [t | keys if i == index else t for i, t in enumerate(TURNS)]}


DROPPED = {  # row, the name in the error
    "system of two kinds": (SFT | {"system_message": "be good"}, "system_message"),
    "Input": (SFT | {"Input": "5"}, "Input"),
    "input beside turns": (DIALOGUE | {"input": "5"}, "input"),
    "context of turns": ({"prompt": TURNS[:1], "response": "r", "context": "long ago"}, "context"),
    "completions": ({"prompt": "p", "completions": ["c", "d"]}, "completions"),
    "numbered answers": ({"prompt": "p", "response_0": "c", "response_1": "d"}, "response_0, response_1"),
    "answers": ({"prompt": "p", "answers": ["c"]}, "answers"),
    "two answers": (SFT | {"output": "c"}, "output"),
    "two prompts": (SFT | {"instruction": "c"}, "instruction"),
    "rejected alone": ({"prompt": "p", "rejected": "c"}, "rejected"),
    "another prompt": (DIALOGUE | {"prompt": "p"}, "prompt"),
    "labels": ({"prompt": "p", "labels": [True]}, "labels"),
    "label of a prompt": ({"prompt": "p", "label": True}, "label"),
    "replies": ({"prompt": "p", "replies": [{"text": "r"}]}, "replies"),
    "summaries": ({"prompt": "p", "summaries": ["s"]}, "summaries"),
    "label of a pair": (PAIR | {"label": 1}, "label"),
    "rating": (SFT | {"rating": 1}, "rating"),
    "score": (SFT | {"score": -1.0}, "score"),
    "half of the scores": (PAIR | {"score_chosen": 1}, "score_chosen"),
    "preference": (PAIR | {"preference": 2}, "preference"),
    "second verdict": (
        {"prompt": "p", "response_0": "c", "response_1": "d", "better_response_id": 0, "safer_response_id": 1},
        "safer_response_id",
    ),
    "strength": (PAIR | {"preference_strength": 2}, "preference_strength"),
    "weight of a sample": (SFT | {"sample_weight": 0}, "sample_weight"),
    "think": (SFT | {"think": "because"}, "think"),
    "weight of a row": (SFT | {"weight": 0.1}, "weight"),
    "images": (DIALOGUE | {"images": ["a.png"]}, "images"),
    "reasoning": (SFT | {"reasoning": "because"}, "reasoning"),
    "a turn without a dialogue": ({"text": "p", "role": "user"}, "role"),
    "rejected in another word": ({"prompt": "p", "chosen": "c", "reject": "r"}, "reject"),
    "ranking or order": ({"prompt": "p", "answers": ["c", "d", "e"], "ranking": [2, 0, 1]}, "answers, ranking"),
    "reasoning that holds the answer": (SFT | {"reasoning": "r, because"}, "reasoning"),
    "options that hold the answer": (SFT | {"options": "r) x s) y"}, "options"),
    "picture whose name holds the answer": (DIALOGUE | {"image": "a.png"}, "image"),
    "context that holds the answer": (DIALOGUE | {"context": "a is it"}, "context"),
    "rating that stands in the answer": ({"prompt": "p", "response": "very good", "rating": "good"}, "rating"),
    "label that stands in the prompt": (PAIR | {"label": "p"}, "label"),
    "parent of a turn": ({"text": "p", "parent_id": "x"}, "parent_id"),
}


@pytest.mark.parametrize(("row", "name"), DROPPED.values(), ids=DROPPED.keys())
def test_a_column_with_a_meaning_refuses_the_file_by_name(read, tmp_path, row, name):
    it = "them" if "," in name else "it"
    with pytest.raises(InputError) as caught:
        read(row, row)
    assert str(caught.value) == (
        f"{tmp_path / 'data.jsonl'}: line 1: needed only columns that are used as they are meant, got {name}; remove "
        f"{it}, or train without {it}: --ignore_columns {name.replace(', ', ',')}"
    )
    assert len(read(row, row, ignore_columns=tuple(name.split(", "))).rows) == 2


@pytest.mark.parametrize(
    "row",
    [
        SFT | {"system": "", "input": None, "history": [], "tools": "[]", "label": None},
        SFT | {"weight": 1},
        DIALOGUE | {"tools": "[]"},
        turn(1, weight=1, tool_calls=[], reasoning_content=None, name=""),
        turn(0, loss_weight=0.0),
    ],
)
def test_a_key_that_changes_nothing_is_no_key(read, row):
    assert read(row).notes == ()


def test_other_columns_are_listed_once_and_stay_in_the_row(read):
    rows = [SFT | {"id": n, "source": "web", "answer": 7} for n in range(3)]
    dataset = read(*rows)
    assert dataset.notes == ("not read: id, source, answer (only your own reward functions read columns)",)
    assert [row["answer"] for row in dataset.rows] == [7, 7, 7]
    assert read(turn(0, id="x")).notes == ("not read: id (only your own reward functions read columns)",)


def test_names_are_shown_short_and_printable(read):
    rows = SFT | {f"c{n}": 1 for n in range(100)} | {"\x1b[2J": 1}
    assert read(rows).notes[0].endswith("c19, and 81 more (only your own reward functions read columns)")
    assert "\x1b" not in read(SFT | {"\x1b[2J": 1}).summary()


def test_a_margin_is_read_by_reward_models_and_must_be_a_number(read):
    assert read(PAIR | {"margin": 1}).notes == ("margin: only the training of a reward model reads it",)
    assert "margin" not in read(PAIR | {"margin": None}).rows[0]
    assert read(SFT | {"margin": 1}).notes == ("not read: margin (only your own reward functions read columns)",)


REFUSED = {  # row, the beginning of the reason
    "weight in words": (turn(1, weight="1"), "messages: turn 2: weight: needed 0 or 1, got str '1'"),
    "half a weight": (turn(1, loss_weight=0.5), "messages: turn 2: loss_weight: needed 0 or 1, got float 0.5"),
    "weight that no float holds": (turn(1, weight=10**400), "messages: turn 2: weight: needed 0 or 1, got int 0x"),
    "weight that is a truth": (turn(1, weight=True), "messages: turn 2: weight: needed 0 or 1, got bool True"),
    "user turn that is learned": (turn(0, weight=1), "messages: turn 1: weight: needed 0, because a user turn is not"),
    "nothing to learn": (turn(1, weight=0), "messages: needed an assistant turn that is learned"),
    "nothing to train": (turn(1, trainable=False), "messages: needed an assistant turn that is learned"),
    "part": (turn(0, content=[{"type": "text", "text": "q", "weight": 0}]), "messages: turn 1: content: needed parts"),
}


@pytest.mark.parametrize(("row", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_key_of_a_turn_that_cannot_be_used_refuses_the_row(read, row, reason):
    (refusal,) = read(DIALOGUE, row, max_refused=0.5).refused
    assert refusal.reason.startswith(reason)


def test_a_key_of_a_turn_can_be_ignored(read):
    dataset = read(turn(1, weight=0, id="x"), ignore_columns=("weight",))
    assert "response_turns" not in dataset.rows[0] or "weight" not in dataset.rows[0]["response_turns"][0]


def test_an_ignored_column_changes_the_layout(read):
    row = {"prompt": "p", "completion": "c", "label": 0}
    assert read(row).kind == "unpaired"
    assert read(row, ignore_columns=("label",)).kind == "sft"


def test_a_copy_is_listed(read):
    rows = DIALOGUE | {"prompt": "q"}, {"instruction": "p", "output": "r", "text": "### p ### r"}
    for row in rows:
        assert "(the row has its answer in other columns)" in read(row).notes[0]
    with pytest.raises(InputError, match="needed only columns that are used as they are meant, got text"):
        read({"instruction": "p", "output": "r", "text": "p only"})


def test_turns_that_are_not_learned_are_counted(read):
    assert read(DIALOGUE, {"messages": [*TURNS, TURNS[0]]}).notes == (
        "1 dialogues go on after the last assistant turn: that part is not used",
    )


def test_inputs_that_say_that_they_are_empty_are_counted(read):
    rows = [
        {"instruction": "p", "input": text, "output": "r"} for text in ("5", "", "<noinput>", "No Input", "无输入。")
    ]
    dataset = read(*rows)
    assert dataset.notes == ("3 inputs say that they are empty: they are left out",)
    assert dataset.layout == "{instruction, output} with input"


def test_an_ignored_column_must_be_in_the_file(read):
    with pytest.raises(InputError, match="needed columns of the file, got lable; the file has prompt, response, label"):
        read(SFT | {"label": 0}, ignore_columns=("label", "lable"))


@pytest.mark.parametrize("name", ["id", "conversation_id", "source", "answer", "category", "num_turns", "text_length"])
def test_names_without_a_meaning(name):
    assert not has_meaning(name)
