"""The arithmetic of `# computed:` comments, such as `round(1.5e9 / 4_194_304)` or `context_length * 128`.

Numbers, + - * / // ** and brackets, round, floor and ceil, and keys of the same file. Nothing else is evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"round": round, "floor": math.floor, "ceil": math.ceil}
_LARGEST_POWER = 1e300
"""Whole numbers grow without bound, and so would the time that a slip of the keyboard takes."""
ALLOWED = "numbers, + - * / // ** ( ), round, floor, ceil and keys of this file are allowed"


def results(text: str, keys: Mapping[str, float]) -> list[float]:
    """What an arithmetic gives; several values where it is several arithmetics between commas.

    Args:
        text: The arithmetic.
        keys: Numbers that it may name, by dotted key.

    Raises:
        ValueError: It is none, uses something else, or divides by zero; the end of a sentence.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"'{text}' is no arithmetic; {ALLOWED}") from None
    try:
        return [_value(node, keys) for node in (tree.elts if isinstance(tree, ast.Tuple) else [tree])]
    except ArithmeticError as error:
        raise ValueError(f"'{text}' cannot be computed: {error}") from None


def equal(value: object, result: float) -> bool:
    """Whether a value is a result, up to the rounding of one floating point number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isclose(value, result, rel_tol=1e-12)


def _value(node: ast.expr, keys: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, keys)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _combined(op, _value(left, keys), _value(right, keys))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _rounded(name, [_value(argument, keys) for argument in args])
        case ast.Name() | ast.Attribute() if (key := ast.unparse(node)) in keys:
            return keys[key]
        case ast.Name() | ast.Attribute():
            raise ValueError(f"'{ast.unparse(node)}' is no number of this file; {ALLOWED}")
    raise ValueError(f"'{ast.unparse(node)}' is not understood; {ALLOWED}")


def _combined(op: ast.operator, left: float, right: float) -> float:
    if isinstance(op, ast.Pow) and left and abs(right) * abs(math.log10(abs(left))) > math.log10(_LARGEST_POWER):
        raise OverflowError("the power is too large")
    result = _OPERATORS[type(op)](left, right)
    if isinstance(result, complex):
        raise ArithmeticError("the root of a negative number")
    return result


def _rounded(name: str, arguments: list[float]) -> float:
    most = 2 if name == "round" else 1
    if not 1 <= len(arguments) <= most or (len(arguments) == 2 and not isinstance(arguments[1], int)):
        raise ValueError(f"'{name}' takes one number{' and a whole number of digits' if most == 2 else ''}")
    return _FUNCTIONS[name](*arguments)
