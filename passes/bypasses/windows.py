"""Windows: how convolutions and poolings change spatial sizes, and the average pooling that changes them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.conv import Conv, ConvFunction
from fxcat.passes.rules.conv_transpose import ConvTranspose
from fxcat.passes.rules.pooling import Pool

_AVERAGE: tuple[Callable[..., nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_OF_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OF_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_OF_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode")


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window, per spatial axis: positions that it spans (dilation included), its steps, zeros on each side.

    `ceil`: whether a last window that is not full counts.
    """

    span: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool = False

    @property
    def keeps_size(self) -> bool:
        """Whether every size stays as it is, whatever it is."""
        sides = zip(self.span, self.stride, self.padding, strict=True)
        return all(stride == 1 and span == 2 * padding + 1 for span, stride, padding in sides)

    @property
    def has_pooling(self) -> bool:
        """Whether there is an average pooling with this window: no window may lie in the padding alone."""
        return all(2 * p <= s for s, p in zip(self.span, self.padding, strict=True))

    def pooling(self) -> nn.Module:
        """The average pooling with this window: for every input size the output has the same size.

        Padding does not count, so that borders are not darker.
        """
        return _AVERAGE[len(self.span) - 1](self.span, self.stride, self.padding, self.ceil, count_include_pad=False)


def is_convolution(rule: Rule | None) -> bool:
    """Whether a node with this rule is a convolution, as a module or as a function; transposed ones are not."""
    return isinstance(rule, Conv | ConvFunction) and not isinstance(rule, ConvTranspose)


def window_of(node: fx.Node, rule: Rule | None, module: nn.Module | None) -> Window | None:
    """The window of a convolution or pooling; None for other ops, and for poolings to a fixed size."""
    source = value_of(node.all_input_nodes[0])
    if is_convolution(rule):
        given = _given(node, module, _OF_CONV)
        weight = given["weight"]
        rank, kernel = weight.dim() - 2, tuple(weight.shape[2:])
    elif isinstance(rule, Pool) and rule.window is not None:
        rank = rule.spatial
        given = _given(node, module, _OF_MAX if is_maximum(rule) else _OF_AVERAGE)
        kernel = _tuple(given["kernel_size"], rank)
        given["stride"] = given.get("stride") or kernel
    else:
        return None
    if source.dim() != rank + 2:
        return None  # there is no batch axis
    dilation = _tuple(given.get("dilation", 1), rank)
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padding: Any = given.get("padding", 0)
    if padding == "same":
        return Window((1,) * rank, (1,) * rank, (0,) * rank)
    padding = 0 if padding == "valid" else padding
    strides = _tuple(given.get("stride", 1), rank)
    return Window(span, strides, _tuple(padding, rank), bool(given.get("ceil_mode", False)))


def is_maximum(rule: Rule | None) -> bool:
    """Whether a node with this rule is a maximum pooling with a window, which is not linear."""
    return isinstance(rule, Pool) and rule.window == "maximum"


def _given(node: fx.Node, module: nn.Module | None, names: tuple[str, ...]) -> dict[str, Any]:
    if module is None:
        return {name: thaw(value) for name, value in arguments(node, *names).items()}
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    """A number, or one for each axis; a sequence of one stands for all."""
    if isinstance(value, int):
        return (value,) * rank
    return tuple(int(v) for v in value) * (rank if len(value) == 1 else 1)
