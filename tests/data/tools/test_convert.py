"""`minirlhf data convert`: each layout by hand, and what it cannot hold is refused by name."""

import csv

import pytest

from minirlhf.data.tools.convert import LAYOUTS, WRITERS, converted
from minirlhf.errors import InputError

SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
ANSWER, AGAIN = {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
PLAIN = {"prompt": "p", "response": "r", "line": 3}
CHAT = {"prompt": "User:\nu\n\nAssistant:\n", "prompt_turns": [SYSTEM, USER, ANSWER, AGAIN], "response": "r", "line": 1}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2, "line": 1}
UNPAIRED = {"prompt": "p", "response": "r", "label": False, "line": 1}
STEPS = {"prompt": "p", "steps": ["a", "b"], "labels": [True, True], "line": 1}
R, C = {"role": "assistant", "content": "r"}, {"role": "assistant", "content": "c"}


@pytest.mark.parametrize(
    ("row", "kind", "layout", "expected"),
    [
        (PLAIN, "sft", "sft", [{"prompt": "p", "response": "r"}]),
        (PLAIN, "sft", "prompts", [{"prompt": "p"}]),
        (PLAIN, "sft", "messages", [{"messages": [{"role": "user", "content": "p"}, R]}]),
        (PLAIN, "sft", "alpaca", [{"instruction": "p", "input": "", "output": "r"}]),
        (PLAIN, "sft", "sharegpt",
         [{"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}]}]),
        (PLAIN | {"id": 7}, "sft", "csv", [{"prompt": "p", "response": "r", "id": 7}]),
        (CHAT, "sft", "sft", [{"prompt": [SYSTEM, USER, ANSWER, AGAIN], "response": "r"}]),
        (CHAT, "sft", "messages", [{"messages": [SYSTEM, USER, ANSWER, AGAIN, R]}]),
        (CHAT, "sft", "alpaca",
         [{"instruction": "v", "input": "", "output": "r", "system": "s", "history": [["u", "a"]]}]),
        (PAIR, "preference", "preference", [{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2}]),
        (PAIR, "preference", "sft", [{"prompt": "p", "response": "c"}]),
        (PAIR, "preference", "unpaired",
         [{"prompt": "p", "response": "c", "label": True}, {"prompt": "p", "response": "r", "label": False}]),
        (PAIR, "preference", "prompts", [{"prompt": "p"}]),
        (PAIR, "preference", "alpaca",
         [{"instruction": "p", "input": "", "chosen": "c", "rejected": "r", "margin": 2}]),
        (PAIR, "preference", "csv", [{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2}]),
        (PAIR, "preference", "messages",
         [{"messages": [{"role": "user", "content": "p"}], "chosen": C, "rejected": R, "margin": 2}]),
        (PAIR | {"chosen_turns": [CALL, C]}, "preference", "messages",
         [{"messages": [{"role": "user", "content": "p"}], "chosen": [CALL, C], "rejected": R, "margin": 2}]),
        (PAIR, "preference", "sharegpt", [{"conversations": [{"from": "human", "value": "p"}], "margin": 2,
          "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}}]),
        (UNPAIRED, "unpaired", "messages", [{"messages": [{"role": "user", "content": "p"}, R], "label": False}]),
        (UNPAIRED, "unpaired", "alpaca", [{"instruction": "p", "input": "", "output": "r", "label": False}]),
        (UNPAIRED, "unpaired", "csv", [{"prompt": "p", "response": "r", "label": False}]),
        (UNPAIRED, "unpaired", "unpaired", [{"prompt": "p", "response": "r", "label": False}]),
        (UNPAIRED | {"label": True}, "unpaired", "sft", [{"prompt": "p", "response": "r"}]),
        (STEPS, "steps", "steps", [{"prompt": "p", "steps": ["a", "b"], "labels": [True, True]}]),
        (STEPS, "steps", "sft", [{"prompt": "p", "response": "ab"}]),
        ({"prompt": "", "response": "t", "line": 1}, "text", "text", [{"text": "t"}]),
        ({"prompt": "", "response": "t", "line": 1}, "text", "csv", [{"text": "t"}]),
        ({"prompt": "p", "line": 1}, "prompt", "messages", [{"messages": [{"role": "user", "content": "p"}]}]),
        ({"prompt": "p", "line": 1}, "prompt", "alpaca", [{"instruction": "p", "input": ""}]),
        (CHAT | {"response": "", "response_turns": [CALL], "tools": [1]}, "sft", "messages",
         [{"messages": [SYSTEM, USER, ANSWER, AGAIN, CALL], "tools": [1]}]),
    ],
)  # fmt: skip
def test_layouts_by_hand(row, kind, layout, expected):
    assert converted(row, kind, layout) == expected


@pytest.mark.parametrize(
    ("row", "kind", "layout", "reason"),
    [
        (CHAT, "sft", "csv", "a cell of CSV holds a text"),
        (PAIR | {"chosen_turns": [CALL, C]}, "preference", "sharegpt", "its chosen answer has several turns"),
        (
            CHAT | {"prompt_turns": [USER, CALL, {"role": "tool", "content": "z"}]},
            "sft",
            "sharegpt",
            "without tools|tool_",
        ),
        (STEPS, "steps", "csv", "a row of the kind steps has no place"),
        ({"prompt": "", "response": "t"}, "text", "alpaca", "a row of the kind text has no place"),
        (CHAT | {"response_turns": [CALL]}, "sft", "alpaca", "its response answer has turns"),
        (CHAT | {"response_turns": [CALL]}, "sft", "sharegpt", "a turn has tool_calls"),
        (PLAIN | {"tools": [1]}, "sft", "alpaca", "it has tools"),
        (PLAIN | {"tools": [1]}, "sft", "csv", "it has tools"),
        (CHAT | {"prompt_turns": [USER, AGAIN]}, "sft", "alpaca", "its turns are user, user"),
        (UNPAIRED, "unpaired", "sft", "its label is false"),
        (STEPS | {"labels": [True, False]}, "steps", "sft", "a label of its steps is false"),
        (PLAIN, "sft", "preference", "sft rows cannot become preference rows"),
        (PLAIN | {"instruction": "x"}, "sft", "alpaca", "its column instruction has the name of a key"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(row, kind, layout, reason):
    with pytest.raises(InputError, match=reason):
        converted(row, kind, layout)


@pytest.mark.parametrize("layout", ["sft", "messages", "sharegpt"])
def test_a_converted_file_is_read_as_the_same_rows(call, write, read, layout):
    rows = [{"messages": [SYSTEM, USER, ANSWER, AGAIN, R], "id": i} for i in range(3)]
    write("rows.jsonl", rows)
    assert call("convert", "rows.jsonl", "--layout", layout, "--output", "new.jsonl")[0] == 0
    assert call("convert", "new.jsonl", "--layout", "messages", "--output", "back.jsonl")[0] == 0
    assert read("back.jsonl") == rows


def test_a_cell_of_csv_holds_no_list(call, write):
    write("rows.jsonl", [{"prompt": "p", "response": "r", "tags": ["x"]}])
    code, _, err = call("convert", "rows.jsonl", "--layout", "csv", "--output", "rows.csv")
    assert code == 2 and "column tags holds lists or objects" in err


def test_csv_has_a_header_and_quotes(call, write, tmp_path):
    write(
        "rows.jsonl", [{"prompt": 'a,"b"\nc', "response": "中文", "ok": True}, {"prompt": "p", "response": "r", "n": 1}]
    )
    code, out, _ = call("convert", "rows.jsonl", "--layout", "csv", "--output", "rows.csv")
    assert code == 0 and "2 rows in the layout csv" in out
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"prompt": 'a,"b"\nc', "response": "中文", "ok": "true", "n": ""},
            {"prompt": "p", "response": "r", "ok": "", "n": "1"},
        ]


def test_a_row_that_would_be_read_otherwise_is_refused(call, write):
    # as a text, the second answer is a dialogue of another prompt
    answers = ["a\n\nb", "\n\nHuman: x\n\nAssistant: y", "c"]
    write("rows.jsonl", [{"prompt": "p", "response": [{"role": "assistant", "content": text}]} for text in answers])
    for layout in ("sft", "csv"):
        flags = "--layout", layout, "--max_refused", "0.5", "--output", f"new.{layout}"
        code, out, _ = call("convert", "rows.jsonl", *flags)
        assert code == 0 and "not converted: line 2: the new row could not be read: response: needed" in out, out
        assert "2 rows in the layout" in out


def test_refused_rows_are_named_and_bounded(call, write):
    good = {"messages": [USER, R]}
    write("rows.jsonl", [good, {"messages": [USER, USER, R]}])
    code, _, err = call("convert", "rows.jsonl", "--layout", "alpaca", "--output", "x.jsonl")
    assert code == 2 and "1 of 2 rows have no place in the layout alpaca (line 2: its turns are user, user" in err
    code, out, _ = call("convert", "rows.jsonl", "--layout", "alpaca", "--output", "x.jsonl", "--max_refused", "0.5")
    assert code == 0 and "not converted: line 2" in out


def test_every_writer_is_a_layout():
    assert set(WRITERS) < set(LAYOUTS)
