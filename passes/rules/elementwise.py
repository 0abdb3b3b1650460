"""Elementwise ops: labels broadcast against each other and unite."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import frozen
from fxcat.passes.rules.counting import spared
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import Counting, Labels, Rule, Sample, Zero, rule


def broadcast(flow: Flow, node: fx.Node) -> torch.Tensor:
    """Labels of the broadcast of all tensor inputs of a node.

    An input of size 1 along an axis on which another input has units multiplies or shifts many of them at once: see
    `Flow.stretch`.
    """
    dims = node.meta["value"].dim()
    entries: list[tuple[torch.Tensor, tuple[int, ...]]] = []
    sources: list[fx.Node] = []
    for source in node.all_input_nodes:
        value = source.meta["value"]
        if isinstance(value, torch.Tensor):
            pad = (1,) * (dims - value.dim())
            labels = flow.of(source)
            # the same array where it can be: what is known of an array is known by its id
            entries.append((labels.reshape(pad + labels.shape) if pad else labels, pad + tuple(value.shape)))
            sources.append(source)
    entries = [
        (labels[(slice(0, 1),) * dims], shape) if _stands_alone(flow, node, i, entries, sources) else (labels, shape)
        for i, (labels, shape) in enumerate(entries)
    ]
    varying = [any(labels.shape[a] > 1 for labels, _ in entries) for a in range(dims)]
    partners: list[torch.Tensor] = []
    stretched: list[torch.Tensor] = []
    without = set[int]()
    for source, (labels, shape) in zip(sources, entries, strict=True):
        met = [a for a in range(dims) if varying[a] and shape[a] > 1 and labels.numel() == 1]
        without.update(met)
        flow.meet(node, source, met)
    for labels, shape in entries:
        over_units = any(varying[a] and shape[a] == 1 and node.meta["value"].shape[a] > 1 for a in range(dims))
        (stretched if over_units else partners).append(labels)
    for other in partners[1:]:
        flow.unite(partners[0], other)
    for labels in partners if without else ():
        _keep_axes(flow, labels, without, node)
    fewest = max if without else min  # where there are units, what comes later may tell why they stay, too
    result = fewest(partners, key=lambda p: p.numel()) if partners else frozen((1,) * dims)
    for labels in stretched:
        flow.stretch(labels, max(partners, key=lambda p: p.numel(), default=result), node)
    return result


def _keep_axes(flow: Flow, labels: torch.Tensor, axes: Collection[int], node: fx.Node) -> None:
    """Nothing goes along some axes, but units may lie along the others."""
    if all(size == 1 or axis in axes for axis, size in enumerate(labels.shape)):
        flow.freeze(labels, node, "an axis with units meets one without", besides=True)
        return
    for axis in axes:
        if labels.shape[axis] > 1:
            flow.unite(labels, labels.narrow(axis, 0, 1))


def _stands_alone(
    flow: Flow, node: fx.Node, number: int, entries: list[tuple[torch.Tensor, tuple[int, ...]]], sources: list[fx.Node]
) -> bool:
    """Whether an input is a constant, with entries along axes that no other input has, where others have units: it has
    none then, and they are frozen."""
    labels = entries[number][0]
    others = [e for i, e in enumerate(entries) if i != number and e[0].numel() > 1]
    if labels.numel() == 1 or not others or not _is_constant(sources[number]):
        return False
    own = [a for a, n in enumerate(labels.shape) if n > 1]
    if any(shape[a] > 1 for _, shape in others for a in own):
        return False
    flow.freeze(labels, node, "a constant along an axis of its own")
    return True


def _is_constant(node: fx.Node) -> bool:
    """Whether a value is computed from a constant of the model alone."""
    while node.op != "get_attr":
        sources = [n for n in node.all_input_nodes if isinstance(n.meta["value"], torch.Tensor)]
        if len(sources) != 1:
            return False
        node = sources[0]
    return not isinstance(node.meta["value"], torch.nn.Parameter)


def _aligned(large: torch.Tensor, small: torch.Tensor) -> list[tuple[int, int]]:
    """Sizes along the axes that both have."""
    return list(zip(large.shape[large.dim() - small.dim() :], small.shape, strict=True))


class Elementwise(Rule):
    """Base of the rules below; an op of several tensors unites them. A module has the shape of its input."""

    equivariant = True

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of a tensor and a number, or of two tensors of one type: the one that has the shape of the result."""
        if kwargs or len(args) != 2:
            return None
        a, b = args
        if isinstance(a, torch.Tensor) and type(b) in (int, float) and a.dtype.is_floating_point:
            return a if a.is_contiguous() else torch.empty_like(a)
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            return None
        if a.dtype != b.dtype or not a.dtype.is_floating_point:
            return None
        large, small = (a, b) if (a.dim(), a.numel()) >= (b.dim(), b.numel()) else (b, a)
        if not small.is_contiguous() or any(n not in (1, m) for m, n in _aligned(large, small)):
            return None
        if large.is_contiguous():
            return large
        # the layout is that of the large one where the small one has no order of axes
        return torch.empty_like(large) if sum(n > 1 for n in small.shape) <= 1 else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return broadcast(flow, node)


