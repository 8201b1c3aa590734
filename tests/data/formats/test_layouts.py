"""Every layout: a source row, and the canonical row that it becomes."""

from __future__ import annotations

import json

import pytest

from minirlhf.data.formats import LAYOUTS, read_rows
from minirlhf.errors import InputError

Q, A, B = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
S = {"role": "system", "content": "s"}
OLD = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
TURNS = {"prompt": "User:\nq\n\nAssistant:\n", "prompt_turns": [Q]}
PAIR = {"chosen": "a", "rejected": "b"}
TEXT = {"prompt": "q", "response": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL_TEXT = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def moss(**turn):
    """A turn of MOSS without tools."""
    none = {"Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n", "Commands": "<|Commands|>: None<eoc>\n"}
    none["Tool Responses"] = "<|Results|>: None<eor>\n"
    return {"Human": "<|Human|>: q<eoh>\n", **none, "MOSS": "<|MOSS|>: a<eom>\n", **turn}


SFT = {
    "response": {"prompt": "q", "response": "a"},
    "completion": {"prompt": "q", "completion": "a"},
    "output": {"prompt": "q", "output": "a"},
    "chosen alone": {"prompt": "q", "chosen": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "empty input": {"instruction": "q", "input": "<noinput>", "output": "a"},
    "no input": {"instruction": "q", "input": "No input.", "output": "a"},
    "empty input in Chinese": {"instruction": "q", "input": "无输入", "output": "a"},
    "null input": {"instruction": "q", "input": None, "output": "a"},
    "empty instruction": {"instruction": "", "input": "q", "output": "a"},
    "query": {"query": "q", "response": "a"},
    "input and output": {"input": "q", "output": "a"},
    "problem": {"problem": "q", "solution": "a"},
    "question": {"question": "q", "solution": "a"},
    "BELLE": {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    "null label": {"prompt": "q", "response": "a", "label": None},
}


@pytest.fixture
def read(tmp_path):
    def read(*rows, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(rows))
        return read_rows(path, **settings)

    return read


@pytest.fixture
def one(read):
    """one(row): (kind, canonical row without its line)."""

    def one(row, **settings):
        dataset = read(row, **settings)
        assert dataset.refused == []
        (found,) = dataset.rows
        assert found.pop("line") == 1
        return dataset.kind, found

    return one


@pytest.mark.parametrize("row", SFT.values(), ids=SFT.keys())
def test_a_prompt_and_an_answer_have_many_names(one, row):
    assert one(row) == ("sft", TEXT)


def test_a_worked_solution_comes_before_its_final_answer(one):
    for name in ("question", "problem"):
        assert one({name: "q", "solution": "a", "answer": "4"}) == ("sft", TEXT | {"answer": "4"})


def test_a_prompt_that_ends_with_the_beginning_of_an_answer_is_refused(read):
    begun = {"prompt": [Q, A], "completion": "tial"}
    (refusal,) = read({"prompt": [Q], "completion": "a"}, begun, max_refused=0.5).refused
    assert refusal.reason.startswith("prompt: needed a user turn at the end, got an assistant turn")


def after(*turns):
    """The prompt made of turns, as text and turns."""
    heads = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}
    text = "".join(f"{heads[turn['role']]}:\n{turn['content']}\n\n" for turn in turns) + "Assistant:\n"
    return {"prompt": text, "prompt_turns": list(turns)}


BESIDE = {  # columns beside the prompt
    "input": ({"instruction": "q", "input": "5", "output": "a"}, {"prompt": "q\n\n5"}),
    "input beside a prompt": ({"prompt": "q", "input": "5", "output": "a"}, {"prompt": "q\n\n5"}),
    "context": ({"instruction": "q", "context": "c", "response": "a"}, {"prompt": "q\n\nc"}),
    "empty context": ({"instruction": "q", "context": "", "response": "a"}, {"prompt": "q"}),
    "input and context": (
        {"instruction": "q", "input": "5", "context": "c", "response": "a"},
        {"prompt": "q\n\n5\n\nc"},
    ),
    "system": ({"prompt": "q", "system": "s", "response": "a"}, after(S, Q)),
    "system prompt": ({"instruction": "q", "system_prompt": "s", "output": "a"}, after(S, Q)),
    "system and input": (
        {"instruction": "q", "input": "5", "system": "s", "output": "a"},
        after(S, {"role": "user", "content": "q\n\n5"}),
    ),
    "history": ({"instruction": "q", "history": [["q0", "a0"]], "output": "a"}, after(*OLD, Q)),
    "history as text in a table": ({"prompt": "q", "history": '[["q0", "a0"]]', "output": "a"}, after(*OLD, Q)),
    "history of texts": ({"query": "q", "history": ["q0", "a0"], "response": "a"}, after(*OLD, Q)),
    "history of turns": ({"query": "q", "history": OLD, "response": "a"}, after(*OLD, Q)),
    "system and history": (
        {"query": "q", "system": "s", "history": [["q0", "a0"]], "response": "a"},
        after(S, *OLD, Q),
    ),
    "system beside messages": ({"system": "s", "messages": [Q, A]}, after(S, Q)),
    "the same system twice": ({"system": "s", "messages": [S, Q, A]}, after(S, Q)),
    "turns": ({"prompt": [Q], "completion": [A]}, after(Q)),
    "turns and text": ({"prompt": [Q], "completion": "a"}, after(Q)),
    "a turn as the answer": ({"prompt": "q", "completion": A}, {"prompt": "q"}),
    "a dialogue that repeats the prompt": ({"prompt": "q", "completion": [Q, A]}, {"prompt": "q"}),
    "ShareGPT": ({"conversations": [human("q"), gpt("a")]}, after(Q)),
    "roles with capitals": (
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "ChatGPT", "value": "a"}]},
        after(Q),
    ),
    "conversation": ({"conversation": [{"human": "q", "assistant": "a"}]}, after(Q)),
    "conversation with a system": ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, after(S, Q)),
    "turns as JSON in a table": ({"messages": json.dumps([Q, A])}, after(Q)),
    "a bare list of turns": ([Q, A], after(Q)),
    "a bare list of texts": (["q0", "a0", "q", "a"], after(*OLD, Q)),
    "MOSS": ({"meta_instruction": "s\n", "num_turns": 1, "chat": {"turn_1": moss()}}, after(S, Q)),
    "earlier answers stay in the prompt": ({"messages": [*OLD, Q, A]}, after(*OLD, Q)),
    "HH-RLHF prompt": ({"prompt": "\n\nHuman: q\n\nAssistant:", "response": "a"}, after(Q)),
    "HH-RLHF prompt of three turns": (
        {"prompt": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:", "response": "a"},
        after(*OLD, Q),
    ),
    "marks on a line": ({"prompt": "Human: q Assistant:", "chosen": "a"}, after(Q)),
    "marks on a line, three turns": (
        {"prompt": "Human: q0 Assistant: a0 Human: q Assistant:", "chosen": "a"},
        after(*OLD, Q),
    ),
    "marks on lines": (
        {"instruction": "Human: q0\nAssistant: a0\nHuman: q\nAssistant:", "output": "a"},
        after(*OLD, Q),
    ),
    "weights": (
        {"messages": [Q | {"loss_weight": 0.0}, OLD[1] | {"weight": 0}, Q, A | {"loss_weight": 1.0}]},
        after(Q | {"weight": 0}, OLD[1] | {"weight": 0}, Q),
    ),
    "trainable": (
        {"messages": [*OLD[:1], OLD[1] | {"trainable": False}, Q, A]},
        after(OLD[0], OLD[1] | {"weight": 0}, Q),
    ),
}


