"""A plain Python function as a tool: its schema for chat templates, and calls that never raise."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from minirlhf.environments.calls import Call
from minirlhf.environments.tools.failure import ToolError
from minirlhf.errors import InputError, shown
from minirlhf.foreign import message_of, one_line, unicode_text
from minirlhf.rewards.calling import TookTooLong, awaited, in_thread

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
LETTERS = 200  # of an error's message


@dataclass(frozen=True)
class Tool:
    """A function that a policy may call. `schema` is OpenAI's form, as chat templates read it."""

    name: str
    function: Callable[..., Any]
    schema: dict[str, Any]

    @property
    def parameters(self) -> dict[str, dict]:
        return self.schema["function"]["parameters"]["properties"]

    @property
    def required(self) -> list[str]:
        return self.schema["function"]["parameters"]["required"]

    def arguments(self, call: Call) -> dict[str, Any]:
        """The arguments of a call by name.   Raises: ToolError, a sentence that names the fault."""
        given = call.arguments
        if isinstance(given, str):
            given = self._of_text(given)
        if unknown := [name for name in given if name not in self.parameters]:
            raise ToolError(f"{shown(unknown[0], 40)} is no argument; it takes {', '.join(self.parameters) or 'none'}")
        if missing := [name for name in self.required if name not in given]:
            raise ToolError(f"needed the argument {missing[0]}, got none")
        for name, value in given.items():
            check_type(name, value, self.parameters[name])
        return given

    def _of_text(self, text: str) -> dict[str, Any]:
        """Text between plain tags: the first argument, or a JSON object for a tool that needs more arguments."""
        if not self.parameters:
            return {}
        if len(self.required) > 1:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise ToolError(f"needed a JSON object with {', '.join(self.required)}, got {shown(text, 40)}")
            return value
        name, schema = next(iter(self.parameters.items()))
        if schema.get("type") in ("integer", "number", "boolean", "array", "object"):
            try:
                return {name: json.loads(text)}
            except (ValueError, RecursionError):
                raise ToolError(f"needed {schema['type']} as {name}, got {shown(text, 40)}") from None
        return {name: text}

    def answer(self, call: Call, seconds: float) -> tuple[str, BaseException | None]:
        """-> (the tool's answer or an error text, the exception of a faulty tool). It never raises.

        The tool runs in a thread. After `seconds` the answer is an error text, and the thread is left alone.
        """
        try:
            arguments = self.arguments(call)
        except ToolError as error:
            return self.failed(str(error)), None

        def act() -> tuple[str, BaseException | None]:
            try:
                return text_of(self.function(**arguments)), None
            except BaseException as error:  # a tool may even call sys.exit
                return "", error

        try:
            text, error = in_thread(act, seconds)
        except TookTooLong:
            return self.failed(f"no answer after {round(seconds, 2):g} seconds"), None
        if error is None:
            return text, None
        reason = message_of(error)
        if isinstance(error, ToolError):
            return self.failed(reason), None
        return self.failed(f"{type(error).__name__}: {reason}"), error

    def failed(self, reason: str) -> str:
        if len(reason) > 8 * LETTERS:  # megabytes of text would take long below
            reason = f"{reason[: 4 * LETTERS]} {reason[-4 * LETTERS :]}"
        return f"error: {self.name}: {one_line(' '.join(reason.split()), LETTERS)}"


@lru_cache(maxsize=256)
def tool_of(function: Callable[..., Any]) -> Tool:
    """The tool of a function: its name, its signature, the first paragraph of its docstring, and its lines `Args:`.

    Raises: InputError if the function has no name, or takes positional or open-ended arguments.
    """
    name = getattr(function, "__name__", "")
    if not callable(function) or not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise InputError(f"TextEnvironment: needed a function with a name as tool, got {shown(function)}; use def")
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise InputError(f"tool {name}: needed a signature with known types, got: {error}") from None
    description, texts = described(inspect.getdoc(function) or "")
    properties = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"tool {name}: needed arguments with names, got {parameter}; name each argument")
        about = {"description": texts[parameter.name]} if parameter.name in texts else {}
        properties[parameter.name] = {**type_schema(hints.get(parameter.name, str)), **about}
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    parameters = {"type": "object", "properties": properties, "required": required}
    schema = {"name": name, "description": description, "parameters": parameters}
    return Tool(name, function, {"type": "function", "function": schema})


def described(doc: str) -> tuple[str, dict[str, str]]:
    """-> (the first paragraph of a docstring, argument -> its text)."""
    head, _, rest = doc.partition("Args:")
    lines = re.split(r"\n(?=\S)", rest.strip("\n"))[0]  # up to the next section
    found = re.findall(r"^\s*(\w+)(?: \([^)]*\))?: *(.*(?:\n\s{6,}.*)*)", lines, re.MULTILINE)
    return " ".join(head.strip().split("\n\n")[0].split()), {name: " ".join(text.split()) for name, text in found}


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type: text, numbers, booleans, lists, objects, Literal; X | None is X; else any value."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"type": TYPES.get(type(inner[0]), "string"), "enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        some = [each for each in inner if each is not type(None)]
        return type_schema(some[0]) if len(some) == 1 else {}
    if origin is list and inner:
        return {"type": "array", "items": type_schema(inner[0])}
    return {"type": TYPES[origin or hint]} if (origin or hint) in TYPES else {}


def check_type(name: str, value: Any, schema: dict[str, Any]) -> None:
    """Raise ToolError unless a JSON value has the type of its argument."""
    wanted = schema.get("type")
    known = TYPES.get(type(value))
    if wanted and known != wanted and not (wanted == "number" and known == "integer"):
        raise ToolError(f"needed {wanted} as {name}, got {shown(value, 40)}")
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(f"needed {' or '.join(map(str, schema['enum']))} as {name}, got {shown(value, 40)}")


def text_of(result: Any) -> str:
    """A tool's result as text: text itself, other JSON values as JSON. A coroutine is awaited.

    Raises: ToolError for any other result, such as None.
    """
    if inspect.isawaitable(result):
        result = awaited(result)
    if isinstance(result, str):
        return unicode_text(result)
    if result is not None:
        try:
            return unicode_text(json.dumps(result, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            pass
    raise ToolError(f"needed a text as the tool's answer, got {type(result).__name__}")