@rule(
    *(nn.LeakyReLU, F.leaky_relu, F.rrelu, F.softshrink, F.hardshrink, torch.abs, torch.absolute, torch.neg),
    *(
        torch.negative,
        operator.neg,
        torch.square,
        torch.sinh,
        torch.asinh,
        torch.log1p,
        torch.round,
        torch.floor,
        torch.ceil,
    ),
    *("abs", "absolute", "neg", "negative", "square", "sinh", "asinh", "log1p", "round", "floor", "ceil"),
    *(
        "square_",
        "abs_",
        "neg_",
        torch.trunc,
        "trunc",
        torch.fix,
        "fix",
        torch.frac,
        "frac",
        torch.positive,
        "positive",
    ),
    *(torch.copysign, "copysign", torch.rad2deg, torch.deg2rad, operator.pos, torch.special.round),
    keeps_infinity=True,
)
@rule(
    *(nn.ReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign),
    *(nn.Tanhshrink, F.relu, F.relu6, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign),
    *(F.tanhshrink, torch.relu, torch.relu_, torch.tanh, torch.sin, torch.tan, torch.asin, torch.atan, torch.atanh),
    *(torch.erf, torch.expm1, torch.sign, "relu", "relu_", "tanh", "tanh_", "sin", "tan", "asin", "atan", "atanh"),
    *("erf", "expm1", "sign", "zero_", torch.sgn, "sgn", torch.nan_to_num, "nan_to_num"),
    *(torch.erfinv, torch.special.i1, torch.special.i1e),
    keeps_infinity=False,
)
class ZeroToZero(Elementwise):
    """f(0) = 0. What makes minus infinity finite counts as not keeping infinities."""

    zero = Zero.PRESERVES

    def __init__(self, keeps_infinity: bool) -> None:
        self.keeps_infinity = keeps_infinity

    def samples(self) -> tuple[Sample, ...]:
        modules = (nn.ReLU(), nn.GELU(), nn.Hardswish(), nn.Tanh())
        return tuple(Sample(m, (2, 6, 3, 3)) for m in modules)


@rule(
    *(nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, F.sigmoid, F.hardsigmoid, F.logsigmoid, F.softplus),
    *(torch.sigmoid, torch.exp, torch.exp2, torch.cos, torch.cosh, torch.clamp, torch.clip, torch.threshold),
    *("sigmoid", "sigmoid_", "exp", "exp2", "cos", "cosh", "clamp", "clamp_", "clamp_min", "clamp_max", "clip"),
    *(nn.Hardtanh, F.hardtanh, F.threshold, F.alpha_dropout, F.feature_alpha_dropout, torch.clamp_min, torch.clamp_max),
    *(torch.logaddexp, "logaddexp", torch.logaddexp2, "logaddexp2", torch.erfc, "erfc", "sinc", torch.sinc),
    *(torch.acos, "acos", torch.heaviside, "heaviside", "fill_", torch.rsub, torch.i0, torch.special.i0e),
    *(torch.special.ndtr, torch.special.log_ndtr, torch.special.erfcx, torch.ldexp),
)
class ZeroToSomething(Elementwise):
    """f(0) is finite and not zero, or not always."""

    zero = Zero.BREAKS

    def samples(self) -> tuple[Sample, ...]:
        return tuple(Sample(m, (2, 6, 3, 3)) for m in (nn.Sigmoid(), nn.Hardsigmoid(), nn.Softplus()))


