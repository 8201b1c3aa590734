"""The quirks of real rows, and every refusal of `read_rows`, on rows written here."""

from __future__ import annotations

import json
import re

import pytest

from minirlhf.data.formats import Refusal, read_rows
from minirlhf.data.formats.turns import ROLES
from minirlhf.errors import InputError
from minirlhf.text import render_chat

SFT = {"prompt": "p", "response": "r"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def read(tmp_path):
    """read(content, name, max_refused): content is rows (written as JSONL), text or bytes."""

    def read(content, name="data.jsonl", max_refused=0.01):
        text = jsonl(content) if isinstance(content, list) else content
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_rows(path, max_refused=max_refused)

    return read


@pytest.fixture
def reason(read):
    """reason(row, good): why this row is refused beside one good row."""

    def reason(row, good=SFT):
        dataset = read([good, row], max_refused=0.5)
        assert len(dataset.rows) == 1 and dataset.refused[0].line == 2
        return dataset.refused[0].reason

    return reason


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def hh(*texts: str) -> str:
    """A dialogue in HH-RLHF spelling, Human first and then alternating; a text of None skips a turn."""
    roles = ["Human", "Assistant"]
    return "".join(f"\n\n{roles[i % 2]}: {text}" for i, text in enumerate(texts) if text is not None)


# ---- layouts ----


LAYOUT_CASES = {
    "prompt and response": (SFT, "sft", SFT),
    "prompt, chosen, rejected": (PAIR, "preference", PAIR),
    "prompt alone": ({"prompt": "p"}, "prompt", {"prompt": "p"}),
    "prompt as turns": (
        {"prompt": [{"role": "user", "content": "q"}], "response": "r"},
        "sft",
        {"prompt": "User:\nq\n\nAssistant:\n", "response": "r"},
    ),
    "messages: the last assistant turn is the response": (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q1"},
                {"role": "assistant", "content": "a1"},
                {"role": "user", "content": "q2"},
                {"role": "assistant", "content": "a2"},
            ]
        },
        "sft",
        {"prompt": "System:\ns\n\nUser:\nq1\n\nAssistant:\na1\n\nUser:\nq2\n\nAssistant:\n", "response": "a2"},
    ),
    "turns after the last assistant turn are not used": (
        {"conversations": [human("q"), gpt("a"), human("bye")]},
        "sft",
        {"prompt": "User:\nq\n\nAssistant:\n", "response": "a"},
    ),
    "content in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "!"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
            ]
        },
        "sft",
        {"prompt": "User:\nq!\n\nAssistant:\n", "response": "a"},
    ),
    "conversations, answers as messages": (
        {"conversations": [human("q")], "chosen": gpt("c"), "rejected": gpt("r")},
        "preference",
        {"prompt": "User:\nq\n\nAssistant:\n", "chosen": "c", "rejected": "r"},
    ),
    "messages, answers as lists and strings": (
        {"messages": [human("q")], "chosen": [gpt("c"), gpt("d")], "rejected": "r"},
        "preference",
        {"prompt": "User:\nq\n\nAssistant:\n", "chosen": "c\n\nd", "rejected": "r"},
    ),
    "whole dialogues as lists": (
        {"chosen": [human("q"), gpt("c")], "rejected": [human("q"), gpt("r")]},
        "preference",
        {"prompt": "User:\nq\n\nAssistant:\n", "chosen": "c", "rejected": "r"},
    ),
    "HH-RLHF dialogues": (
        {"chosen": hh("q1", "a1", "q2", "c"), "rejected": hh("q1", "a1", "q2", "r")},
        "preference",
        {"prompt": "User:\nq1\n\nAssistant:\na1\n\nUser:\nq2\n\nAssistant:\n", "chosen": "c", "rejected": "r"},
    ),
}


