"""A checkpoint's own chat template: Jinja written by a stranger, rendered in a sandbox.

What is guarded, and what is not:

* Always: Jinja's immutable sandbox. A template sees plain JSON data, reaches no Python object, file or module through
  it, and cannot change the conversation.
* When a template arrives: a child process compiles it and renders a few small conversations, with limits on processor
  time, memory and output. What runs away there, or tries to leave the sandbox, is refused before this process has
  compiled it (compiling alone may run `10 ** 10 ** 10`).
* Later renders, in this process: the output is counted while it is written and stopped at a limit. Time and memory are
  not limited: a template that waits for certain messages before it loops without output, or builds one huge string in a
  single expression, can stall or exhaust this process. It still cannot leave the sandbox. Read a template that you do
  not trust.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from typing import Any

from minirlhf.errors import InputError

OLDEST_JINJA = (3, 1, 6)  # older ones have known ways out of the sandbox
CPU_SECONDS, WALL_SECONDS = 1, 60  # of the child; processor time, so that a busy machine refuses nothing
MEMORY = 1 << 29  # [bytes] of the child
MAX_SOURCE = 1 << 20  # characters; the longest real template has 30 thousand
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
WAY_OUT = "choose a built-in layout, or delete the template"

_USER, _ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
PROBES = (  # what the child renders; that a template refuses some of them is its right
    {"messages": [_USER], "add_generation_prompt": True},
    {"messages": [_USER, _ANSWER]},
    {"messages": [{"role": "system", "content": "Be kind."}, _USER, _ANSWER, _USER], "add_generation_prompt": True},
    {"messages": [_USER], "tools": [{"type": "function", "function": _TOOL}], "add_generation_prompt": True},
)


class ChatTemplate:
    """A template that was tried out in a child process. Raises: InputError if it is broken or does harm."""

    def __init__(self, source: str, tokens: dict[str, str] | None = None) -> None:
        """`tokens`: the names under which a template reads special tokens, {"bos_token": "<s>", ...}."""
        self.source, self.tokens = source, dict(tokens or {})
        self.marks_answers = GENERATION.search(source) is not None
        _try_out(source, tuple(sorted(self.tokens.items())))

    @functools.cached_property
    def _compiled(self) -> Any:
        return _environment().from_string(self.source)

    def render(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Turns -> their text, and where in it the {% generation %} blocks stand.

        Args:
            messages:  [{"role": ..., "content": ..., ...}, ...], JSON data; a key whose value is None is left out.
            tools:     JSON schemas, for templates that read them.
            variables: whatever else a template reads by name, as in {"enable_thinking": False}.
        Raises: InputError if the template refuses the conversation, fails on it, or writes without end.
        """
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise InputError("chat template: needed at least one turn, each an object with role and content")
        data = {"messages": [_known_names(turn) for turn in messages], "tools": tools, "documents": None}
        data |= {"add_generation_prompt": add_generation_prompt, **self.tokens, **(variables or {})}
        try:
            data_json = json.dumps(data)
        except (TypeError, ValueError) as error:
            raise InputError(f"chat template: needed turns and tools as JSON data ({error}); convert them") from None
        try:
            return _render(self._compiled, json.loads(data_json), limit=10**6 + 20 * len(data_json))
        except InputError:
            raise
        except Exception as error:  # whatever a stranger's expressions can raise on this conversation
            raise InputError(
                f"chat template: it refuses this conversation: {_one_line(error)}; change the turns or the template"
            ) from None


def _known_names(message: dict) -> dict:
    """A turn without its empty keys; reasoning stands under every name that templates read it by."""
    message = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


def _render(template: Any, data: dict, limit: int) -> tuple[str, list[tuple[int, int]]]:
    marks, parts = template.environment.marks, []
    marks.spans, marks.written = [], 0
    for part in template.generate(**data):
        marks.written += len(part)
        if marks.written > limit:
            raise InputError(f"chat template: it wrote more than {limit:,} characters and was stopped; {WAY_OUT}")
        parts.append(part)
    return "".join(parts), marks.spans


@functools.cache
def _check_jinja() -> None:
    try:
        version = importlib.metadata.version("jinja2")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("chat template: needed the package jinja2; pip install jinja2") from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < OLDEST_JINJA:
        raise InputError(f"chat template: needed jinja2 3.1.6 or later, got {version}; pip install -U jinja2")


def _environment() -> Any:
    _check_jinja()
    from minirlhf.text.checkpoint_tokenizer.sandbox import environment

    return environment()


@functools.lru_cache(maxsize=64)
def _try_out(source: str, tokens: tuple[tuple[str, str], ...]) -> None:
    """Raise InputError if a child process finds fault with a template."""
    if len(source) > MAX_SOURCE:
        raise InputError(f"chat template: needed at most {MAX_SOURCE:,} characters, got {len(source):,}; {WAY_OUT}")
    _check_jinja()
    program = [sys.executable, "-c", "from minirlhf.text.checkpoint_tokenizer.template import _child; _child()"]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    task = json.dumps({"source": source, "tokens": dict(tokens)})
    try:
        child = subprocess.run(
            program, input=task.encode(), env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
            timeout=WALL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"chat template: still running after {WALL_SECONDS} s; {WAY_OUT}") from None
    if child.returncode == 0:
        fault = json.loads(child.stdout)["fault"]
    elif child.returncode < 0:  # killed: the limit on processor time is enforced so
        fault = f"it ran for more than {CPU_SECONDS} s of processor time, or crashed (signal {-child.returncode})"
    else:
        fault = f"its trial failed: {child.stderr.decode(errors='replace').strip()[-300:]}"
    if fault:
        raise InputError(f"chat template: {fault}; {WAY_OUT}")


def _child() -> None:
    """In the child: read a template, render the probes, print what is wrong with it (null: nothing)."""
    task = json.load(sys.stdin.buffer)
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        pass
    else:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"fault": _fault(task["source"], task["tokens"])}))


def _fault(source: str, tokens: dict[str, str]) -> str | None:
    import jinja2
    import jinja2.sandbox

    try:
        template = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno} is no valid Jinja: {_one_line(error)}"
    except Exception as error:
        return f"it cannot be compiled: {_one_line(error)}"
    for probe in PROBES:
        data = {"tools": None, "documents": None, "add_generation_prompt": False, **tokens, **probe}
        try:
            _render(template, json.loads(json.dumps(data)), limit=10**6)
        except jinja2.sandbox.SecurityError as error:
            return f"it tries to leave the sandbox: {_one_line(error)}"
        except MemoryError:
            return f"it needs more than {MEMORY >> 20} MiB"
        except InputError as error:
            return str(error).removeprefix("chat template: ").removesuffix(f"; {WAY_OUT}")
        except Exception:
            continue  # `raise_exception` or a missing key: some conversations are not for this template
    return None
