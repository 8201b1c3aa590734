"""A checkpoint's own chat template: Jinja written by a stranger.

A child process renders it in a sandbox, with limits on processor time, memory and output for every conversation
(worker.py). A template that goes beyond a limit, or tries to leave the sandbox, is refused. No stranger
wrote the built-in layouts, so this process renders them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Callable

from minirlhf.errors import InputError
from minirlhf.foreign import SURROGATE
from minirlhf.text.checkpoint_tokenizer.content_parts import in_parts, needs_parts
from minirlhf.text.checkpoint_tokenizer.layouts import LAYOUTS
from minirlhf.text.checkpoint_tokenizer.worker import Worker, limits_for

OLDEST_JINJA = (3, 1, 6)  # older versions have known ways out of the sandbox
MAX_SOURCE = 1 << 20  # characters; the longest real template has 30 thousand
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
WAY_OUT = "choose a built-in layout, or delete the template"
BUILT_IN = {layout.template for layout in LAYOUTS.values()}

_USER, _ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
TRIALS = (
    {"messages": [_USER], "add_generation_prompt": True},
    {"messages": [_USER, _ANSWER]},
    {"messages": [{"role": "system", "content": "Be kind."}, _USER, _ANSWER, _USER], "add_generation_prompt": True},
    {"messages": [_USER], "tools": [{"type": "function", "function": _TOOL}], "add_generation_prompt": True},
)


class ChatTemplate:
    """A template that rendered a few small conversations without harm.

    Raises: InputError if it is broken or does harm.
    """

    def __init__(self, source: str, tokens: dict[str, str] | None = None) -> None:
        """tokens: special tokens by the names that templates use, {"bos_token": "<s>", ...}."""
        if len(source) > MAX_SOURCE:
            raise _harm(f"needed at most {MAX_SOURCE:,} characters, got {len(source):,}")
        self.source, self.tokens = source, dict(tokens or {})
        self.marks_answers = GENERATION.search(source) is not None
        self._renderer()

    def _renderer(self) -> Callable[[str], dict]:
        return _renderer_of(self.source, tuple(sorted(self.tokens.items())))

    @functools.cached_property
    def _needs_parts(self) -> bool:
        fixed = {"tools": None, "documents": None, "add_generation_prompt": True, **self.tokens}
        return needs_parts(lambda turns: self._renderer()(json.dumps({**fixed, "messages": turns})))

    def render(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Turns -> their text, and the (start, end) of each {% generation %} block in it.

        Args:
            messages:  [{"role": ..., "content": ..., ...}, ...], JSON data; a key whose value is None is left out. A
                       template that reads contents only as lists of parts gets them so.
            tools:     JSON schemas, for templates that read them.
            variables: further names that a template reads, as in {"enable_thinking": False}.
        Raises: InputError if the template refuses the conversation, fails on it, or goes beyond a limit.
        """
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise InputError("chat template: needed at least one turn, each an object with role and content")
        messages = [in_parts(turn) for turn in messages] if self._needs_parts else messages
        data = {"messages": [_known_names(turn) for turn in messages], "tools": tools, "documents": None}
        data |= {"add_generation_prompt": add_generation_prompt, **self.tokens, **(variables or {})}
        try:
            data_json = json.dumps(data)
        except (TypeError, ValueError) as error:
            raise InputError(f"chat template: needed turns and tools as JSON data ({error}); convert them") from None
        reply = self._renderer()(data_json)
        if "fault" in reply:
            raise _harm(reply["fault"])
        if "refused" in reply:
            raise InputError(
                f"chat template: it refuses this conversation: {reply['refused']}; change the turns or the template"
            )
        if SURROGATE.search(reply["text"]):
            raise InputError("chat template: it writes half of a surrogate pair, which is no text; change the template")
        return reply["text"], [(start, end) for start, end in reply["spans"]]


@functools.lru_cache(maxsize=16)
def _renderer_of(source: str, tokens: tuple[tuple[str, str], ...]) -> Callable[[str], dict]:
    """A function: conversation as JSON -> the dict of `sandbox.reply`. Equal templates share the function.

    Raises: InputError if the template is broken or does harm.
    """
    _check_jinja()
    if source in BUILT_IN:
        from minirlhf.text.checkpoint_tokenizer import sandbox

        template = sandbox.compiled(source)
        return lambda data: sandbox.reply(template, json.loads(data), limits_for(len(data)).characters)
    default = {"tools": None, "documents": None, "add_generation_prompt": False, **dict(tokens)}
    worker = Worker(source, [default | trial for trial in TRIALS])
    if fault := worker.start():
        raise _harm(fault)
    return worker.reply


def _harm(fault: str) -> InputError:
    return InputError(f"chat template: {fault}; {WAY_OUT}")


def _known_names(message: dict) -> dict:
    """A turn without null keys. Its reasoning gets the names "reasoning_content" and "thinking"; templates use both."""
    message = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


@functools.cache
def _check_jinja() -> None:
    try:
        version = importlib.metadata.version("jinja2")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("chat template: needed the package jinja2; pip install jinja2") from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < OLDEST_JINJA:
        raise InputError(f"chat template: needed jinja2 3.1.6 or later, got {version}; pip install -U jinja2")