@pytest.mark.parametrize(("row", "prompt"), BESIDE.values(), ids=BESIDE.keys())
def test_a_prompt_has_parts_and_turns(one, row, prompt):
    assert one(row) == ("sft", prompt | {"response": "a"})


PAIRS = {
    "texts": ({"prompt": "q", **PAIR}, {"prompt": "q"}),
    "question with system": ({"system": "s", "question": "q", **PAIR}, after(S, Q)),
    "Alpaca": ({"instruction": "q", "input": "5", "output": "x", **PAIR}, {"prompt": "q\n\n5", "output": "x"}),
    "turns beside a text": ({"prompt": "q", "chosen": [A], "rejected": [B]}, {"prompt": "q"}),
    "dialogues beside a text": ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]}, {"prompt": "q"}),
    "prompt as turns": ({"prompt": [S, Q], "chosen": A, "rejected": "b"}, after(S, Q)),
    "dialogues without the system turn": ({"prompt": [S, Q], "chosen": [Q, A], "rejected": "b"}, after(S, Q)),
    "conversations": ({"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b")}, TURNS),
    "dialogues": ({"chosen": [Q, A], "rejected": [Q, B]}, TURNS),
    "messages": ({"messages": [Q], "chosen": "a", "rejected": [B]}, TURNS),
    "HH-RLHF": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, TURNS),
    "HH-RLHF prompt": ({"prompt": "\n\nHuman: q\n\nAssistant:", **PAIR}, TURNS),
    "HH-RLHF everywhere": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant:",
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
        },
        TURNS,
    ),
    "preference 1 of answer1": ({"question": "q", "answer1": "a", "answer2": "b", "preference": 1}, {"prompt": "q"}),
    "preference 2": ({"question": "q", "answer1": "b", "answer2": "a", "preference": "2"}, {"prompt": "q"}),
    "preference by name": ({"question": "q", "answer1": "b", "answer2": "a", "preference": "answer2"}, {"prompt": "q"}),
    "winner": ({"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": "A"}, {"prompt": "q"}),
    "winning model": ({"prompt": "q", "answer_a": "b", "answer_b": "a", "winner": "model_b"}, {"prompt": "q"}),
    "better_response_id": (
        {"prompt": "q", "response_0": "b", "response_1": "a", "better_response_id": 1},
        {"prompt": "q"},
    ),
    "two dialogues": ({"conversation_a": [Q, B], "conversation_b": [Q, A], "winner": "model_b"}, TURNS),
    "margin": ({"prompt": "q", **PAIR, "margin": 0.5}, {"prompt": "q", "margin": 0.5}),
    "scores of a pair": (
        {"prompt": "q", **PAIR, "score_chosen": 5, "score_rejected": 2.5},
        {"prompt": "q", "margin": 2.5},
    ),
    "two answers with scores": (
        {"question": "q", "answer_0": "b", "answer_1": "a", "score_0": -1, "score_1": 1},
        {"prompt": "q", "margin": 2},
    ),
    "scores": ({"prompt": "q", "answers": ["c", "a", "b"], "scores": [2, 3, 1]}, {"prompt": "q", "margin": 2}),
    "ranks": ({"prompt": "q", "responses": ["b", "c", "a"], "ranks": [3, 2, 1]}, {"prompt": "q"}),
    "objects": (
        {"instruction": "q", "completions": [{"text": "b", "score": 1}, {"text": "a", "score": 4}]},
        {"prompt": "q", "margin": 3},
    ),
    "ranked objects": (
        {"prompt": "q", "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}]},
        {"prompt": "q"},
    ),
}


