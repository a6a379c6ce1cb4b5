"""Recognises an activation by what a chain of nodes computes.

Every value of such a chain is a polynomial in y (the product) and in one T = f(p(y)), f being Erf, Tanh, Sigmoid or
Clip to [0, 6] and p a polynomial: gelu is 0.5 y + 0.5 y T with T = Erf(y / sqrt 2). So a value is held as its
coefficients, and compared with the table below: the order in which an exporter multiplies and adds does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import GELU_CUBIC, SQRT_2, SQRT_2_OVER_PI
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

Power = tuple[int, int]  # of y and of T
MAX_DEGREE = 4  # no activation needs more
MAX_NODES = 16  # the longest chain in the table, tanh-gelu, has 9
RTOL = {"FLOAT": 1e-6, "BFLOAT16": 2.0**-7, "FLOAT16": 2.0**-10}  # by type of y: a few roundings of the constants
FUNCTIONS = ("Erf", "Tanh", "Sigmoid")
CLIP_HIGH = 6.0  # where the function Clip ends; it begins at 0


@dataclass(frozen=True)
class Expression:
    terms: dict[Power, float]
    function: str = ""  # of T; "" while there is no T
    argument: tuple[tuple[Power, float], ...] = ()  # p


# activation, f, p, terms
_GELU_TERMS = {(1, 0): 0.5, (1, 1): 0.5}
_TANH_ARGUMENT = {(1, 0): SQRT_2_OVER_PI, (3, 0): SQRT_2_OVER_PI * GELU_CUBIC}
KNOWN: tuple[tuple[str, str, dict[Power, float], dict[Power, float]], ...] = (
    ("gelu", "Erf", {(1, 0): 1 / SQRT_2}, _GELU_TERMS),
    ("gelu_tanh", "Tanh", _TANH_ARGUMENT, _GELU_TERMS),
    ("gelu_tanh", "Sigmoid", {power: 2 * c for power, c in _TANH_ARGUMENT.items()}, {(1, 1): 1.0}),
    ("silu", "Sigmoid", {(1, 0): 1.0}, {(1, 1): 1.0}),
    ("relu6", "Clip", {(1, 0): 1.0}, {(0, 1): 1.0}),
    ("hardswish", "Clip", {(1, 0): 1.0, (0, 0): 3.0}, {(1, 1): 1 / CLIP_HIGH}),
)


def find_activation(y: ir.Value, rewriter: Rewriter) -> tuple[str, list[ir.Node]] | None:
    """The activation that nodes after `y` compute, and those nodes, the last one last; None where there is none."""
    rtol = RTOL.get(y.dtype.name if y.dtype else "", RTOL["FLOAT"])
    known: dict[ir.Value, Expression] = {y: Expression({(1, 0): 1.0})}
    nodes: list[ir.Node] = []
    frontier = [y]
    while frontier and len(nodes) < MAX_NODES:
        value = frontier.pop(0)
        for node in {use.node: None for use in value.uses()}:
            if node in nodes or node.domain or node.graph is not rewriter.graph:
                continue
            expression = _evaluate(node, known, rewriter)
            if expression is None:
                continue  # not of this algebra, or an input is still to come
            nodes.append(node)
            result = node.outputs[0]
            known[result] = expression
            frontier.append(result)
            activation = _identify(expression, rtol)
            if activation is not None:
                return activation, _cone(node, y, known)
    return None


def _identify(expression: Expression, rtol: float) -> str | None:
    for activation, function, argument, terms in KNOWN:
        is_function = expression.function == function and _close(dict(expression.argument), argument, rtol)
        if is_function and _close(expression.terms, terms, rtol):
            return activation
    return None


def _close(got: dict[Power, float], want: dict[Power, float], rtol: float) -> bool:
    return got.keys() == want.keys() and all(abs(got[p] - want[p]) <= rtol * abs(want[p]) for p in want)


def _cone(last: ir.Node, y: ir.Value, known: dict[ir.Value, Expression]) -> list[ir.Node]:
    """The nodes on the paths from y to `last`, in an order of dependence."""
    cone: list[ir.Node] = []

    def visit(node: ir.Node) -> None:
        for value in node.inputs:
            producer = value.producer() if value is not None and value in known and value is not y else None
            if producer is not None and producer not in cone:
                visit(producer)
        cone.append(node)

    visit(last)
    return cone


def _evaluate(node: ir.Node, known: dict[ir.Value, Expression], rewriter: Rewriter) -> Expression | None:
    operands: list[Expression] = []
    for value in node.inputs:
        operand = known.get(value) if value is not None else None
        if operand is None:
            scalar = rewriter.constants.scalar(value)
            if scalar is None:
                return None
            operand = Expression({(0, 0): scalar} if scalar else {})
        operands.append(operand)
    if node.op_type in FUNCTIONS:
        return _apply(node.op_type, operands[0])
    if node.op_type == "Clip" and len(operands) == 3:
        low, high = operands[1:]
        return None if low.terms or low.function else _clip(operands[0], _number(high))
    if node.op_type == "HardSigmoid":  # Clip(alpha v + beta, 0, 1)
        alpha, beta = ({(0, 0): number(node, name, default)} for name, default in (("alpha", 0.2), ("beta", 0.5)))
        scaled = _multiply(operands[0], Expression(alpha))
        moved = _add(scaled, Expression(beta)) if scaled is not None else None
        return _clip(moved, 1.0) if moved is not None else None
    combine = OPERATORS.get(node.op_type)
    return combine(operands[0], operands[1]) if combine is not None else None


def _apply(function: str, argument: Expression) -> Expression | None:
    if argument.function:
        return None  # a function of a function
    return Expression({(0, 1): 1.0}, function, tuple(sorted(argument.terms.items())))


def _clip(value: Expression, high: float | None) -> Expression | None:
    """Clip(value, 0, high), by the one that ends at CLIP_HIGH."""
    if not high or high < 0:
        return None
    stretched = _multiply(value, Expression({(0, 0): CLIP_HIGH / high}))
    clipped = _apply("Clip", stretched) if stretched is not None else None
    return _multiply(clipped, Expression({(0, 0): high / CLIP_HIGH})) if clipped is not None else None


def _joined(a: Expression, b: Expression, terms: dict[Power, float]) -> Expression | None:
    if a.function and b.function and (a.function, a.argument) != (b.function, b.argument):
        return None  # two different T
    source = a if a.function else b
    terms = {power: c for power, c in terms.items() if c != 0}
    if any(sum(power) > MAX_DEGREE for power in terms):
        return None
    return Expression(terms, source.function, source.argument)


def _add(a: Expression, b: Expression, sign: float = 1.0) -> Expression | None:
    terms = dict(a.terms)
    for power, c in b.terms.items():
        terms[power] = terms.get(power, 0.0) + sign * c
    return _joined(a, b, terms)


def _subtract(a: Expression, b: Expression) -> Expression | None:
    return _add(a, b, -1.0)


def _multiply(a: Expression, b: Expression) -> Expression | None:
    terms: dict[Power, float] = {}
    for (ay, at), ac in a.terms.items():
        for (by, bt), bc in b.terms.items():
            power = (ay + by, at + bt)
            terms[power] = terms.get(power, 0.0) + ac * bc
    return _joined(a, b, terms)


def _divide(a: Expression, b: Expression) -> Expression | None:
    divisor = _number(b)
    return _multiply(a, Expression({(0, 0): 1.0 / divisor})) if divisor else None


def _power(a: Expression, b: Expression) -> Expression | None:
    exponent = _number(b)
    if exponent not in (2.0, 3.0):
        return None
    result: Expression | None = a
    for _ in range(int(exponent) - 1):
        result = _multiply(result, a) if result is not None else None
    return result


def _number(expression: Expression) -> float | None:
    return expression.terms[(0, 0)] if expression.terms.keys() == {(0, 0)} and not expression.function else None


OPERATORS: dict[str, Callable[[Expression, Expression], Expression | None]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _power,
}
