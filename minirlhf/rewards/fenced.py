"""The code in an answer in Markdown (CommonMark 0.31, section 4.5), and in an answer that almost is Markdown."""

from __future__ import annotations

import re

FENCE = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})")  # at the beginning of a line
AFTER_TEXT = re.compile(r"(?:(?!```).)*(```+)[\w+#.-]*[ \t]*$")  # policies write "Here: ```python"


def code_of(text: str) -> str:
    """The last fenced block, without the indentation of its fence; the whole text if it has no block.

    An unclosed block ends with the text, because a completion may be cut off. If nothing follows its fence, the fence
    begins no block.
    """
    blocks: list[list[str]] = []
    indent = fence = ""  # of the open block
    for line in text.replace("\r\n", "\n").split("\n"):
        if not fence:
            if found := FENCE.match(line):
                indent, fence = found.groups()
            elif found := AFTER_TEXT.match(line):
                indent, fence = "", found[1]
            if found:
                blocks.append([])
        elif (code := _before_end(line, indent, fence)) is None:
            blocks[-1].append(line.removeprefix(indent))
        else:
            fence = ""
            if code:
                blocks[-1].append(code.removeprefix(indent))
    if fence and not "".join(blocks[-1]).strip():
        blocks.pop()
    return "\n".join(blocks[-1]) if blocks else text


def _before_end(line: str, indent: str, fence: str) -> str | None:
    """The code before the fence that ends a block, often "". None if the line does not end the block.

    A fence that stands four letters further right than the block's is code: a docstring may hold it.
    """
    found = FENCE.match(line)
    if found and found[2].startswith(fence):
        return "" if len(found[1]) < len(indent) + 4 else None
    code = line.rstrip()
    return code.rstrip("`").rstrip() if fence[0] == "`" and code.endswith(fence) else None
