"""JSON of a shape, and code that passes tests."""

from contextlib import nullcontext
from functools import partial

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards import child_process, verifiers
from minirlhf.rewards.child_process import Result, check_isolation, run_python
from minirlhf.rewards.named import CHECKS, NAMED, check_rows
from minirlhf.rewards.verifiers import json_shape, unit_tests

PERSON = {"name": "string", "age?": "integer | null", "tags": ["string"]}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "a", "tags": []}', 1),
        ('{"name": "a", "age": 3, "tags": ["x", "y"]}', 1),
        ('{"name": "a", "age": null, "tags": []}', 1),
        ('Here:\n```json\n{"name": "a", "tags": []}\n```\nDone.', 1),
        ('{"name": "a", "age": true, "tags": []}', 0),  # a boolean is no integer
        ('{"name": "a", "age": 3.0, "tags": []}', 0),
        ('{"name": "a", "tags": [1]}', 0),
        ('{"name": "a"}', 0),
        ('{"name": "a", "tags": [], "more": 1}', 0),
        ('{"name": "a", "tags": []} and more', 0),
        ("[]", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_an_object_of_a_shape(text, score):
    assert json_shape([text], [{"shape": PERSON}]) == [score]


def test_numbers_that_are_no_json_and_rows_without_a_shape():
    assert json_shape(["NaN", "1.5", "Infinity", "1"], [{"shape": "number"}] * 3 + [{}]) == [0, 1, 0, None]
    assert json_shape(['[{"a": null}]'], [{"shape": '[{"a": "any"}]'}]) == [1]  # a shape as the text of JSON


@pytest.mark.parametrize("shape", ["text", {"a": "int"}, ["string", "null"], [], 5, None, '{"a": ', "string |"])
def test_a_broken_shape_is_refused_with_its_line(shape):
    row = {"shape": shape, "file": "rows.jsonl", "line": 7}
    with pytest.raises(InputError, match='^json_shape: rows.jsonl line 7: needed a JSON shape under "shape", got'):
        check_rows(json_shape, [row], alone=True)
    with pytest.raises(InputError) if shape is not None else nullcontext():  # null is no shape: other rewards judge
        check_rows(json_shape, [row], alone=False)
    if shape is None:
        assert json_shape(["1"], [row]) == [None]


@pytest.fixture
def runs(monkeypatch):
    """On a machine that lets no process shut itself in, the programs of these tests run with limits alone."""
    try:
        check_isolation()
    except InputError:
        monkeypatch.setattr(verifiers, "run_python", partial(run_python, isolated=False))
        monkeypatch.setattr(verifiers, "check_isolation", lambda: None)


def test_code_is_scored_by_the_share_of_tests_that_run_to_their_end(runs):
    tests = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
    texts = [
        "Sure:\n```python\ndef add(a, b):\n    return a + b\n```",
        "def add(a, b): return abs(a) + abs(b)",
        "def add(a, b): return a +",
        "import sys\ndef add(a, b): sys.exit(0)",  # an early exit passes nothing
        "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGKILL)",
        "def add(a, b):\n    print('x' * 20_000_000)\n    return a + b",
        "print = None\ndef add(a, b): return a + b",
    ]
    assert unit_tests(texts, [{"tests": tests}] * len(texts)) == [1, 0.5, 0, 0, 0, 0, 1]
    rows = [{"tests": "assert x"}, {}, {"tests": None}, {"tests": []}]
    assert unit_tests(["x = 1"] * 4, rows) == [1, None, None, None]


def test_code_that_hangs_passes_nothing(runs, monkeypatch):
    quick = verifiers.run_python
    monkeypatch.setattr(verifiers, "run_python", lambda code, **options: quick(code, seconds=0.2, **options))
    assert unit_tests(["import time\ntime.sleep(60)"], [{"tests": "pass"}]) == [0]


def test_a_machine_on_which_every_program_fails_gives_no_scores(monkeypatch):
    monkeypatch.setattr(child_process, "run_python", lambda code, **options: Result("", "No module named 'encodings'"))
    check_isolation.cache_clear()
    with pytest.raises(InputError, match="needed a Python that runs the empty program.*No module named"):
        unit_tests(["x = 1"], [{"tests": "assert x"}])
    assert unit_tests(["x = 1"], [{}]) == [None]


@pytest.mark.parametrize("tests", [None, [], "", ["assert 1", 2], 5])
def test_rows_without_tests_are_refused_before_the_first_stage(tests, monkeypatch):
    monkeypatch.setattr(verifiers, "check_isolation", lambda: None)
    with pytest.raises(InputError, match='^unit_tests: line 3: needed Python text, or a list of texts, under "tests"'):
        check_rows(unit_tests, [{"line": 3, "tests": tests}], alone=True)


def test_a_named_reward_beside_others_checks_the_rows_of_its_column_alone():
    assert set(CHECKS) <= set(NAMED.values()) and all(name == reward.__name__ for name, reward in NAMED.items())
    check_rows(json_shape, [{"prompt": "p"}], alone=False)
    with pytest.raises(InputError, match="^json_shape: 'p': needed a JSON shape"):
        check_rows(json_shape, [{"prompt": "p"}], alone=True)
    check_rows(len, [{"prompt": "p"}], alone=True)