@pytest.mark.parametrize(
    "word", ["first", "left", " Left ", "0", 0, "response_0", "second", "RIGHT", "1", "response 1"]
)
def test_a_verdict_is_a_word_a_number_or_a_name(one, word):
    second = str(word).strip().lower() in ("second", "right", "1", "response 1")
    answers = {"response_0": "b" if second else "a", "response_1": "a" if second else "b"}
    assert one({"prompt": "q", **answers, "winner": word})[1] == {"prompt": "q", **PAIR}


@pytest.mark.parametrize(("row", "rest"), PAIRS.values(), ids=PAIRS.keys())
def test_a_pair_is_written_in_many_ways(one, row, rest):
    assert one(row) == ("preference", rest | PAIR)


def test_all_pairs_of_answers_with_scores(read):
    row = {"prompt": "q", "answers": ["x", "y", "z", "w"], "scores": [1, 3, 1, 2]}
    assert read(row).notes[-1] == "1 rows have more than two answers: the best and the worst make a pair"
    rows = read(row, pairs="all").rows
    assert [(r["chosen"], r["rejected"], r["margin"]) for r in rows] == [
        *[("y", "w", 1), ("y", "x", 2), ("y", "z", 2)],
        *[("w", "x", 1), ("w", "z", 1)],
    ]


LABELS = [
    *[(True, True), (1, True), ("true", True), ("True", True), ("1", True), ("good", True), ("thumbs_up", True)],
    *[("Thumbs up", True), ("👍", True), ("desirable", True), (1.0, True)],
    *[
        (False, False),
        (0, False),
        ("FALSE", False),
        ("0", False),
        ("bad", False),
        ("thumbs-down", False),
        ("👎", False),
    ],
]


@pytest.mark.parametrize(("label", "expected"), LABELS)
def test_a_label_is_written_in_many_ways(one, label, expected):
    assert one({"prompt": "q", "completion": "a", "label": label}) == ("unpaired", TEXT | {"label": expected})


