"""Jinja's immutable sandbox, with the names that templates of checkpoints use.

A template sees plain JSON data. It reaches no Python object, file or module, and it cannot change the conversation. The
sandbox bounds the length of the output, but neither time nor memory: `{{ 'x' * 10 ** 9 }}` takes 1 GB, and two nested
loops run for hours. worker.py bounds both.

Import this file inside functions only: jinja2 takes time to load, and most runs need no template.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox


class Marks(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: writes the body unchanged and records its span in the text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Any) -> str:
        text = caller()
        self.spans.append((self.written, self.written + len(text)))
        return text


class Names(jinja2.utils.Namespace):
    """`namespace()` that refuses names with a leading underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # no parameter `self`: a template may store a value of that name
        for name in dict(*args[1:], **values):
            Names._check(name)
        jinja2.utils.Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        Names._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace may not hold {name!r}")


class Dict:
    """`dict(...)` without the attributes of Python's class."""

    def __call__(self, *args: Any, **values: Any) -> dict:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(x: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Plain JSON. Jinja's own filter escapes characters for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def variables_of(source: str) -> set[str]:
    """The names that a template reads and does not set itself. The template must have passed its trial."""
    sandbox = environment()
    try:
        return jinja2.meta.find_undeclared_variables(sandbox.parse(source)) - sandbox.globals.keys()
    except (jinja2.TemplateError, RecursionError):
        return set()


def compiled(source: str) -> jinja2.Template:
    """The template in its own sandbox, because a sandbox holds the marks of a single template."""
    return environment().from_string(source)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marks, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    sandbox.globals |= {"dict": Dict(), "namespace": Names}
    sandbox.marks = sandbox.extensions[Marks.identifier]
    return sandbox


def reply(template: jinja2.Template, data: dict, max_characters: int) -> dict:
    """Render one conversation.

    Returns: one of
        {"text": str, "spans": [(start, end), ...]}  the text and its {% generation %} blocks
        {"refused": reason, "unsafe": bool}          the template fails on this conversation
        {"fault": reason}                            the template goes beyond a limit
    Raises: MemoryError.
    """
    marks, parts = template.environment.marks, []
    marks.spans, marks.written = [], 0
    try:
        for part in template.generate(**data):
            marks.written += len(part)
            if marks.written > max_characters:
                return {"fault": f"it wrote more than {max_characters:,} characters and was stopped"}
            parts.append(part)
        return {"text": "".join(parts), "spans": marks.spans}
    except MemoryError:
        raise
    except Exception as error:  # a stranger's expression can raise anything
        return {"refused": one_line(error), "unsafe": isinstance(error, jinja2.sandbox.SecurityError)}


def try_out(source: str, trials: list[dict], max_characters: int) -> tuple[jinja2.Template | None, dict]:
    """Compile a template and render some conversations -> (template, {"fault": reason} or {}).

    A trial may be refused: a template need not suit every conversation.
    """
    try:
        template = compiled(source)
    except jinja2.TemplateSyntaxError as error:
        return None, {"fault": f"line {error.lineno} is no valid Jinja: {one_line(error)}"}
    except MemoryError:
        raise
    except Exception as error:
        return None, {"fault": f"it cannot be compiled: {one_line(error)}"}
    for trial in trials:
        outcome = reply(template, trial, max_characters)
        if "fault" in outcome:
            return None, outcome
        if outcome.get("unsafe"):
            return None, {"fault": f"it tries to leave the sandbox: {outcome['refused']}"}
    return template, {}


def one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
