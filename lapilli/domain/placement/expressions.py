"""The language of `filter_function` and `goodness_function` (behaviour 11.5).

A text is parsed once, into closures, and kept. Parsing is LALR, so it takes linear time whatever the text
is; length and depth are bounded, numbers are, and nothing but the names given can be reached.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lark import Lark

Names = Mapping[str, Mapping[str, Any]]
Value = int | float | bool | str
NAMESPACES = ("stats", "capabilities", "extra", "volume", "qos")
LONGEST = 2000  # characters of a text
DEEPEST = 200  # operators within each other

_GRAMMAR = r"""
?start: either
      | either ("," either)+             -> listed
?either: both
       | either ("or"i | "||") both      -> either
?both: choice
     | both ("and"i | "&&") choice       -> both
?choice: compared
       | compared "?" choice ":" choice  -> choice
?compared: inverted
         | inverted (COMPARISON inverted)+ -> compared
?inverted: sum
         | ("not"i | "!") inverted       -> inverted
?sum: product
    | sum SUM product                    -> calculated
?product: signed
        | product PRODUCT signed         -> calculated
?signed: power
       | SUM signed                      -> signed
?power: operand
      | operand POWER signed_power       -> calculated
?signed_power: power
             | SUM signed_power          -> signed
?operand: NUMBER                         -> number
        | TEXT                           -> text
        | NAME                           -> name
        | FUNCTION "(" either ("," either)* ")" -> function
        | "(" either ")"