def test_every_answer_can_have_a_label(one):
    labelled = [
        {"messages": [Q, A], "label": True},
        {"conversations": [human("q"), gpt("a")], "kto_tag": True},
        {"prompt": [Q], "completion": [A], "label": True},
        {"instruction": "q", "input": "", "output": "a", "thumbs": "up"},
        {"question": "q", "answer": "a", "is_correct": True},
    ]
    for row, prompt in zip(labelled, (TURNS, TURNS, TURNS, {"prompt": "q"}, {"prompt": "q"}), strict=True):
        assert one(row) == ("unpaired", prompt | {"response": "a", "label": True})


def test_steps_have_labels(one):
    expected = {"prompt": "q", "steps": ["a\n", "b"], "labels": [True, False]}
    for name in ("steps", "completions"):
        assert one({"prompt": "q", name: ["a", "b"], "labels": [True, "false"]}) == ("steps", expected)
    for steps in (["a. ", "b. "], ["a", " b"], ["a\n", "b"]):
        assert one({"prompt": "q", "steps": steps, "labels": [True, True]})[1]["steps"] == steps


VERL = {"style": "rule", "ground_truth": "72"}
PROMPTS = {
    "prompt": ({"prompt": "q"}, {"prompt": "q"}),
    "question": ({"question": "q"}, {"prompt": "q"}),
    "instruction": ({"instruction": "q", "input": "5"}, {"prompt": "q\n\n5"}),
    "turns": ({"prompt": [Q]}, TURNS),
    "dialogue that ends with the user": ({"messages": [S, Q]}, after(S, Q)),
    "texts that end with the user": (["q0", "a0", "q"], after(*OLD, Q)),
    "final answer": (
        {"prompt": "q", "answer": "so\n#### 1,072"},
        {"prompt": "q", "response": "so\n#### 1,072", "answer": "1072"},
    ),
    "an answer of your own": ({"prompt": "q", "answer": 72}, {"prompt": "q", "answer": 72}),
    "BELLE's evaluation": ({"question": "q", "std_answer": "a"}, {"prompt": "q", "answer": "a"}),
    "without an answer": ({"question": "q", "std_answer": ""}, {"prompt": "q"}),
    "verl": ({"prompt": [Q], "reward_model": VERL}, TURNS | {"reward_model": VERL, "answer": "72"}),
}


@pytest.mark.parametrize(("row", "expected"), PROMPTS.values(), ids=PROMPTS.keys())
def test_a_prompt_alone(one, row, expected):
    assert one(row) == ("prompt", expected)


def test_a_question_with_a_final_answer_serves_sft_and_checks(one):
    row = {"question": "q", "answer": "3*4=12\n#### 12"}
    assert one(row) == ("sft", {"prompt": "q", "response": row["answer"], "answer": "12"})
    assert one(row, as_kind="prompts") == ("prompt", {"prompt": "q", "response": row["answer"], "answer": "12"})


@pytest.mark.parametrize("mark", ["#### 1,072", "#### $1,072\n", "#### -3.5", "#### 1/2 "])
def test_a_last_line_with_a_number_is_the_final_answer(one, mark):
    assert one({"prompt": "q", "response": f"so\n{mark}"})[1]["answer"] == mark[5:].strip().replace(",", "")


@pytest.mark.parametrize(
    "text", ["#### Plan\ndo it", "a\n#### 3 ways\nb", "#### 3\nb", "so #### 3", "#### five", "####"]
)
def test_a_heading_of_markdown_is_no_final_answer(one, text):
    for names in (("prompt", "response"), ("instruction", "output")):
        assert "answer" not in one(dict(zip(names, ("q", text), strict=True)))[1]
    assert one({"question": "q", "answer": text})[1] == {"prompt": "q", "response": text, "answer": text}


def test_an_answer_of_your_own_goes_before_the_last_line_of_the_response(one):
    row = {"prompt": "q", "response": "so\n#### 3", "answer": "three"}
    assert one(row) == ("sft", row)


def test_raw_text(one):
    assert one({"text": " t\n", "url": "u"}) == ("text", {"prompt": "", "response": " t\n", "url": "u"})


