"""The exact text of the plain chat layout, and the turns that it refuses."""

from __future__ import annotations

import pytest

from minirlhf.errors import InputError
from minirlhf.text import Tokenizer
from minirlhf.text.chat import render_chat
from minirlhf.text.turns import mask_of


def test_layout_is_exact():
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Hello", "loss_weight": 1.0},
    ]
    assert render_chat(turns) == "System:\nBe kind.\n\nUser:\n Hi\n\n\nAssistant:\nHello\n\n"


def test_the_generation_prompt_is_the_header_of_the_answer():
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    prompt = render_chat([user], add_generation_prompt=True)
    assert prompt == "User:\nHi\n\nAssistant:\n"
    assert render_chat([user, answer]) == prompt + "Hello\n\n"


def test_no_turns_give_no_text():
    assert render_chat([]) == ""
    assert render_chat([], add_generation_prompt=True) == "Assistant:\n"


@pytest.mark.parametrize(("alias", "role"), [("human", "user"), ("gpt", "assistant")])
def test_aliases_render_like_their_role(alias, role):
    assert render_chat([{"role": alias, "content": "x"}]) == render_chat([{"role": role, "content": "x"}])


@pytest.mark.parametrize("role", ["function_call", "User", None, ["user"]])
def test_unknown_role_is_refused_and_the_error_lists_the_known_roles(role):
    with pytest.raises(
        InputError, match="role: needed one of user, human, assistant, gpt, system, tool, got .*; rename"
    ):
        render_chat([{"role": role, "content": "x"}])


def test_content_must_be_a_string():
    with pytest.raises(InputError, match="turn 2: needed content as a string, got list; convert it first"):
        render_chat([{"role": "user", "content": "x"}, {"role": "user", "content": ["x"]}])


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": "\u00e9"}}}


def test_tools_reasoning_calls_and_results_are_written_as_plain_text():
    turns = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Two."},
    ]
    call = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"x": 1, "y": "\u00e9"}}\n</tool_call>'
    text = f"User:\nAdd\n\nAssistant:\n{call}\n\nTool:\nadd:\n2\n\nAssistant:\nTwo.\n\n"
    assert render_chat(turns) == text
    assert render_chat(turns, tools=[{"name": "add"}, {"name": "b"}]) == (
        'Tools:\n{"name": "add"}\n{"name": "b"}\n\n' + text
    )


def test_without_a_template_turns_are_encoded_as_their_plain_text():
    tokenizer = Tokenizer.train(["User:", "Assistant:", "the kettle is good."] * 4, 280)
    turns, thought = [{"role": "user", "content": "Hi"}], {"content": "good.", "reasoning_content": "why"}
    prompt, answers = tokenizer.encode_turns(turns, ["the kettle", {"role": "assistant", **thought}])
    assert [prompt] == tokenizer.encode_prompts(["User:\nHi\n\nAssistant:\n"])
    assert answers == tokenizer.encode_responses(["the kettle", "<think>\nwhy\n</think>\n\ngood."])


def test_a_token_is_the_assistants_if_any_part_of_it_is_in_a_span():
    # a token without width counts as the character that follows
    offsets = [(0, 2), (2, 2), (2, 4), (3, 5), (4, 4), (4, 6), (7, 9)]
    assert mask_of(offsets, [(2, 4)]) == [False, True, True, True, False, False, False]
    assert mask_of(offsets, [(1, 2), (8, 12)]) == [True, False, False, False, False, False, True]
    assert mask_of(offsets, []) == [False] * 7 and mask_of([], [(0, 9)]) == []