@pytest.mark.parametrize(("source", "kind", "row"), LAYOUT_CASES.values(), ids=LAYOUT_CASES.keys())
def test_layout_is_recognised_by_its_keys(read, source, kind, row):
    dataset = read([source])
    turns = dataset.rows[0].pop("prompt_turns", None)  # kept for a chat template if the prompt was made from turns
    assert (turns is None) == (not row["prompt"].endswith("Assistant:\n"))
    assert turns is None or render_chat(turns, add_generation_prompt=True) == row["prompt"]
    assert (dataset.kind, dataset.rows, dataset.refused) == (kind, [row | {"line": 1}], [])


def test_other_keys_are_kept_and_null_counts_as_absent(read):
    source = SFT | {"chosen": None, "answer": 72, "tags": ["x"]}
    assert read([source]).rows == [SFT | {"answer": 72, "tags": ["x"], "line": 1}]


def test_prompt_may_be_empty_and_text_stays_as_it_is(read):
    row = {"prompt": "", "response": " two\nlines \u2028\n"}
    assert read([row]).rows == [row | {"line": 1}]


def test_first_valid_row_decides_the_layout(read):
    dataset = read([{"prompt": 1}, SFT, PAIR, SFT], max_refused=0.5)
    assert [row["line"] for row in dataset.rows] == [2, 4]
    other = "this row is {prompt, chosen, rejected}, but the file is {prompt, response} since line 2"
    assert dataset.refused[1] == Refusal(3, other)


# ---- the quirks of real HH-RLHF rows ----


def pair(read, chosen: str, rejected: str) -> tuple[str, str, str]:
    row = read([{"chosen": chosen, "rejected": rejected}]).rows[0]
    return row["prompt"], row["chosen"], row["rejected"]


def test_hh_two_assistant_turns_running(read):
    q = "User:\nq\n\nAssistant:\n"
    # in both sides' prompts: rendered as two turns
    assert pair(read, hh("q", "a", None, "c"), hh("q", "a", None, "r")) == (q + "a\n\nAssistant:\n", "c", "r")
    # in only one of the two sides, whether or not its first answer differs: one answer of two paragraphs
    assert pair(read, hh("q", "c", None, "d"), hh("q", "r")) == (q, "c\n\nd", "r")
    assert pair(read, hh("q", "c", None, "d"), hh("q", "c")) == (q, "c\n\nd", "c")
    assert pair(read, hh("q", "c", None, ""), hh("q", "r")) == (q, "c", "r")


def test_hh_empty_last_turn_is_refused(reason):
    good = LAYOUT_CASES["HH-RLHF dialogues"][0]
    assert reason({"chosen": hh("q", ""), "rejected": hh("q", "r")}, good) == "chosen: empty response"
    last = "rejected: needed an assistant turn at the end, got a user turn"
    assert reason({"chosen": hh("q", "c"), "rejected": hh("q", "r", "")}, good) == last


def test_hh_marker_inside_a_turn_is_text(read):
    q = "He said Human: hi\nHuman: bye\nAssistant: x"
    assert pair(read, hh(q, "c"), hh(q, "r Human: no")) == (f"User:\n{q}\n\nAssistant:\n", "c", "r Human: no")


def test_hh_prompts_that_differ_are_refused(reason):
    good = LAYOUT_CASES["HH-RLHF dialogues"][0]
    assert reason({"chosen": hh("q", "c"), "rejected": hh("Q", "r")}, good) == "prompts differ at turn 1"
    longer = {"chosen": hh("q", "a", "q2", "c"), "rejected": hh("q", "r")}
    assert reason(longer, good) == "prompts differ at turn 2"


def test_hh_spaces_around_turns_make_no_difference(read):
    chosen = "Human:  q \n\n\nAssistant: c\n"
    assert pair(read, chosen, hh("q", "r")) == ("User:\nq\n\nAssistant:\n", "c", "r")


def test_hh_needs_its_markers(reason):
    good = LAYOUT_CASES["HH-RLHF dialogues"][0]
    needed = "chosen: needed a dialogue that begins with '\\n\\nHuman:', or a prompt key; got str "
    assert reason({"chosen": "c", "rejected": "r"}, good) == needed + "'c'"
    assert reason({"chosen": "", "rejected": hh("q", "r")}, good) == needed + "''"
    assert reason({"chosen": "Once" + hh("q", "c"), "rejected": hh("q", "r")}, good).startswith(needed)


