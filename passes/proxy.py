"""Proxies that carry example values, and the guards that they log when Python asks for one."""

from __future__ import annotations

import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

from fxcat.errors import CaptureError
from fxcat.passes.arguments import arguments
from fxcat.passes.branches import raises_otherwise
from fxcat.passes.effects import INPLACE_OPERATORS

if TYPE_CHECKING:
    from fxcat.passes.tracer import ExampleTracer

_FLOOR, _CEIL = math.floor, math.ceil  # torch.fx replaces those of the module while it traces


@dataclass(frozen=True, slots=True)
class Guard:
    """A Python value that control flow took from the graph: `node` evaluated to `value` when the model was captured.

    `checks`: all that Python does where the value is another is to raise an error.
    """

    node: fx.Node
    value: object
    checks: bool = False


def instruction(frame: types.FrameType) -> tuple[types.CodeType, int]:
    """Where a frame is in its code."""
    return frame.f_code, frame.f_lasti


class ExampleProxy(fx.Proxy):
    """A proxy that answers questions about its value (length, truth, integer) from the example, and logs a guard."""

    tracer: ExampleTracer

    @property
    def example(self) -> Any:
        return self.node.meta["value"]

    def _resolve(self, value: Any, *, checks: bool = False) -> Any:
        self.tracer.guards.append(Guard(self.node, value, checks))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # protocols that a proxy does not have
        if name == "data" and isinstance(self.example, torch.Tensor):
            return self.tracer.create_proxy("call_method", "detach", (self,), {})
        if isinstance(self.example, torch.Tensor) and (name == "mT" or (name == "T" and self.example.dim() == 2)):
            return self.tracer.create_proxy("call_method", "transpose", (self, -2, -1), {})
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
                remedy="keep the value in the module, or list the module in ignore=",
            )

    def __bool__(self) -> bool:
        if isinstance(self.example, torch.Tensor):
            raise CaptureError(
                "a branch depends on the values of a tensor",
                where=self.tracer.location(),
                remedy="move the branch out of the model, or list the module in ignore=",
            )
        value = bool(self.example)
        return self._resolve(value, checks=raises_otherwise(sys._getframe(1), value))

    def __len__(self) -> int:
        whole: Any = self if isinstance(self.example, torch.Tensor) else None
        if self.node.target in _AS_MANY_AS_EXAMPLES and _takes_first_axis(self.node):
            whole = self.tracer.proxy(self.node.all_input_nodes[0])
        if whole is not None:
            operator.index(whole.size(0))  # another batch has another length
        return len(self.example)  # of a shape, or of pieces: removal does not change it

    def __index__(self) -> int:
        found = self._resolve(operator.index(self.example))
        self.tracer.asked.append(instruction(sys._getframe(1)))
        return found

    def __int__(self) -> int:
        return self._resolve(int(self.example))

    def __float__(self) -> float:
        return self._resolve(float(self.example))

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self,) if digits is None else (self, digits), {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", _FLOOR, (self,), {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", _CEIL, (self,), {})

    def __iter__(self) -> Iterator[fx.Proxy]:
        proxy: Any = self
        return iter([proxy[i] for i in range(len(self))])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __contains__(self, item: object) -> bool:
        return self._resolve(item in self.example)


_AS_MANY_AS_EXAMPLES = (torch.split, "split", torch.unbind, "unbind")


def _takes_first_axis(node: fx.Node) -> bool:
    """Whether a node takes a value apart along its first axis, into pieces of a given size."""
    given = arguments(node, "input", "dim") if "unbind" in str(node.target) else arguments(node, "input", "size", "dim")
    sizes = given.get("size", given.get("split_size_or_sections", given.get("split_size", 1)))
    return given.get("dim", 0) == 0 and not isinstance(sizes, tuple | list)


def _changing(function: Callable[..., Any]) -> Callable[[ExampleProxy, Any], fx.Proxy]:
    """`+=` and the like: torch.fx takes them for sums, and what else holds the tensor would not see the change."""

    def call(self: ExampleProxy, other: Any) -> fx.Proxy:
        target = function if isinstance(self.example, torch.Tensor) else INPLACE_OPERATORS[function]
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return call


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
