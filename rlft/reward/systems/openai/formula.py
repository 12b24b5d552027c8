"""Formulas over named numbers, such as `0.7 * right + 0.3 * min(short, polite)`, without `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping

from rlft.common.by_path import did_you_mean

LONGEST = 2000
"""Characters of a formula at the most."""
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


class Formula:
    """Numbers, names, + - * / ^, brackets, and min, max, abs, floor, ceil, exp, sqrt, log of them."""

    def __init__(self, written: str, names: Iterable[str]) -> None:
        """Read a formula over these names.

        Raises:
            ValueError: it is something else, or has a name that is none of them.
        """
        known = sorted(names)
        if len(written) > LONGEST:
            raise ValueError(f"the formula has {len(written)} characters, more than {LONGEST}")
        try:
            self._tree = ast.parse(written.replace("^", "**").strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"{written!r} is no formula") from None
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and id(node) not in called and node.id not in known:
                raise ValueError(
                    f"{written!r} names {node.id!r}, which is no grader.{did_you_mean(node.id, known)} "
                    f"There are {', '.join(known)}."
                )
        self.value(dict.fromkeys(known, 1.0), check=True)

    def value(self, numbers: Mapping[str, float], *, check: bool = False) -> float:
        """The formula's value for these numbers.

        Args:
            check: only look whether it is made of what a formula may have.

        Raises:
            ValueError: it has no value there, as where it divides by zero.
        """
        try:
            return _value(self._tree, numbers)
        except (ArithmeticError, ValueError, TypeError) as error:
            if isinstance(error, _FormulaError) or not check:
                raise ValueError(f"calculate_output {ast.unparse(self._tree)}: {error}") from None
            return 0.0


class _FormulaError(ValueError):
    """Something that a formula cannot have."""


def _value(node: ast.expr, numbers: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name) if name in numbers:
            return numbers[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, numbers), _value(right, numbers))
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]) if name in _FUNCTIONS:
            return float(_FUNCTIONS[name](*(_value(each, numbers) for each in node.args)))
    raise _FormulaError(f"it may have numbers, names, + - * / ^, brackets, and {', '.join(_FUNCTIONS)}")