def test_lists_of_texts_of_both_lengths_are_prompts(read):
    dataset = read(["q", "a"], ["q0", "a0", "q"], ["q", "b"])
    assert (dataset.kind, len(dataset.rows), dataset.refused) == ("prompt", 3, [])
    assert "some lists of turns end with the user: all are prompts" in dataset.notes[0]
    assert [row["prompt"] for row in dataset.rows] == [after(Q)["prompt"], after(*OLD, Q)["prompt"], after(Q)["prompt"]]


# ---- turns with more than text ----


def test_tools_and_calls_become_canonical(one):
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    seen = {"from": "observation", "value": '{"y": 2}'}
    tools = '[{"name": "f", "description": "d"}]'
    kind, row = one({"conversations": [human("q"), call, seen, gpt("a")], "tools": tools})
    assert (kind, row["response"], row["tools"]) == ("sft", "a", [TOOL])
    turns = [Q, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": '{"y": 2}'}]
    assert row["prompt_turns"] == turns
    head = f"Tools:\n{json.dumps(TOOL)}\n\n"
    body = f'User:\nq\n\nAssistant:\n{CALL_TEXT}\n\nTool:\n{{"y": 2}}\n\nAssistant:\n'
    assert row["prompt"] == head + body


CALLS = {
    "OpenAI's": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "function": CALL["function"] | {"arguments": '{"x": 1}'}}],
    },
    "the old key": {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
    "a bare call": {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "parameters": {"x": 1}}]},
    "as text": {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
    "a part": {
        "role": "assistant",
        "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}],
    },
    "a role": {"role": "function_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
}


@pytest.mark.parametrize("answer", CALLS.values(), ids=CALLS.keys())
def test_an_answer_can_be_a_call(one, answer):
    kind, row = one({"messages": [Q, answer]})
    assert (kind, row["response"]) == ("sft", CALL_TEXT)
    assert row["response_turns"] == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_keys_of_a_turn_stay_whole(one):
    answer = A | {"reasoning_content": "because", "name": "Ann", "id": 7}
    _, row = one({"messages": [Q | {"name": "Bob"}, answer]})
    assert row["prompt_turns"] == [Q | {"name": "Bob"}]
    assert row["response_turns"] == [answer]
    assert row["response"] == "<think>\nbecause\n</think>\n\na"
    _, row = one({"messages": [Q], "chosen": answer, "rejected": "b"})
    assert row["chosen_turns"] == [answer] and "rejected_turns" not in row


def test_reasoning_parts_are_reasoning(one):
    parts = [{"type": "reasoning", "value": "because"}, {"type": "text", "value": "a"}]
    _, row = one({"messages": [Q, {"role": "assistant", "content": parts}]})
    assert row["response_turns"] == [A | {"reasoning_content": "because"}]


def test_moss_with_tools(one):
    turn = moss(
        **{
            "Inner Thoughts": "<|Inner Thoughts|>: why<eot>\n",
            "Commands": '<|Commands|>: Search("x, y"), Calculate("1+(2)"), None<eoc>\n',
            "Tool Responses": '<|Results|>:\nSearch("x, y") =>\n<|1|>: z\n<eor>\n',
        }
    )
    instruction = "s\n- Web search: enabled. API: Search(query)"
    _, row = one({"meta_instruction": instruction, "chat": {"turn_1": moss(), "turn_2": turn}})
    calls = [{"name": "Search", "arguments": {"query": "x, y"}}, {"name": "Calculate", "arguments": {"input": "1+(2)"}}]
    assert row["prompt_turns"] == [
        {"role": "system", "content": instruction},
        *[Q, A, Q],
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "why",
            "tool_calls": [{"type": "function", "function": call} for call in calls],
        },
        {"role": "tool", "content": 'Search("x, y") =>\n<|1|>: z'},
    ]
    assert row["response"] == "a"


@pytest.mark.parametrize(
    ("commands", "calls"),
    [
        ('Search("a")', [("Search", "a")]),
        ("Search('a, b')", [("Search", "a, b")]),
        ("Search(\"a')", [("Search", "\"a'")]),  # no pair of quotes
        ('Search(")', [("Search", '"')]),
        ("Search(aa)", [("Search", "aa")]),  # equal letters are no quotes
        ('"a"', [("Commands", '"a"')]),  # no call
    ],
)
def test_the_argument_of_a_command_of_moss_stands_in_quotes(one, commands, calls):
    turn = moss(Commands=f"<|Commands|>: {commands}<eoc>\n", **{"Tool Responses": "<|Results|>:\nz\n<eor>\n"})
    _, row = one({"meta_instruction": "s", "chat": {"turn_1": turn}})
    (asked,) = [turn for turn in row["prompt_turns"] if "tool_calls" in turn]
    expected = [{"name": name, "arguments": {"input": text}} for name, text in calls]
    assert [call["function"] for call in asked["tool_calls"]] == expected


