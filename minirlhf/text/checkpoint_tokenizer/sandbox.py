"""Jinja's immutable sandbox with what templates of checkpoints expect to find in it.

Imported where a template is first rendered: jinja2 takes time, and most runs need none. template.py says what is
guarded.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Marks(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: the body as it is, its place in the text written down."""

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
    """`namespace()` whose names do not begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # no name for self: a template may store one called so
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
    """Plain JSON: Jinja's own filter writes it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """A sandbox, one for each template: it keeps its marks."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marks, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    sandbox.globals |= {"dict": Dict(), "namespace": Names}
    sandbox.marks = sandbox.extensions[Marks.identifier]
    return sandbox
