"""The calculator: exact values, Python's precedence, and bounds."""

import ast
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.environments.tools.calculator import calculator, value_of, written
from minirlhf.environments.tools.failure import ToolError

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1234 + 5678", "6912"),
        ("-2**2", "-4"),  # as Python: the power binds closer than the sign before it
        ("2**3**2", "512"),
        ("2**-2", "0.25"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("10 / 4 * 2", "5"),
        ("0.1 + 0.2", "0.3"),  # floats would say 0.30000000000000004
        ("1 / 3", "0.333333333333"),
        ("1/30000000000000", "3.33333333333E-14"),
        ("12345678901234 / 10", "1234567890123.4"),
        ("4 ** 0.5", "2"),
        ("64 ** (1/3) // 1", "4"),  # floats would say 3.9999999999999996
        ("(1/10**400) ** 0.5 * 10**200", "1"),  # as a float, 10**-400 is 0
        ("(1/10**400) ** -0.5 / 10**200", "1"),
        ("10**400 ** 0.5 / 10**20", "1"),
        ("0 ** 0.5", "0"),
        ("3 × 4 − 2", "10"),
        (".5 + 5.", "5.5"),
    ],
)
def test_known_values(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "needed a number, got the end"),
        ("2 +", "needed a number, got the end"),
        ("1 2", "2 has no place here; write an operator between two numbers"),
        ("(1 + 2", "a bracket is open; write ) at its end"),
        ("1)", ") has no place here; write an operator between two numbers"),
        ("1e5", "'e' is not known; write numbers and + - * / // % ** ( ) only"),
        ("__import__('os')", "'_' is not known; write numbers and + - * / // % ** ( ) only"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9", "the power is too large"),
        ("1.5 ** 100000", "the power is too large"),
        ("10 ** 4000 ** 0.999", "the power is too large or too small"),
        ("0.1 ** 4000 ** 0.999", "the power is too large or too small"),
        ("0 ** -0.5", "division by zero"),
        ("(-8) ** 0.5", "a negative number has no power with a broken exponent"),
        ("(" * 30 + "1" + ")" * 30, "more than 20 brackets, signs or powers stand inside one another"),
        ("-" * 30 + "1", "more than 20 brackets, signs or powers stand inside one another"),
        ("1+" * 200 + "1", "the expression has 401 letters; write at most 200"),
        ("2**4000 * 2**4000", "the number is too large; at most 4096 bits"),
    ],
)
def test_a_fault_is_a_sentence(expression, reason):
    with pytest.raises(ToolError) as error:
        calculator(expression)
    assert str(error.value) == reason


def by_python(node):
    if isinstance(node, ast.Expression):
        return by_python(node.body)
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](by_python(node.operand))
    return Fraction(OPERATORS[type(node.op)](by_python(node.left), by_python(node.right)))


numbers = st.decimals(0, 999, places=2).map(str) | st.integers(0, 999).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(expressions)
def test_it_agrees_with_pythons_grammar(text):
    try:
        expected = by_python(ast.parse(text, mode="eval"))
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            value_of(text)
    else:
        assert value_of(text) == expected


@settings(max_examples=40)
@given(st.fractions(max_denominator=10**6))
def test_what_is_written_is_the_value_to_twelve_digits(value):
    assert abs(Fraction(written(value)) - value) <= abs(value) * Fraction(1, 2 * 10**11)


sizes = st.sampled_from(["0", "1", "2", "0.5", "(1/3)", "10**300", "2**4000", "10**-300", "(0-0.7)", "1234.5678"])
towers = st.recursive(
    sizes,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "*", "/", "%", "**", "**"]), inner).map(
        lambda parts: f"({''.join(parts)})"
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.text(max_size=40) | towers)
def test_any_text_has_a_value_or_a_reason(text):
    try:
        assert calculator(text)
    except ToolError as error:
        assert "\n" not in str(error)
