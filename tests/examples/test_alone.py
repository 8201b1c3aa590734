"""Examples are short, and each runs when it is copied elsewhere: it imports the package and no other example."""

import ast
import sys

import pytest

from .conftest import EXAMPLES

FILES = sorted(EXAMPLES.glob("*.py"))
LONGER = {"compare.py"}  # a benchmark: a table of all algorithms


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short_and_imports_no_other(path):
    text = path.read_text(encoding="utf-8")
    assert path.name in LONGER or len(text.splitlines()) <= 80
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else alias.name for node in nodes for alias in node.names]
    assert {name.split(".")[0] for name in names} <= {"minirlhf", "torch", "tqdm", *sys.stdlib_module_names}