# ---- refusals ----

NAMES = "prompt, messages, conversations, response, chosen, rejected, instruction, question, text"
REASONS = {
    "no object": ("a", "needed an object with named keys, got str 'a'"),
    "a list in a file of objects": (
        ["a"],
        "this row is dialogues that end with the user, but the file is {prompt, response} since line 1",
    ),
    "null": (None, "needed an object with named keys, got null"),
    "no known key": (
        {"ask": "q"},
        f"needed one of the keys {NAMES}, got ask; or name the keys with --map",
    ),
    "no key": ({}, f"needed one of the keys {NAMES}, got none; or name the keys with --map"),
    "missing key": (
        {"chosen": "c"},
        "keys fit no layout; the nearest is {chosen, rejected}: missing rejected",
    ),
    "another layout": (
        {"prompt": "p", "chosen": "c"},
        "this row is {prompt, chosen}, but the file is {prompt, response} since line 1",
    ),
    "null answer": (
        {"prompt": None, "response": "r"},
        "keys fit no layout; the nearest is {prompt, response}: missing prompt",
    ),
    "prompt of a wrong type": ({"prompt": 3, "response": "r"}, "prompt: needed text or turns, got int 3"),
    "answer of a wrong type": (SFT | {"response": True}, "response: needed text or turns, got bool True"),
    "messages as text": ({"messages": 5}, "messages: needed text or turns, got int 5"),
    "turn of a wrong type": (
        {"messages": ["hi", 5]},
        "messages: turn 1: needed an object with role and content, got str 'hi'",
    ),
    "unknown role": (
        {"conversations": [human("q"), {"from": "narrator", "value": "f"}]},
        f"conversations: turn 2: role: needed one of {', '.join(ROLES)}, got str 'narrator'; rename the role or drop "
        "the row",
    ),
    "two contents": (
        {"messages": [{"role": "user", "content": "q", "value": "w"}]},
        "messages: turn 1: needed content or value, got both: str 'q' and str 'w'",
    ),
    "two roles": (
        {"messages": [{"role": "user", "from": "gpt", "content": "q"}]},
        "messages: turn 1: needed role or from, got both: str 'user' and str 'gpt'",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages: turn 1: needed text as content, got null"),
    "image part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
        "messages: turn 1: needed text as content, got dict {'type': 'image', 'url': 'u'}",
    ),
    "no assistant": (
        {"messages": [human("q")]},
        "this row is dialogues that end with the user, but the file is {prompt, response} since line 1",
    ),
    "user turn as an answer": (
        {"prompt": "p", "chosen": [human("q"), gpt("c")], "rejected": [human("q"), gpt("r")]},
        "chosen: needed an answer, or a dialogue that begins with the prompt; got other turns",
    ),
    "no turns": (
        {"chosen": [], "rejected": [gpt("r")]},
        "chosen: needed an assistant turn at the end, got no turns",
    ),
    "empty response": (SFT | {"response": " \n"}, "response: empty response"),
    "empty answer list": (PAIR | {"rejected": []}, "rejected: empty response"),
    "identical": (PAIR | {"rejected": "c "}, "chosen and rejected are identical"),
    "half a surrogate pair": (SFT | {"prompt": "\ud800"}, "prompt: needed Unicode text, got half of a surrogate pair"),
    "margin that no float holds": (
        PAIR | {"margin": 10**400},
        f"margin: needed a finite number, got int {hex(10**400)[:80]}...",
    ),
    "margin of a wrong type": (PAIR | {"margin": "0.5"}, "margin: needed a finite number, got str '0.5'"),
}


@pytest.mark.parametrize(("row", "expected"), REASONS.values(), ids=REASONS.keys())
def test_refused_row_names_its_reason(reason, row, expected):
    assert reason(row) == expected


@pytest.mark.parametrize("line", ['{"prompt": "p"', "version https://git-lfs", "[" * 100_000, "1" * 5000])
def test_broken_json_line_is_refused_in_one_short_line(read, line):
    refused = read(f"{json.dumps(SFT)}\n\n{line}\n", max_refused=0.5).refused
    assert [refusal.line for refusal in refused] == [3]  # the blank line is not a row, but it counts as a line
    assert refused[0].reason.startswith("broken JSON, ")
    assert len(refused[0].reason) < 220 and "\n" not in refused[0].reason


