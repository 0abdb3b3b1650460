"""Proxies that carry example values, and the guards that they log when Python asks for one."""

from __future__ import annotations

import dis
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy
import torch
from torch import fx
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_map

from fxcat.errors import CaptureError
from fxcat.passes.capture.branches import casts_if_so, is_message, raises_otherwise
from fxcat.passes.capture.texts import is_key, marked
from fxcat.passes.capture.tracing import Guard, Tracing
from fxcat.passes.capture.true_places import as_index
from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.meta import value_of
from fxcat.passes.nodes.effects import INPLACE_OPERATORS
from fxcat.passes.nodes.known import known_value

_FLOOR, _CEIL = math.floor, math.ceil  # torch.fx replaces those of the module while it traces


def instruction(frame: types.FrameType) -> tuple[types.CodeType, int]:
    """Where a frame is in its code."""
    return frame.f_code, frame.f_lasti


@cache
def _is_matching(code: types.CodeType, at: int) -> bool:
    """Whether an instruction is that of `case SomeClass():`."""
    return code.co_code[at] == dis.opmap["MATCH_CLASS"]


class ExampleProxy(fx.Proxy):
    """A proxy that answers questions about its value (length, truth, integer) from the example, and logs a guard."""

    tracer: Tracing

    def __init__(self, node: fx.Node, tracer: Tracing) -> None:
        # not the base class's, which goes through `__setattr__`
        object.__setattr__(self, "tracer", tracer)
        object.__setattr__(self, "node", node)

    @property
    def example(self) -> Any:
        return value_of(self.node)

    def _resolve(self, value: Any, *, checks: bool = False) -> Any:
        self.tracer.guards.append(Guard(self.node, value, checks))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # protocols that a proxy does not have
        if isinstance(self.example, torch.device):
            return getattr(self.tracer.device, name)  # example values are on the meta device
        if not (hasattr(type(self.example), name) or name in getattr(self.example, "__dict__", ())):
            raise AttributeError(f"{type(self.example).__name__!r} object has no attribute {name!r}")
        if isinstance(self.example, torch.Tensor) and name in _FACTS:
            return getattr(self.example, name)
        if isinstance(self.example, torch.Tensor) and name in _FACTS_OF_DEVICES:
            return _FACTS_OF_DEVICES[name] == self.tracer.device.type
        if name == "data" and isinstance(self.example, torch.Tensor):
            return self.tracer.create_proxy("call_method", "detach", (self,), {})
        if isinstance(self.example, torch.Tensor) and is_transposed(self.example, name):
            return self.tracer.create_proxy("call_method", "transpose", (self, -2, -1), {})
        if isinstance(self.example, torch.Tensor) and name in ("real", "imag"):
            return self.tracer.create_proxy("call_function", getattr(torch, name), (self,), {})
        fields = getattr(type(self.example), "n_sequence_fields", 0)
        if fields and name in ("values", "indices"):  # of what torch.max returns
            return self.tracer.create_proxy(
                "call_function", operator.getitem, (self, ("values", "indices").index(name)), {}
            )
        return ExampleAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("node", "tracer", "root", "attr", "_node"):
            object.__setattr__(self, name, value)
        elif name == "data" and isinstance(value, ExampleProxy):
            self.tracer.create_proxy("call_method", "copy_", (self, value), {})
        else:
            raise CaptureError(
                f"the attribute {name!r} of a tensor is set",
                where=self.tracer.location(),
                remedy="keep the value in the module, or teach fxcat the module with a rule (fxcat.rules)",
            )

    def __hash__(self) -> int:
        if isinstance(self.example, torch.Tensor):
            return object.__hash__(self)
        return hash(self._plain())

    def _plain(self) -> Any:
        """The value of what is no tensor, where Python needs it."""
        if isinstance(self.example, torch.dtype) and self.tracer.has_cast:
            raise CaptureError(
                "Python asks for the type of a value after it has switched autocast on",
                where=self.tracer.location(),
                remedy="switch autocast on outside of the model",
            )
        return self._resolve(self.tracer.device if isinstance(self.example, torch.device) else self.example)

    def __str__(self) -> str:
        return self._text(sys._getframe(1), "")

    def __repr__(self) -> str:
        return fx.Proxy.__repr__(self) if is_tensor(self) else self._text(sys._getframe(1), "")

    def __format__(self, specification: str) -> str:
        return self._text(sys._getframe(1), specification)

    def _text(self, frame: types.FrameType, specification: str) -> str:
        if isinstance(self.example, torch.Tensor):
            return fx.Proxy.__repr__(self)
        if is_message(frame):
            return format(self.example, specification)
        if not specification and is_key(frame):
            proxy: Any = self
            if isinstance(self.example, torch.Size):
                return f"torch.Size([{', '.join(marked(proxy[i]) for i in range(len(self.example)))}])"
            if type(self.example) is int:
                return marked(self)
        return format(self._plain(), specification)

    def __eq__(self, other: object) -> Any:
        return self._compare(operator.eq, other)

    def __ne__(self, other: object) -> Any:
        return self._compare(operator.ne, other)

    def _compare(self, function: Callable[[Any, Any], Any], other: object) -> Any:
        if isinstance(other, Stale):
            return NotImplemented
        if isinstance(self.example, torch.device):
            other = self.tracer.device if isinstance(other, ExampleProxy) else other
            return function(self.tracer.device, other)
        if isinstance(self.example, torch.dtype):
            if function is operator.ne and casts_if_so(sys._getframe(2)):
                return True  # to cast to the type that a value has changes nothing, and is right for other inputs
            return function(self._plain(), other._plain() if isinstance(other, ExampleProxy) else other)
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """What NumPy's functions do with a proxy: operators are those of Python; others want numbers."""
        if method != "__call__" or options or any(is_tensor(i) for i in inputs if function not in _UFUNCS):
            raise CaptureError(
                f"numpy.{function.__name__} of a tensor",
                where=self.tracer.location(),
                remedy="use the function of torch",
            )
        if function in _UFUNCS:
            return _UFUNCS[function](*(i.item() if isinstance(i, numpy.generic) else i for i in inputs))
        if function.__name__ in _OF_ONE_NUMBER and len(inputs) == 1:
            number = self.tracer.create_proxy("call_function", _OF_ONE_NUMBER[function.__name__], inputs, {})
            return self.tracer.create_proxy("call_function", float, (number,), {})
        return function(*(i._resolve(i.example) if isinstance(i, ExampleProxy) else i for i in inputs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy's functions of shapes and numbers: the product stays symbolic, others want numbers."""
        if function is numpy.prod and len(args) == 1 and not kwargs and isinstance(args[0], ExampleProxy):
            return self.tracer.create_proxy("call_function", math.prod, args, {})

        def number(value: Any) -> Any:
            return value._resolve(value.example) if isinstance(value, ExampleProxy) else value

        return function(*tree_map(number, args), **tree_map(number, kwargs))

    def __bool__(self) -> bool:
        if isinstance(self.example, torch.Tensor):
            return self._truth(sys._getframe(1))
        value = bool(self.example)
        return self._as(bool)._resolve(value, checks=raises_otherwise(sys._getframe(1), value))

    def _truth(self, frame: types.FrameType) -> bool:
        """Which way a tensor sends Python: a known one its own; another is asserted where all else is an error, for
        values that are not finite, or while buffers hold what they do."""
        known = known_value(self.node, self.tracer.root, self.tracer.held)
        doubtful = known is not None and (known.finite or known.held)
        if known is not None and not known.sizes and not doubtful:
            return bool(known.value)
        for value in (True, False) if known is None else (bool(known.value),):
            if doubtful or raises_otherwise(frame, value):
                holds: Any = self if value else torch.logical_not(self)  # pyright: ignore[reportArgumentType]
                torch._assert(holds, "a branch was captured that is not taken for these values")  # pyright: ignore[reportPrivateUsage]
                if known is not None and known.held:
                    self.tracer.guards += [Guard(n, value_of(n)) for n in known.sizes]
                return value
        if known is None:
            raise CaptureError(
                "a branch depends on the values of a tensor",
                where=self.tracer.location(),
                remedy="move the branch out of the model, or teach fxcat the module with a rule (fxcat.rules)",
            )
        self.tracer.guards += [Guard(n, value_of(n)) for n in known.sizes]
        return bool(known.value)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What it stands for, to `case torch.Tensor():`; nothing else may take a proxy for a tensor."""
        frame = sys._getframe(1)
        return type(self.example) if _is_matching(*instruction(frame)) else type(self)

    def __copy__(self) -> fx.Proxy:
        return self.tracer.proxy(self.node)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.Proxy:
        return self.tracer.create_proxy("call_method", "clone", (self,), {}) if is_tensor(self) else self

    def __len__(self) -> int:
        if isinstance(self.example, torch.Tensor):
            operator.index(self.size(0))  # another batch has another length
        elif self.node.target in _TAKING_APART:
            axis, count = _pieces(self)
            if isinstance(count, ExampleProxy):  # removal does not change it, other sizes may
                count._resolve(count.example, checks=axis != 0)
        return len(self.example)

    def __index__(self) -> int:
        if is_tensor(self):
            return operator.index(self.tracer.plain_number(self))
        found = self._resolve(operator.index(self.example))
        self.tracer.asked.append(instruction(sys._getframe(1)))
        return found

    def __int__(self) -> int:
        return self._known_number(int)

    def __float__(self) -> float:
        return self._known_number(float)

    def _known_number(self, kind: Callable[[Any], Any]) -> Any:
        if is_tensor(self):
            return kind(self.tracer.plain_number(self))
        found = self._as(kind)
        return found._resolve(found.example)

    def _as(self, kind: Callable[[Any], Any]) -> ExampleProxy:
        """The same number as one of another type."""
        same = type(self.example) is kind
        return self if same else self.tracer.create_proxy("call_function", kind, (self,), {})  # pyright: ignore[reportReturnType]

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self,) if digits is None else (self, digits), {})

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", _FLOOR, (self,), {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", _CEIL, (self,), {})

    def __iter__(self) -> Iterator[fx.Proxy]:
        proxy: Any = self
        return iter([proxy[i] for i in range(len(self))])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, as_index(index), value), {})

    def __contains__(self, item: object) -> bool:
        if isinstance(self.example, torch.Tensor):
            return bool((self == item).any())
        return any(bool(part == item) for part in self)


def is_tensor(value: object) -> bool:
    """Whether a value stands for a tensor."""
    return isinstance(value, ExampleProxy) and isinstance(value.example, torch.Tensor)


def is_transposed(tensor: torch.Tensor, attribute: str) -> bool:
    """Whether an attribute of a tensor is that with its last two axes exchanged."""
    conjugated = attribute in ("mH", "H")
    return (
        attribute in ("mT", "mH", "T", "H")
        and tensor.dim() >= 2
        and not ((attribute in ("T", "H") and tensor.dim() != 2) or (conjugated and tensor.is_complex()))
    )


_FACTS = ("ndim", "layout", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "is_sparse_csr", "names")
"""Attributes of a tensor that no input and no removal changes."""

_FACTS_OF_DEVICES = {f"is_{kind}": kind for kind in ("cuda", "cpu", "meta", "mps", "xpu")}
"""Attributes of a tensor that say on which device it is, and the type of that."""

_UFUNCS: dict[Any, Callable[..., Any]] = {
    **{numpy.add: operator.add, numpy.subtract: operator.sub, numpy.multiply: operator.mul},
    **{numpy.true_divide: operator.truediv, numpy.floor_divide: operator.floordiv, numpy.power: operator.pow},
    **{numpy.remainder: operator.mod, numpy.negative: operator.neg, numpy.equal: operator.eq},
    **{numpy.not_equal: operator.ne, numpy.less: operator.lt, numpy.less_equal: operator.le},
    **{numpy.greater: operator.gt, numpy.greater_equal: operator.ge, numpy.matmul: operator.matmul},
}
"""What NumPy calls when one of its numbers stands on the left of an operator."""


_OF_ONE_NUMBER = {
    name: getattr(math, name)
    for name in ("sqrt", "ceil", "floor", "exp", "log", "log2", "log10", "log1p", "cos", "sin")
}
"""Functions of one number that NumPy has too; it gives floats only."""


class Stale:
    """What a model kept of the sizes of an earlier forward pass: equal to nothing and less than anything, so that it is
    found anew."""

    def __lt__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return False

    __le__, __ge__ = __lt__, __gt__

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, index: object) -> Stale:
        return self


_TAKING_APART = (torch.split, "split", torch.chunk, "chunk", torch.unbind, "unbind")


def _pieces(taken_apart: ExampleProxy) -> tuple[int, Any]:
    """Along which axis a value is taken apart, and into how many pieces: a number that stays symbolic, None with a list
    of sizes."""
    node, proxy = taken_apart.node, taken_apart.tracer.proxy
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    given = arguments(node, "input", "dim") if name == "unbind" else arguments(node, "input", "size", "dim")
    other = given.get("split_size_or_sections", given.get("split_size", given.get("chunks", 1)))
    size, axis = given.get("size", other), given.get("dim", 0)
    if isinstance(size, tuple | list):
        return axis, None
    source = node.all_input_nodes[0]
    length: Any = proxy(source).size(axis)
    each: Any = proxy(size) if isinstance(size, fx.Node) else size
    each = (length + (each - 1)) // each if name == "chunk" else each
    return axis % value_of(source).dim(), length if type(each) is int and each == 1 else (length + (each - 1)) // each


def _changing(function: Callable[..., Any]) -> Callable[[ExampleProxy, Any], fx.Proxy]:
    """`+=` and the like: torch.fx takes them for sums, and what else holds the tensor would not see the change."""

    def call(self: ExampleProxy, other: Any) -> fx.Proxy:
        target = function if isinstance(self.example, torch.Tensor) else INPLACE_OPERATORS[function]
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return call


def _comparing(function: Callable[[Any, Any], Any]) -> Callable[[ExampleProxy, Any], Any]:
    def call(self: ExampleProxy, other: Any) -> Any:
        return self._compare(function, other)

    return call


for _operator in (operator.lt, operator.le, operator.gt, operator.ge):
    setattr(ExampleProxy, f"__{_operator.__name__}__", _comparing(_operator))
for _operator in INPLACE_OPERATORS:
    setattr(ExampleProxy, f"__{_operator.__name__}__", _changing(_operator))


class ExampleAttribute(Attribute, ExampleProxy):
    """An attribute of a proxy; flags, such as `is_nested`, are those of the example."""

    root: ExampleProxy

    def __bool__(self) -> bool:
        if self.attr == "requires_grad":
            return torch.is_grad_enabled()  # example values have no gradients
        value = getattr(self.root.example, self.attr)
        return value if isinstance(value, bool) else ExampleProxy.__bool__(self)