@rule(
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    *(operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract"),
    *(torch.maximum, torch.minimum, "maximum", "minimum", torch.fmax, torch.fmin),
)
class Sum(Elementwise):
    """Sums and differences of tensors keep zero; with a number they do not."""

    zero = Zero.PRESERVES
    keeps_infinity = True

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.PRESERVES if len(self._terms(node)) == 2 else Zero.BREAKS

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        """What is added to many units at once may be a mask."""
        return any(_is_same_for_units(flow, node, term) for term in self._terms(node))

    @staticmethod
    def _terms(node: fx.Node) -> list[fx.Node]:
        """The tensors that are added up."""
        given = arguments(node, "input", "other")
        return [a for a in (given["input"], given["other"]) if _is_tensor(a)]


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and isinstance(argument.meta["value"], torch.Tensor)


def _is_same_for_units(flow: Flow, node: fx.Node, source: fx.Node) -> bool:
    """Whether an input is broadcast along an axis along which the result has units."""
    labels, shape = flow.of(node), source.meta["value"].shape
    shape = (1,) * (labels.dim() - len(shape)) + tuple(shape)
    return any(size > 1 == own for size, own in zip(labels.shape, shape, strict=True))


@rule(torch.complex, torch.polar, views=False)
@rule(torch.real, torch.imag, views=True)
class Complex(Elementwise):
    """Complex numbers of two real ones, and these of them: zero of zeros."""

    zero = Zero.PRESERVES

    def __init__(self, views: bool) -> None:
        self.views = views

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return None  # the result is of another type


@rule(torch.addcmul, "addcmul", "addcmul_")
class SumWithProduct(Elementwise):
    """a + value · b · c: of the factors one zero is enough."""

    zero = Zero.PRESERVES

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node, "input", "tensor1", "tensor2")
        factors = given["tensor1"], given["tensor2"]
        width = [flow.of(factor).numel() for factor in factors]
        wide = [f for f, n in zip(factors, width, strict=True) if n == max(width)]
        # a parameter cannot be gated by other gates
        return given["input"], max(wide, key=lambda f: f.meta["value"].numel())


