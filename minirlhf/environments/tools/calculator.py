"""A calculator for policies: exact fractions, own parser, no `eval`.

sum     := product (("+" | "-") product)*
product := sign (("*" | "/" | "//" | "%") sign)*
sign    := ("+" | "-") sign | power
power   := atom ("**" sign)?                 as in Python: -2**2 is -4, and 2**3**2 is 2**9
atom    := number | "(" sum ")"
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Overflow, Underflow
from fractions import Fraction

from minirlhf.environments.tools.failure import ToolError

LETTERS = 200  # of an expression
DEPTH = 20  # of brackets, signs and powers inside one another
BITS = 4096  # of a numerator or a denominator, about 1,200 digits
DIGITS = 12  # places of an exact number, and significant digits of a rounded number
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|//|[-+*/%()]))", re.ASCII)
# A float would take 10**-400 for 0, and 64**(1/3) for 3.9999999999999996. A root is computed with twice as many digits
# as it keeps, so a root that is a short number is exact.
ROOTS, KEPT = Context(prec=32, Emin=-1300, Emax=1300, traps=[Overflow, Underflow]), Context(prec=16)
SIGNS = str.maketrans("×÷−–", "*/--")  # as people write them


def calculator(expression: str) -> str:
    """Compute + - * / // % ** and brackets, exactly.

    Args:
        expression: for example 12 * (3 + 4.5)
    """
    return written(value_of(expression))


def value_of(expression: str) -> Fraction:
    """The exact value of an expression. A power with a broken exponent, such as 2**0.5, has 16 digits.

    Raises: ToolError, a sentence for the policy, if the text is no expression, has no value, or is too large.
    """
    if len(expression) > LETTERS:
        raise ToolError(f"the expression has {len(expression):,} letters; write at most {LETTERS}")
    parser = Parser(tokens_of(expression.translate(SIGNS)))
    value = parser.sum(0)
    if parser.tokens:
        raise ToolError(f"{parser.tokens[0]} has no place here; write an operator between two numbers")
    return value


def tokens_of(text: str) -> list[str]:
    text, tokens, position = text.strip(), [], 0
    while position < len(text):
        if not (found := TOKEN.match(text, position)):
            raise ToolError(f"{text[position:].strip()[0]!r} is not known; write numbers and + - * / // % ** ( ) only")
        tokens.append(found[1] or found[2])
        position = found.end()
    return tokens


class Parser:
    """A method for each line of the grammar. tokens: the tokens not yet read.   depth: of the nesting so far."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def take(self, *wanted: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in wanted else None

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while operator := self.take("+", "-"):
            other = self.product(depth)
            value = bounded(value + other if operator == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.sign(depth)
        while operator := self.take("*", "/", "//", "%"):
            other = self.sign(depth)
            if operator != "*" and not other:
                raise ToolError("division by zero")
            match operator:
                case "*":
                    value = value * other
                case "/":
                    value = value / other
                case "//":
                    value = Fraction(value // other)
                case "%":
                    value = value % other
            bounded(value)
        return value

    def sign(self, depth: int) -> Fraction:
        if depth > DEPTH:
            raise ToolError(f"more than {DEPTH} brackets, signs or powers stand inside one another")
        if operator := self.take("+", "-"):
            value = self.sign(depth + 1)
            return -value if operator == "-" else value
        value = self.atom(depth)
        return power(value, self.sign(depth + 1)) if self.take("**") else value

    def atom(self, depth: int) -> Fraction:
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise ToolError("a bracket is open; write ) at its end")
            return value
        token = self.tokens.pop(0) if self.tokens else "the end"
        if not (token[0].isdigit() or token[0] == "."):
            raise ToolError(f"needed a number, got {token}")
        return Fraction(token.rstrip(".") if token.endswith(".") else token)


def power(base: Fraction, exponent: Fraction) -> Fraction:
    if not base and exponent < 0:
        raise ToolError("division by zero")
    if exponent.denominator == 1:
        bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
        if bits > 1 and abs(exponent) * (bits - 1) > BITS:  # a base of n bits is at least 2**(n - 1)
            raise ToolError("the power is too large")
        return bounded(base**exponent.numerator)
    if base < 0:
        raise ToolError("a negative number has no power with a broken exponent")
    try:
        return bounded(Fraction(KEPT.plus(ROOTS.power(quotient(base, ROOTS), quotient(exponent, ROOTS)))))
    except (Overflow, Underflow):
        raise ToolError("the power is too large or too small") from None


def quotient(value: Fraction, context: Context) -> Decimal:
    return context.divide(Decimal(value.numerator), Decimal(value.denominator))


def bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise ToolError(f"the number is too large; at most {BITS} bits")
    return value


def written(value: Fraction) -> str:
    """A number in decimals: exactly if DIGITS places are enough, else rounded to DIGITS significant digits.

    written(Fraction(7, 2)) == "3.5"        written(Fraction(1, 3)) == "0.333333333333"
    """
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**DIGITS
    if scaled.denominator == 1:
        whole, places = divmod(abs(scaled.numerator), 10**DIGITS)
        return f"{'-' * (value < 0)}{whole}.{places:0{DIGITS}d}".rstrip("0")
    return str(quotient(value, Context(prec=DIGITS)).normalize())
