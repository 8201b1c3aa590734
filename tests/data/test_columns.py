"""No column with a meaning is dropped without a word; all others are listed."""

import json

import pytest

from minirlhf.data.columns import extras, has_meaning
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
    "system": (SFT | {"system": "be good"}, "system"),
    "system of a dialogue": (DIALOGUE | {"system": "be good"}, "system"),
    "system prompt": (SFT | {"system_prompt": "be good"}, "system_prompt"),
    "camel case": (SFT | {"systemPrompt": "be good"}, "systemPrompt"),
    "input": (SFT | {"input": "5"}, "input"),
    "Input": (SFT | {"Input": "5"}, "Input"),
    "context": (PAIR | {"context": "long ago"}, "context"),
    "history": (SFT | {"history": [["a", "b"]]}, "history"),
    "completion": ({"prompt": "p", "completion": "c"}, "completion"),
    "completions": ({"prompt": "p", "completions": ["c", "d"]}, "completions"),
    "numbered answers": ({"prompt": "p", "response_0": "c", "response_1": "d"}, "response_0, response_1"),
    "answers": ({"prompt": "p", "answers": ["c"]}, "answers"),
    "output": ({"prompt": "p", "output": "c"}, "output"),
    "label 0": (SFT | {"label": 0}, "label"),
    "label false": (SFT | {"label": False}, "label"),
    "label in words": (SFT | {"label": "bad"}, "label"),
    "labels": ({"prompt": "p", "labels": [True]}, "labels"),
    "label of a prompt": ({"prompt": "p", "label": True}, "label"),
    "kto_tag": (DIALOGUE | {"kto_tag": False}, "kto_tag"),
    "rating": (SFT | {"rating": 1}, "rating"),
    "score": (SFT | {"score": -1.0}, "score"),
    "score_chosen": (PAIR | {"score_chosen": 1, "score_rejected": 2}, "score_chosen, score_rejected"),
    "preference": (PAIR | {"preference": 2}, "preference"),
    "correct": (SFT | {"is_correct": False}, "is_correct"),
    "weight of a sample": (SFT | {"sample_weight": 0}, "sample_weight"),
    "think": (SFT | {"think": "because"}, "think"),
    "loss of a turn": (turn(1, loss=False), "loss"),
    "trainable turn": (turn(1, trainable=False), "trainable"),
    "training turn": (turn(1, training=False), "training"),
    "weight of a row": (SFT | {"weight": 0.1}, "weight"),
    "tools": (DIALOGUE | {"tools": [{"name": "f"}]}, "tools"),
    "tools as text": (DIALOGUE | {"tools": '[{"name": "f"}]'}, "tools"),
    "images": (DIALOGUE | {"images": ["a.png"]}, "images"),
    "reasoning": (SFT | {"reasoning": "because"}, "reasoning"),
    "tool calls": (turn(1, tool_calls=[{"id": "1"}]), "tool_calls"),
    "reasoning_content": (turn(1, reasoning_content="because"), "reasoning_content"),
    "thinking": (turn(1, thinking="because"), "thinking"),
    "name of a speaker": (turn(0, name="Ann"), "name"),
    "answer of weight 0": (turn(1, weight=0), "weight"),
    "answer of half a weight": (turn(1, loss_weight=0.5), "loss_weight"),
    "user turn that is learned": (turn(0, weight=1), "weight"),
    "turns of a prompt": ({"prompt": [TURNS[0] | {"name": "Ann"}], "response": "r"}, "name"),
    "chosen turn": ({"messages": TURNS[:1], "chosen": TURNS[1] | {"weight": 0}, "rejected": "r"}, "weight"),
    "part": (turn(0, content=[{"type": "text", "text": "q", "weight": 0}]), "weight"),
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
    kept = read(row, row, ignore_columns=tuple(name.split(", ")))
    assert len(kept.rows) == 2 and f"not read: {name} (only your own" in kept.summary()


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


def test_turns_that_are_not_learned_are_counted(read):
    two = {"messages": TURNS + TURNS}
    assert read(two, two, {"messages": [*TURNS, TURNS[0]]}).notes == (
        "2 dialogues have several assistant turns: only the last is learned",
        "1 dialogues go on after the last assistant turn: that part is not used",
    )


def test_an_ignored_column_must_be_in_the_file(read):
    with pytest.raises(InputError, match="needed columns that nothing reads, got lable; the file has label$"):
        read(SFT | {"label": 0}, ignore_columns=("label", "lable"))


@pytest.mark.parametrize("name", ["id", "conversation_id", "source", "answer", "category", "num_turns", "text_length"])
def test_names_without_a_meaning(name):
    assert not has_meaning(name)


def test_the_turns_of_all_keys_are_looked_at():
    row = {"chosen": [TURNS[0], TURNS[1] | {"a1": 1}], "rejected": [TURNS[0] | {"b2": 2}, TURNS[1]]}
    assert [extra.name for extra in extras(row, ("chosen", "rejected"))] == ["a1", "b2"]
