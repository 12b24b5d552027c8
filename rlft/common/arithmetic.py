"""Values of arithmetic expressions that a model wrote, exactly and without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 200
"""Characters of an expression at the most."""


def evaluate(expression: str) -> tuple[Fraction, list[Fraction]]:
    """(the value, the numbers that stand in it, in order) of numbers, + - * /, and brackets.

    Raises:
        ValueError: it is something else, too long, or divides by zero.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, more than {LONGEST}")
    written = expression.replace("\u00d7", "*").replace("\u00f7", "/").replace("\u2212", "-").strip()
    numbers: list[Fraction] = []
    try:
        return _value(ast.parse(written, mode="eval").body, written, numbers), numbers
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is not an arithmetic expression") from None


def _value(node: ast.expr, written: str, numbers: list[Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            # As written: the parser has made 0.1 a float, which is not a tenth.
            number = Fraction(ast.get_source_segment(written, node) or "")
            numbers.append(number)
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, written, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, written, numbers), _value(right, written, numbers))
    raise ValueError("only numbers, + - * / and brackets")


def show(value: Fraction) -> str:
    """A value as text: `7`, `0.5`, or `1/3` where the decimals never end."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return str(value) if rest > 1 else f"{value.numerator / value.denominator:.10g}"
