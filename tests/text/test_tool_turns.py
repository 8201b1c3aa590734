"""Turns with tools in the form that a template reads."""

import pytest

from minirlhf.text import Tokenizer
from minirlhf.text.tool_turns import has_tools, tool_form, with_arguments, without_tools

BYTES = Tokenizer.train(["ab"], 259)


def turns(calls):
    return "{% for m in messages %}{{ m.role + ':' + m.content }}" + calls + "{% endfor %}"


OBJECT = "{% for c in m.tool_calls or [] %}{{ c.function.arguments.place }}{% endfor %}"
STRING = "{% for c in m.tool_calls or [] %}{{ '!' + c.function.arguments }}{% endfor %}"
SCHEMAS = "{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (SCHEMAS + turns(OBJECT), "object"),
        (SCHEMAS + turns(STRING), "string"),
        (turns(OBJECT), None),  # it does not write the schemas
        (SCHEMAS + turns(""), None),  # it does not write the calls
        (SCHEMAS + "{% for m in messages if m.role != 'tool' %}{{ m.content }}" + OBJECT + "{% endfor %}", None),
    ],
    ids=["object", "string", "no schemas", "no calls", "no results"],
)
def test_a_trial_shows_whether_a_template_has_tools(template, form):
    assert tool_form(BYTES.with_template(template)) == form


def call(arguments):
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("arguments", "as_object", "as_string"),
    [
        ('{"x": 1}', {"x": 1}, '{"x": 1}'),
        ({"x": "\u00e9"}, {"x": "\u00e9"}, '{"x": "\u00e9"}'),
        ("not JSON", "not JSON", "not JSON"),
        ("[1]", "[1]", "[1]"),
    ],
)
def test_arguments_take_the_form_of_the_template(arguments, as_object, as_string):
    turn = {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}
    assert with_arguments(turn, "object")["tool_calls"] == [call(as_object)]
    assert with_arguments(turn, "string")["tool_calls"] == [call(as_string)]
    assert turn["tool_calls"] == [call(arguments)]


@pytest.mark.parametrize("odd", [[], [None], ["f"], [{"name": "f"}], [{"function": "f"}]])
def test_odd_calls_stay_as_they_are(odd):
    turn = {"role": "assistant", "content": "", "tool_calls": odd}
    assert with_arguments(turn, "object") == turn


def test_a_call_without_the_outer_object_is_read_too():
    turn = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}
    assert with_arguments(turn, "object")["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]


def test_without_tools_their_text_stands_in_the_turns():
    user, answer = {"role": "user", "content": "Add", "name": "Ann"}, {"role": "assistant", "content": "Two."}
    turn = {"role": "assistant", "content": "So:", "tool_calls": [call({"x": 1})], "reasoning_content": "Hm."}
    result = {"role": "tool", "content": "2", "name": "f", "tool_call_id": "1"}
    assert has_tools([user, turn]) and has_tools([result]) and not has_tools([user, answer])
    text = 'So:\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    plain = [user, {"role": "assistant", "content": text, "reasoning_content": "Hm."},
             {"role": "user", "content": "f:\n2"}, answer]  # fmt: skip
    assert without_tools([user, turn, result, answer], None) == plain
    tools = [{"name": "f"}]
    system = {"role": "system", "content": "Be kind."}
    assert without_tools([user, turn, result, answer], tools) == [
        {"role": "system", "content": 'Tools:\n{"name": "f"}'}, *plain
    ]  # fmt: skip
    assert without_tools([system, user], tools) == [
        {"role": "system", "content": 'Tools:\n{"name": "f"}\n\nBe kind.'}, user
    ]  # fmt: skip