def test_the_call_of_a_tool_may_hold_a_thought(one):
    call = {"from": "function_call", "value": '<think>\nwhy\n</think>\n{"name": "f", "arguments": {"x": 1}}'}
    _, row = one({"conversations": [human("q"), call, {"from": "observation", "value": "z"}, gpt("a")]})
    assert row["prompt_turns"][1:] == [
        {"role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [CALL]},
        {"role": "tool", "content": "z"},
    ]


@pytest.mark.parametrize("result", [{"x": [1, None]}, [1, "é"], 5, True])
def test_the_result_of_a_tool_may_be_any_json(one, result):
    asked = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    _, row = one({"messages": [Q, asked, {"role": "tool", "content": result}, A]})
    assert row["prompt_turns"][-1]["role"] == "tool" and json.loads(row["prompt_turns"][-1]["content"]) == result


def test_an_answer_in_which_a_tool_speaks_is_written_with_headers(one):
    asked, z = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "z"}
    _, row = one({"prompt": "q", "response": [asked, z, A]})
    assert row["response"] == f"{CALL_TEXT}\n\nTool:\nz\n\nAssistant:\na" and row["response_turns"] == [asked, z, A]


def test_a_text_beside_tools_is_a_user_turn(one):
    _, row = one({"prompt": "q", "response": "a", "tools": [TOOL]})
    assert (row["prompt_turns"], row["tools"], row["response"]) == ([Q], [TOOL], "a")


@pytest.mark.parametrize("prompt", ["Human: q Human: p Assistant:", "Human: q\nHuman: p\nAssistant:"])
def test_marks_of_speakers_that_do_not_take_turns_are_text(one, prompt):
    (turn,) = one({"prompt": prompt, "response": "a"})[1]["prompt_turns"]
    assert turn["role"] == "user" and turn["content"].split() == ["q", "Human:", "p"]


REFUSED = {
    "history": ({**TEXT, "history": [["x"]]}, "history: needed pairs"),
    "history of numbers": ({**TEXT, "history": [1, 2]}, "history: needed pairs"),
    "number of turns": ({"meta_instruction": "s", "num_turns": 2, "chat": {"turn_1": moss()}}, "num_turns: "),
    "instruction of MOSS": ({"meta_instruction": 5, "chat": {"turn_1": moss()}}, "meta_instruction: needed text"),
    "labels of steps": ({"prompt": "q", "steps": ["a"], "labels": [1]}, "labels: needed true or false"),
    "equal scores": ({"prompt": "q", "answers": ["a", "b"], "scores": [1, 1]}, "different scores"),
    "a tool first": ({"prompt": "q", "response": [{"role": "tool", "content": "z"}, A]}, "an assistant turn first"),
    "turns beside an input": (
        {"instruction": [Q], "instances": [{"input": "x", "output": "a"}]},
        "instances: needed an instruction that is text",
    ),
    "no instances": ({"instruction": "q", "instances": []}, "instances: needed a list"),
    "instances as an object": ({"instruction": "q", "instances": {"output": "a"}}, "instances: needed a list"),
    "an instance as text": ({"instruction": "q", "instances": [{"output": "a"}, "b"]}, "instances: needed a list"),
    "two system texts": ({"system": "t", "prompt": [S, Q], "response": "a"}, "system: needed a system text, got 2"),
    "scores the wrong way": ({"prompt": "q", **PAIR, "score_chosen": 1, "score_rejected": 2}, "needed at least"),
    "tools": ({**TEXT, "tools": 5}, "tools: needed a list"),
    "tools without a name": ({**TEXT, "tools": [{"x": 1}]}, "tools with a name"),
    "a call without a name": (
        {"messages": [Q, {"role": "assistant", "content": "", "tool_calls": [{"arguments": {}}]}]},
        "tool call: needed",
    ),
}


