"""Elementwise ops that are finite at zero: what they do to a unit that is zero."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Sample, Zero
from fxcat.passes.rules.elementwise import Elementwise, broadcast, is_tensor
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule


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
    keeps_type = True

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
    keeps_type = True

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
        return [a for a in (given["input"], given["other"]) if is_tensor(a)]


def _is_same_for_units(flow: Flow, node: fx.Node, source: fx.Node) -> bool:
    """Whether an input is broadcast along an axis along which the result has units."""
    labels, shape = flow.of(node), value_of(source).shape
    shape = (1,) * (labels.dim() - len(shape)) + tuple(shape)
    return any(size > 1 == own for size, own in zip(labels.shape, shape, strict=True))


@rule(torch.complex, torch.polar, torch.conj_physical, "conj_physical", torch.angle, "angle", views=False)
@rule(torch.real, torch.imag, torch.conj, "conj", views=True)
class Complex(Elementwise):
    """Complex numbers of two real ones, these of them, and others of them: zero of zeros."""

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
        return given["input"], max(wide, key=lambda f: value_of(f).numel())


@rule(*(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"))
class Product(Elementwise):
    """Products: one zero is enough. Of a list of values and a number (`[weight] * batch`): the same again and again."""

    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            return super().flow(flow, node)
        given: Any = next(
            a for a in node.args if isinstance(value_of(a) if isinstance(a, fx.Node) else a, list | tuple)
        )
        labels: Any = flow.values[given] if isinstance(given, fx.Node) else [flow.values[source] for source in given]
        return tuple(labels[i % len(labels)] for i in range(len(value)))

    def zero_at(self, node: fx.Node) -> Zero:
        return Zero.ANY if isinstance(value_of(node), torch.Tensor) else Zero.PRESERVES


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
        return frozen((1,) * value_of(node).dim())


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
        return Zero.PRESERVES if all(is_tensor(a) for a in self._branches(node)) else Zero.BREAKS

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(a for a in self._branches(node) if isinstance(a, fx.Node))

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        """A number, or a value without units, may be what masks."""
        branches = self._branches(node)
        if not all(is_tensor(a) for a in branches):
            return any(not isinstance(a, int | float) or math.isinf(a) for a in branches if not is_tensor(a))
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
