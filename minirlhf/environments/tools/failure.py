"""The error by which a tool answers."""

from __future__ import annotations


class ToolError(Exception):
    """A call that a tool cannot answer. The message is a short sentence; the policy reads it as the tool's answer."""
