"""Python functions as tools: their schemas, and calls that never raise."""

import asyncio
import sys
import time
from typing import Literal

import pytest

from minirlhf.environments.calls import Call
from minirlhf.environments.tool import tool_of
from minirlhf.environments.tools.calculator import calculator
from minirlhf.environments.tools.failure import ToolError
from minirlhf.errors import InputError


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", near: list[float] | None = None):
    """Tell the weather
    of a city.

    It knows no towns.

    Args:
        city: the name
            of the city
        days (int): how many
    Returns:
        text: the weather
    """
    return f"{city} {days} {unit} {near}"


def answer(function, arguments, seconds=5.0):
    tool = tool_of(function)
    return tool.answer(Call(tool.name, arguments), seconds)[0]


def test_a_long_error_keeps_its_ends():
    def broken(text: str):
        raise ValueError(text)

    text = answer(broken, {"text": f"first {'x ' * 5000} last"})
    assert text.startswith("error: broken: ValueError: first x x") and text.endswith("x x last") and len(text) < 250


def test_the_schema_of_a_signature_and_its_docstring():
    assert tool_of(weather).schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "the name of the city"},
                    "days": {"type": "integer", "description": "how many"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "near": {"type": "array", "items": {"type": "number"}},
                },
                "required": ["city"],
            },
        },
    }
    assert tool_of(calculator).parameters == {
        "expression": {"type": "string", "description": "for example 12 * (3 + 4.5)"}
    }


def test_arguments_by_name_and_as_plain_text():
    assert answer(weather, {"city": "Lima", "days": 2}) == "Lima 2 C None"
    assert answer(weather, "Lima") == "Lima 1 C None"

    def add(a: int, b: float):
        return a + b

    def double(n: int):
        return 2 * n

    def now():
        return {"hour": 3}

    assert answer(add, '{"a": 1, "b": 2}') == "3"
    assert answer(double, "21") == "42"
    assert answer(now, "ignored") == '{"hour": 3}'
    assert answer(add, "1, 2") == "error: add: needed a JSON object with a, b, got '1, 2'"
    assert answer(double, "many") == "error: double: needed integer as n, got 'many'"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "needed the argument city, got none"),
        ({"town": "Lima"}, "'town' is no argument; it takes city, days, unit, near"),
        ({"city": 3}, "needed string as city, got 3"),
        ({"city": "Lima", "days": 1.5}, "needed integer as days, got 1.5"),
        ({"city": "Lima", "days": True}, "needed integer as days, got True"),
        ({"city": "Lima", "unit": "K"}, "needed C or F as unit, got 'K'"),
    ],
)
def test_wrong_arguments_are_named(arguments, reason):
    assert answer(weather, arguments) == f"error: weather: {reason}"


def bad(kind: str):
    match kind:
        case "raises":
            raise KeyError("here\nand there")
        case "refuses":
            raise ToolError("no such thing")
        case "exits":
            sys.exit(3)
        case "stops":
            raise KeyboardInterrupt
        case "none":
            return None
        case "object":
            return object()
        case "nan":
            return float("nan")
        case "hangs":
            time.sleep(2)
        case "long":
            raise ValueError("x" * 10**7)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("raises", "error: bad: KeyError: 'here\\nand there'"),
        ("refuses", "error: bad: no such thing"),
        ("exits", "error: bad: SystemExit: 3"),
        ("stops", "error: bad: KeyboardInterrupt:"),
        ("none", "error: bad: needed a text as the tool's answer, got NoneType"),
        ("object", "error: bad: needed a text as the tool's answer, got object"),
        ("nan", "error: bad: needed a text as the tool's answer, got float"),
        ("hangs", "error: bad: no answer after 0.05 seconds"),
    ],
)
def test_a_bad_tool_answers_with_an_error(kind, text):
    assert answer(bad, {"kind": kind}, seconds=0.05 if kind == "hangs" else 5.0) == text


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


class MuteTool(ToolError):
    __str__ = Mute.__str__


@pytest.mark.parametrize(("error", "kind"), [(Mute, "Mute: "), (MuteTool, "")])
def test_an_error_that_cannot_say_its_message_is_an_answer(error, kind):
    def mute(text: str):
        raise error

    assert answer(mute, "a") == f"error: mute: {kind}its message cannot be read"


def test_half_of_a_surrogate_pair_in_an_answer_is_no_text():
    """A model can write it in JSON, and a web page can hold it; a tokenizer refuses it."""

    def echo(text: str):
        return text

    def pages(text: str):
        return [text, {text: 1}]

    def raises(text: str):
        raise KeyError(text)

    for function in (echo, pages, raises):
        found = answer(function, {"text": "a\ud800b"})
        assert "a" in found and "b" in found and found.encode()
    assert answer(echo, {"text": "a\ud800b"}) == "a\ufffdb"


def test_a_long_error_is_cut():
    assert len(answer(bad, "long")) < 250


def test_an_async_tool_is_awaited():
    async def slow(text: str):
        await asyncio.sleep(0.001)
        return text.upper()

    async def hangs(text: str):
        await asyncio.sleep(2)

    assert answer(slow, "a") == "A"
    assert answer(hangs, "a", seconds=0.05) == "error: hangs: no answer after 0.05 seconds"


def test_a_tool_that_cancels_itself_or_raises_a_time_out_answers_with_an_error():
    async def cancels(text: str):
        raise asyncio.CancelledError

    async def late(text: str):
        await asyncio.wait_for(asyncio.sleep(9), 0.01)

    assert answer(cancels, "a") == "error: cancels: RuntimeError: the coroutine was cancelled"
    assert answer(late, "a") == "error: late: TimeoutError:"


def test_functions_that_cannot_be_tools():
    for function in (lambda x: x, 3, lambda: 0):
        with pytest.raises(InputError, match="needed a function with a name"):
            tool_of(function)

    def several(*texts):
        return ""

    with pytest.raises(InputError, match="tool several: needed arguments with names, got \\*texts"):
        tool_of(several)