def test_summary_names_layout_counts_and_every_refused_row(read, tmp_path):
    good = LAYOUT_CASES["HH-RLHF dialogues"][0]
    path = tmp_path / "data.jsonl"
    assert read([good]).summary() == f"{path}: preference rows from HH-RLHF dialogues, 1 kept, 0 refused"
    assert read([SFT, {}, SFT | {"response": ""}], max_refused=1.0).summary().splitlines() == [
        f"{path}: sft rows from {{prompt, response}}, 1 kept, 2 refused",
        f"{path}: line 2: {REASONS['no key'][1]}",
        f"{path}: line 3: response: empty response",
    ]


def test_more_refused_than_allowed_stops_and_names_a_fraction_that_is_enough(read, tmp_path):
    rows = [SFT] * 71 + [SFT | {"response": ""}] * 29
    with pytest.raises(InputError) as error:
        read(rows)
    assert str(error.value) == (
        f"{tmp_path / 'data.jsonl'}: needed at most 1.00% of rows refused, got 29 of 100 (line 72: response: empty "
        "response; line 73: response: empty response; line 74: response: empty response); mend these rows, or go on "
        "without them: --max_refused 0.29"
    )
    # The fraction that it names is enough: 29 <= 0.29 * 100 is False in floating point.
    assert len(read(rows, max_refused=0.29).refused) == 29


def test_one_percent_refused_is_still_fine(read):
    assert len(read([SFT] * 99 + [{}]).refused) == 1


def test_a_file_without_a_usable_row_is_refused_with_any_limit(read):
    with pytest.raises(InputError, match=r"needed a usable row, all 1 were refused \(line 1: .*\); rows may be {p"):
        read([{"ask": "q"}], max_refused=1.0)


@pytest.mark.parametrize("fraction", [-0.1, 5, float("nan")])
def test_max_refused_is_a_fraction(read, fraction):
    with pytest.raises(InputError, match="max_refused: needed a fraction from 0 to 1, got .*; 0.01 is 1% of the rows"):
        read([SFT], max_refused=fraction)


# ---- files ----


@pytest.mark.parametrize("content", [b"", b" \n\n", b"[]"], ids=["empty", "blank", "empty array"])
def test_file_without_rows_is_refused(read, tmp_path, content):
    text = f"{tmp_path / 'data.jsonl'}: needed at least one row, got an empty file; write one JSON object per line"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        read(content)


def test_rows_of_an_array_are_counted_not_lines(read):
    dataset = read(json.dumps([SFT, {}, SFT], indent=4), max_refused=0.5)
    assert [row["line"] for row in dataset.rows] == [1, 3]
    assert str(dataset.refused[0]).startswith("row 2: needed one of the keys")


def test_a_users_own_column_of_turns_is_no_prompt(read):
    for own in ("turns", "prompt_turns"):
        (row,) = read([SFT | {own: [{"role": "user", "content": "other"}]}]).rows
        assert row["prompt"] == "p" and "prompt_turns" not in row
    assert row == SFT | {"line": 1} and read([SFT | {"turns": 3}]).rows[0]["turns"] == 3


def test_a_row_has_its_own_line_and_file_not_columns_of_these_names(read, tmp_path):
    dataset = read([SFT | {"line": "l", "file": "main.py", "id": 4}])
    assert dataset.rows == [SFT | {"id": 4, "line": 1}]
    assert dataset.notes == (
        "not read: id (only your own reward functions read columns)",
        "left out: line, file (a row has its own line and file under these names)",
    )
    (tmp_path / "more.jsonl").write_text(jsonl([SFT]))
    assert [row.get("file") for row in read_rows([tmp_path / "data.jsonl", tmp_path / "more.jsonl"]).rows] == [
        str(tmp_path / "data.jsonl"),
        str(tmp_path / "more.jsonl"),
    ]
