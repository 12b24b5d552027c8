"""Values of arithmetic expressions that a model wrote, exactly and without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 200
"""Characters of an expression at the most."""
DIGITS = 300
"""Digits that a number, and each side of a fraction, may have: a few characters such as 1e999999999 could ask for more
than any computer holds, and a float, which `show` makes, has no more."""


def evaluate(expression: str) -> tuple[Fraction, list[Fraction]]:
    """(the value, the numbers that stand in it, in order) of numbers, + - * /, and brackets.

    Raises:
        ValueError: it is something else, too long, divides by zero, or has a number, also on the way, of more than
            `DIGITS` digits.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, more than {LONGEST}")
    written = expression.replace("\u00d7", "*").replace("\u00f7", "/").replace("\u2212", "-").strip()
    numbers: list[Fraction] = []
    try:
        parsed = ast.parse(written, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: what is no text for Python's parser
        raise ValueError(f"{expression!r} is not an arithmetic expression") from None
    try:
        return _value(parsed, written, numbers), numbers
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


def _value(node: ast.expr, written: str, numbers: list[Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            # As written: the parser has made 0.1 a float, which is not a tenth.
            number = _number(ast.get_source_segment(written, node) or "")
            numbers.append(number)
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, written, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_value(left, written, numbers), _value(right, written, numbers)))
    raise ValueError("only numbers, + - * / and brackets")


def _number(written: str) -> Fraction:
    try:
        number = Decimal(written)
    except InvalidOperation:
        raise ValueError(f"{written} is not a decimal number, or has more than {DIGITS} digits") from None
    if abs(number.adjusted()) >= DIGITS:  # asked of the exponent, before anything writes it out
        raise ValueError(f"{written} has more than {DIGITS} digits")
    return _bounded(Fraction(number))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**DIGITS:
        raise ValueError(f"a value has more than {DIGITS} digits")
    return value


def show(value: Fraction) -> str:
    """A value as text: `7`, `0.5`, or `1/3` where the decimals never end."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return str(value) if rest > 1 else f"{value.numerator / value.denominator:.10g}"
