"""Tool calls in the text of a policy, in all the ways in which templates write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.environments.calls import Call, find_calls

NAMES = ("calculator", "search")
SUM = Call("calculator", {"expression": "1+2"})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<calculator>1+2</calculator>", [Call("calculator", "1+2")]),
        ("so <calculator> 1+2 </calculator><search>x</search>", [Call("calculator", "1+2"), Call("search", "x")]),
        ('<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+2"}}\n</tool_call>', [SUM]),
        ('<tool_call>{"name": "calculator", "arguments": "{\\"expression\\": \\"1+2\\"}"}</tool_call>', [SUM]),
        ('<tool_call>{"name": "calculator", "arguments": {"expression": "1+2"}}', [SUM]),  # the end token came first
        ('[TOOL_CALLS] [{"name": "calculator", "arguments": {"expression": "1+2"}, "id": "abcdefghi"}]', [SUM]),
        ('[TOOL_CALLS]calculator[ARGS]{"expression": "1+2"}[TOOL_CALLS]a[CALL_ID]x1[ARGS]{}', [SUM, Call("a", {})]),
        ('{"name": "calculator", "parameters": {"expression": "1+2"}}', [SUM]),
        ('<|python_tag|>{"name": "calculator", "parameters": {"expression": "1+2"}}; {"name": "a", "parameters": {}}',
         [SUM, Call("a", {})]),
        ("the answer is 3", []),
        ("<think>1+2</think> 3", []),  # no tool has this name
        ('{"name": "Bob"}', []),  # an answer in JSON
        ("{3}", []),
        ("", []),
    ],
)  # fmt: skip
def test_calls_of_all_templates(text, calls):
    assert find_calls(text, NAMES) == calls


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<calculator>1+2", "the call has no end; write </calculator> after it"),
        ("<tool_call>{oops}</tool_call>", "the call is no JSON: Expecting property name enclosed in double quotes"),
        ("<tool_call></tool_call>", 'needed a call in JSON: {"name": ..., "arguments": {...}}'),
        ('<tool_call>{"name": "calculator"}</tool_call>',
         "needed \"name\" and \"arguments\" in a call, got {'name': 'calculator'}"),
        ('[TOOL_CALLS][{"name": 3, "arguments": {}}]',
         "needed \"name\" and \"arguments\" in a call, got {'name': 3, 'arguments': {}}"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "needed an object of arguments, got [1]"),
        ('<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>',
         "the call is no JSON: the key 'name' stands twice in an object"),
        ("<tool_call>" + "[" * 9000, "the call is no JSON: maximum recursion depth exceeded"),
        ("[TOOL_CALLS]calculator[ARGS]{", "the call is no JSON: Expecting property name enclosed in double quotes"),
    ],
)  # fmt: skip
def test_a_wrong_call_has_a_sentence(text, error):
    (call,) = find_calls(text, NAMES)
    assert call.error.startswith(error)


def test_without_tools_a_call_is_still_a_call():
    """Its answer says that no tool has the name. A tag without a name, < >, is no call."""
    for call in ('<tool_call>{"name": "calculator", "arguments": {"expression": "1+2"}}</tool_call>',
                 '[TOOL_CALLS]calculator[ARGS]{"expression": "1+2"}',
                 '<|python_tag|>{"name": "calculator", "parameters": {"expression": "1+2"}}',
                 '{"name": "calculator", "parameters": {"expression": "1+2"}}'):  # fmt: skip
        assert find_calls(call, ()) == [SUM]
    assert find_calls("<calculator>1+2</calculator> <> </>", ()) == []


parts = st.sampled_from(
    ["<calculator>", "</calculator>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{",
     "}", "[", "]", '"name"', ":", '"arguments"', ",", "1", " ", "calculator", '"']
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(parts, max_size=20).map("".join), st.sampled_from([NAMES, ()]))
def test_no_text_is_too_strange(text, names):
    for call in find_calls(text, names):
        assert call.error or call.name
