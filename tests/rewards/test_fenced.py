"""The code in a Markdown text. Each answer is worked by hand."""

import pytest

from minirlhf.rewards.fenced import code_of

TEXTS = {
    "no block is the whole text": ("x = 1\n", "x = 1\n"),
    "a block": ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"),
    "a block without a language": ("```\nx = 1\n```", "x = 1"),
    "a language with a digit": ("```python3\nx = 1\n```", "x = 1"),
    "a language with signs": ("```c++\nx = 1\n```", "x = 1"),
    "a language and more": ('``` python title="a b"\nx = 1\n```', "x = 1"),
    "a space after the fences": ("```python \nx = 1\n``` \n", "x = 1"),
    "lines of Windows": ("Hi\r\n```python\r\nx = 1\r\n\r\ny = 2\r\n```\r\n", "x = 1\n\ny = 2"),
    "tildes": ("~~~python\nx = 1\n```\ny = 2\n~~~", "x = 1\n```\ny = 2"),
    "a longer fence holds a shorter": ("````md\n```\nx = 1\n```\n````", "```\nx = 1\n```"),
    "an indented block": (
        "1. So:\n   ```python\n   if x:\n       y = 1\n\n   z = 2\n   ```",
        "if x:\n    y = 1\n\nz = 2",
    ),
    "an indented block with a less indented end": ("   ```\n   x = 1\n```\nText.", "x = 1"),
    "the last of two blocks": ("```python3\nx = 1\n```\nprose\n```c++\ny = 2\n```\nprose", "y = 2"),
    "an unclosed block": ("Sure:\n```python\nx = 1\ny = 2\n", "x = 1\ny = 2\n"),
    "an unclosed block after a block": ("```\nx = 1\n```\nBetter:\n```python\ny = 2", "y = 2"),
    "a fence at the very end begins nothing": ("```python\nx = 1\n```\nprose\n```", "x = 1"),
    "an empty block": ("```python\n```", ""),
    "a fence after text in its line": ("Here: ```python\nx = 1\n```", "x = 1"),
    "an end after code in its line": ("```python\nx = 1```\nDone.", "x = 1"),
    "an end before text in its line": ("```python\nx = 1\n``` is the code.\nDone.", "x = 1"),
    "a fence in a docstring": ('```python\ndef f():\n    """A:\n    ```\n    f()\n    ```\n    """\n```', None),
    "ticks in a line of prose": ("Use ``` here, or ```x``` there.\nx", "Use ``` here, or ```x``` there.\nx"),
    "ticks in JSON": ('{"a": "```python\\nx```"}', '{"a": "```python\\nx```"}'),
    "a form feed is no end of a line": ("```\nx = '\x0c\u2028'\n```", "x = '\x0c\u2028'"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_code_of_a_text(name):
    text, code = TEXTS[name]
    assert code_of(text) == (text.split("python\n")[1][:-4] if code is None else code)


def test_a_long_text_of_ticks_takes_a_moment():
    for text in ("`" * 10**6, "```\n" * 10**5, "```\n" + "` " * 10**6, " " * 10**6 + "`"):
        code_of(text)