@pytest.mark.parametrize(("row", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_row_that_contradicts_itself_is_refused(read, row, reason):
    with pytest.raises(InputError, match=reason):
        read(row)


def test_equal_scores_of_a_pair_are_a_margin_of_0(one):
    row = {"prompt": "q", **PAIR, "score_chosen": 2, "score_rejected": 2}
    assert one(row)[1] == {"prompt": "q", **PAIR, "margin": 0}


# ---- names and kinds that the user chooses ----


def test_prompts_may_be_read_as_texts(one):
    assert one({"prompt": "q"}, as_kind="text") == ("text", {"prompt": "", "response": "q"})


@pytest.mark.parametrize("settings", [{"pairs": "worst"}, {"columns_map": {"prompt": "x", "response": "x"}}])
def test_settings_that_say_nothing_are_refused(read, settings):
    with pytest.raises(InputError, match=f"^{next(iter(settings)).removeprefix('columns_')}: needed "):
        read({"x": "q"}, **settings)


def test_columns_can_be_named(one, read):
    assert one({"ask": "q", "reply": "a"}, columns_map={"prompt": "ask", "response": "reply"}) == ("sft", TEXT)
    swapped = {"prompt": "response", "response": "prompt"}
    assert one({"prompt": "a", "response": "q"}, columns_map=swapped) == ("sft", TEXT)
    with pytest.raises(InputError, match="map: needed a name that a layout reads, got 'promt'; the nearest is prompt"):
        read({"ask": "q"}, columns_map={"promt": "ask"})
    with pytest.raises(InputError, match="map: needed columns of the file, got asks; the file has prompt"):
        read({"prompt": "q"}, columns_map={"instruction": "asks"})
    with pytest.raises(InputError, match="map: prompt is a column too"):
        read({"prompt": "q", "ask": "r"}, columns_map={"prompt": "ask"})


LABELLED = TEXT | {"label": False}
KINDS = {
    "pair as sft": ({"prompt": "q", **PAIR}, "sft", "sft", [TEXT | PAIR]),
    "pair as unpaired": (
        {"prompt": "q", **PAIR},
        "unpaired",
        "unpaired",
        [TEXT | PAIR | {"label": True}, TEXT | PAIR | {"response": "b", "label": False}],
    ),
    "pair as prompts": ({"prompt": "q", **PAIR}, "prompts", "prompt", [{"prompt": "q", **PAIR}]),
    "answer as prompts": (TEXT, "prompts", "prompt", [TEXT]),
    "own answer as sft": ({"prompt": "q", "answer": "a"}, "sft", "sft", [TEXT | {"answer": "a"}]),
    "std_answer as sft": ({"question": "q", "std_answer": "a"}, "sft", "sft", [TEXT | {"answer": "a"}]),
    "text as prompts": ({"text": "q"}, "prompts", "prompt", [{"prompt": "q", "response": "q"}]),
}


@pytest.mark.parametrize(("row", "name", "kind", "rows"), KINDS.values(), ids=KINDS.keys())
def test_the_user_can_choose_the_kind(read, row, name, kind, rows):
    dataset = read(row, as_kind=name)
    assert (dataset.kind, [{**found, "line": 1} for found in rows]) == (kind, list(dataset.rows))


def test_only_good_answers_are_learned(read):
    dataset = read(
        {"prompt": "q", "completion": "b", "label": 0}, {"prompt": "q", "completion": "a", "label": 1}, as_kind="sft"
    )
    assert [row["line"] for row in dataset.rows] == [2]
    assert dataset.kind == "sft" and "1 rows with a bad label are left out" in dataset.notes


def test_a_kind_that_the_row_does_not_hold_is_refused(read):
    with pytest.raises(InputError, match=r"as_kind: needed a row that holds steps, got {prompt, response}"):
        read(TEXT, as_kind="steps")
    with pytest.raises(
        InputError, match="as_kind: needed one of sft, preference, unpaired, prompts, steps, text, got 'pr"
    ):
        read(TEXT, as_kind="prompt")


def test_a_file_with_two_readings_says_which_it_took(read):
    assert "read as sft rows; --as prompts" in read({"question": "q", "answer": "a"}).summary()
    assert "read as text rows; --as prompts" in read({"text": "t"}).summary()


def test_the_layouts_have_kinds_and_slots():
    assert {layout.kind for layout in LAYOUTS} == {"sft", "preference", "unpaired", "steps", "prompt", "text"}


def test_a_list_of_rows_under_an_unknown_name_is_advised(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"stuff": [{"prompt": "a", "response": "b"}], "n": 1}))
    with pytest.raises(InputError, match="--map; if stuff holds the rows, write this list alone into the file"):
        read_rows(tmp_path / "a.json")