COMPARISON: "<=" | ">=" | "==" | "!=" | "<>" | "<" | ">"
SUM: "+" | "-"
PRODUCT: "*" | "/"
POWER: "^"
FUNCTION.2: "abs" | "max" | "min"
NAME: /(stats|capabilities|extra|volume|qos)\.[A-Za-z_]+/
NUMBER: /(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?/
TEXT: /'[^']*'|"[^"]*"/
%ignore /\s+/
"""


class ExpressionError(Exception):
    """The text is no expression, or it has no value for these names."""


class Expression:
    """A parsed text."""

    __slots__ = ("_evaluate", "depth")

    def __init__(self, evaluate: Callable[[Names], Value], depth: int) -> None:
        self._evaluate = evaluate
        self.depth = depth

    def value(self, names: Names) -> Value:
        """What it is for these names. Raises `ExpressionError`."""
        try:
            return self._evaluate(names)
        except ZeroDivisionError:
            raise ExpressionError("division by zero") from None
        except (TypeError, ValueError, OverflowError) as problem:
            raise ExpressionError(str(problem)) from None


def parse(text: str) -> Expression:
    """The expression that a text is. Raises `ExpressionError`."""
    found = _parsed(text)
    if isinstance(found, str):
        raise ExpressionError(found)
    return found


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Expression | str:
    """The expression, or what is wrong with the text: that is kept too."""
    from lark.exceptions import UnexpectedInput  # noqa: PLC0415 - a slow import, for those who need it

    if len(text) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    try:
        made: Any = _parser().parse(text)
    except UnexpectedInput as problem:
        if getattr(getattr(problem, "token", None), "type", None) == "$END":
            return "it ends too soon"
        at = problem.pos_in_stream or 0
        return f"not understood at {text[at : at + 20]!r}"
    except ExpressionError as problem:
        return str(problem)
    return made if isinstance(made, Expression) else "it is no expression"


@lru_cache(maxsize=1)
def _parser() -> Lark:
    from lark import Lark  # noqa: PLC0415 - a slow import, for those who need it

    builder = _Builder()
    called = {rule: _spread(getattr(builder, rule)) for rule in vars(_Builder) if not rule.startswith("_")}
    return Lark(_GRAMMAR, parser="lalr", transformer=SimpleNamespace(**called))


def _spread(make: Callable[..., Expression]) -> Callable[[list[Any]], Expression]:
    return lambda children: make(*children)


# --- from the text to closures ---------------------------------------------------------------------------


def _made(evaluate: Callable[[Names], Value], *parts: Expression) -> Expression:
    depth = 1 + max((part.depth for part in parts), default=0)
    if depth > DEEPEST:
        raise ExpressionError(f"more than {DEEPEST} operators are within each other")
    return Expression(evaluate, depth)


class _Builder:
    """Makes a node's closure; called by the parser from the leaves up, so that nothing recurses."""

    def number(self, token: str) -> Expression:
        plain = token.isdigit() and len(token) <= 15
        number = int(token) if plain else float(token)
        if not math.isfinite(number):
            raise ExpressionError(f"{token} is too large")
        return _made(lambda _names: number)

    def text(self, token: str) -> Expression:
        text = str(token)[1:-1]
        return _made(lambda _names: text)

    def name(self, token: str) -> Expression:
        space, _, key = str(token).partition(".")
        return _made(lambda names: _looked_up(names, space, key))

    def function(self, word: str, *arguments: Expression) -> Expression:
        evaluates = [each._evaluate for each in arguments]
        if word == "abs":
            if len(arguments) != 1:
                raise ExpressionError("abs takes one value")
            return _made(lambda names: abs(_number(evaluates[0](names))), *arguments)
        choose: Callable[[list[Any]], Value] = max if word == "max" else min
        return _made(lambda names: choose([_number(each(names)) for each in evaluates]), *arguments)

    def signed(self, sign: str, operand: Expression) -> Expression:
        inner = operand._evaluate
        if sign == "-":
            return _made(lambda names: -_number(inner(names)), operand)
        return _made(lambda names: +_number(inner(names)), operand)

    def calculated(self, left: Expression, sign: str, right: Expression) -> Expression:
        calculate, a, b = _CALCULATIONS[sign], left._evaluate, right._evaluate
        return _made(lambda names: calculate(_number(a(names)), _number(b(names))), left, right)

    def inverted(self, operand: Expression) -> Expression:
        inner = operand._evaluate
        return _made(lambda names: not inner(names), operand)

    def compared(self, first: Expression, *rest: Any) -> Expression:
        signs = [_COMPARISONS[str(sign)] for sign in rest[::2]]
        operands = [first, *rest[1::2]]
        evaluates = [each._evaluate for each in operands]

        def evaluate(names: Names) -> Value:
            values = [each(names) for each in evaluates]
            try:
                return all(compare(values[at], values[at + 1]) for at, compare in enumerate(signs))
            except TypeError:
                raise ExpressionError("a number has no order with a text") from None

        return _made(evaluate, *operands)

    def choice(self, condition: Expression, yes: Expression, no: Expression) -> Expression:
        test, a, b = condition._evaluate, yes._evaluate, no._evaluate
        return _made(lambda names: a(names) if test(names) else b(names), condition, yes, no)

    def both(self, left: Expression, right: Expression) -> Expression:
        a, b = left._evaluate, right._evaluate
        return _made(lambda names: bool(a(names)) and bool(b(names)), left, right)

    def either(self, left: Expression, right: Expression) -> Expression:
        a, b = left._evaluate, right._evaluate
        return _made(lambda names: bool(a(names)) or bool(b(names)), left, right)

    def listed(self, *_parts: Expression) -> Expression:
        raise ExpressionError("a list is no single value")


def _power(base: float, exponent: float) -> float:
    """As a float always: whole numbers of any size would take any time."""
    result = math.pow(base, exponent)
    return int(result) if result.is_integer() and abs(result) < 2**53 else result


_CALCULATIONS: dict[str, Callable[[Any, Any], Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": _power,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
}


def _number(value: Value) -> int | float:
    if isinstance(value, str):
        raise ExpressionError(f"{value[:50]!r} is no number")
    return value


def _looked_up(names: Names, space: str, key: str) -> Value:
    """What a name stands for; texts that are numbers count as such, since extra specs are all texts."""
    try:
        value = names[space][key]
    except KeyError:
        raise ExpressionError(f"there is no {space}.{key}") from None
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        raise ExpressionError(f"{space}.{key} is neither a number nor a text")
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):  # "infinite" capacity is a text, and so is a text such as "nan"
        return value
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