@rule(*(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"))
class Product(Elementwise):
    """Products: one zero is enough."""

    zero = Zero.ANY
    keeps_infinity = True


@rule("copy_")
class Overwritten(Elementwise):
    """The values of another tensor, or a number."""

    keeps_infinity = True

    def zero_at(self, node: fx.Node) -> Zero:
        source = _written(node)
        return Zero.PRESERVES if isinstance(source, fx.Node) or source == 0 else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        source = _written(node)
        return (source,) if isinstance(source, fx.Node) else ()


def _written(node: fx.Node) -> object:
    """What `copy_` writes, by whatever name."""
    return (*node.args, *node.kwargs.values())[1]


@rule(torch.lerp, "lerp", "lerp_")
class Mixture(Elementwise):
    """a + weight · (b − a)."""

    zero = Zero.PRESERVES
    keeps_infinity = True

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node, "input", "end", "weight")
        return given["input"], given["end"]


@rule(
    *(operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne, torch.gt, torch.ge, torch.lt),
    *(torch.le, torch.eq, torch.ne, "gt", "ge", "lt", "le", "eq", "ne", torch.isnan, torch.isinf, torch.isfinite),
    *("isnan", "isinf", "isfinite", operator.and_, operator.or_, operator.xor, operator.invert, torch.logical_and),
    *(torch.logical_or, torch.logical_not, "logical_and", "logical_or", "logical_not", torch.logical_xor),
    *(torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor, torch.bitwise_not, torch.signbit, torch.isclose),
    *(torch.isposinf, torch.isneginf, torch.isreal),
)
class Comparison(Elementwise):
    """Truth values: no gate multiplies them."""

    zero = Zero.BREAKS

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return None


@rule(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
class Loss(Elementwise):
    """Losses of every entry, or over all of them: these keep the units."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        if node.kwargs.get("reduction") == "none":
            return broadcast(flow, node)
        for source in node.all_input_nodes:
            flow.freeze(flow.values[source], node, "a loss over the units")
        return frozen((1,) * node.meta["value"].dim())


class _Spared(Elementwise):
    """Not finite at zero, or its gradient is not: where units may be dead, the gated form spares them.

    `function`: what the op computes, as a function of the same arguments.
    """

    zero = Zero.BREAKS

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        """Whether a dead unit does no harm."""
        return False

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = broadcast(flow, node)
        # of heads that are folded into the batch no gate fits another batch
        if labels.dim() > 1 and labels.shape[0] > 1 and not self.is_sound(flow, node) and _is_computed(node):
            flow.freeze(labels, node, "units along the batch axis in what is not finite at zero")
            return frozen((1,) * labels.dim())
        return labels

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels = flow.of(node)
        if labels.numel() == 1 or self.is_sound(flow, node) or not _is_computed(node):
            return None
        return Counting(spared(self.function), labels)


def _is_computed(node: fx.Node) -> bool:
    """Whether a gate may make a value zero: it depends on the network's inputs, or on parameters that others read."""
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op in ("placeholder", "call_module") or (current is not node and len(current.users) > 1):
            return True
        stack += current.all_input_nodes
    return False


@rule(torch.sqrt, "sqrt", "sqrt_", function=torch.sqrt)
@rule(torch.rsqrt, "rsqrt", "rsqrt_", function=torch.rsqrt)
@rule(torch.reciprocal, "reciprocal", "reciprocal_", function=torch.reciprocal)
@rule(torch.log, "log", "log_", function=torch.log)
@rule(torch.log2, "log2", "log2_", function=torch.log2)
@rule(torch.log10, "log10", "log10_", function=torch.log10)
@rule(torch.hypot, "hypot", "hypot_", function=torch.hypot)
@rule(torch.atan2, "atan2", "atan2_", torch.arctan2, "arctan2", "arctan2_", function=torch.atan2)
@rule(torch.xlogy, "xlogy", "xlogy_", function=torch.xlogy)
@rule(torch.lgamma, function=torch.lgamma)
@rule(torch.digamma, function=torch.digamma)
@rule(torch.logit, function=torch.logit)
@rule(torch.special.entr, function=torch.special.entr)
@rule(torch.addcdiv, function=torch.addcdiv)
class NotAtZero(_Spared):
    """Roots, logarithms, reciprocals."""


@rule(operator.pow, operator.ipow, torch.pow, "pow", "pow_", function=torch.pow)
@rule(torch.float_power, function=torch.float_power)
class Power(_Spared):
    """Powers by a number of at least 1 keep zero; with another exponent the value or its gradient is not finite."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        # `float_power` gives double precision
        return None if self.function is torch.float_power else super().infer_call(args, kwargs)

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        exponent = arguments(node, "input", "exponent")["exponent"]
        return isinstance(exponent, int | float) and exponent >= 1

    def zero_at(self, node: fx.Node) -> Zero:
        exponent = arguments(node, "input", "exponent")["exponent"]
        return Zero.PRESERVES if isinstance(exponent, int | float) and exponent >= 1 else Zero.BREAKS


@rule(torch.bucketize)
class Bucket(Comparison):
    """In which of some intervals a number lies."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.of(arguments(node, "input", "boundaries")["input"])


@rule("masked_fill", "masked_fill_", torch.masked_fill)
class MaskedFill(Elementwise):
    """A number in some places."""

    zero = Zero.BREAKS

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        value = arguments(node, "input", "mask", "value").get("value")
        return not isinstance(value, int | float) or math.isinf(value)


@rule("where", names=("input", "condition", "other"))
@rule(torch.where, names=("condition", "input", "other"))
class Where(Elementwise):
    """One of two values in every place."""

    keeps_infinity = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.PRESERVES if all(_is_tensor(a) for a in self._branches(node)) else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(a for a in self._branches(node) if isinstance(a, fx.Node))

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        """A number, or a value without units, may be what masks."""
        branches = self._branches(node)
        if not all(_is_tensor(a) for a in branches):
            return any(not isinstance(a, int | float) or math.isinf(a) for a in branches if not _is_tensor(a))
        return any(_is_same_for_units(flow, node, a) for a in branches)

    def _branches(self, node: fx.Node) -> tuple[Any, Any]:
        given = arguments(node, *self.names)
        return given["input"], given["other"]


@rule("expand_as")
class ExpandAs(Elementwise):
    """A value stretched to the shape of another."""

    zero = Zero.BREAKS
    views = True
    keeps_infinity = True


@rule(
    *(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
    *("div", "div_", "divide", "divide_", "true_divide", "true_divide_"),
    function=torch.div,
)
@rule(operator.floordiv, operator.ifloordiv, torch.floor_divide, function=torch.floor_divide)
@rule(operator.mod, torch.remainder, function=torch.remainder)
@rule(torch.fmod, function=torch.fmod)
class Quotient(_Spared):
    """Quotients, and what they leave. A dead unit in the divisor would divide by zero."""

    keeps_infinity = True

    def is_sound(self, flow: Flow, node: fx.Node) -> bool:
        _, divisor = self._terms(node)
        return not _is_tensor(divisor) or flow.of(divisor).numel() == 1 or not self._may_be_zero(divisor)

    def zero_at(self, node: fx.Node) -> Zero:
        """A divisor that is computed may be zero where the dividend is."""
        dividend, divisor = self._terms(node)
        computed = _is_tensor(divisor) and self._may_be_zero(divisor)
        return Zero.PRESERVES if _is_tensor(dividend) and not computed else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (self._terms(node)[0],)

    @staticmethod
    def _may_be_zero(divisor: fx.Node) -> bool:
        return _is_computed(divisor) or (divisor.op == "get_attr" and len(divisor.users) > 1)

    @staticmethod
    def _terms(node: fx.Node) -> tuple[Any, Any]:
        """Dividend and divisor."""
        given = arguments(node, "input", "other")
        return given["input"], given["other"]
