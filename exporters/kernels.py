"""Convolutions with as many groups as there are examples, as the products that they are.

Dynamic convolutions lay the examples of a batch beside each other as groups of one convolution, each with kernels of
its own. ONNX wants the number of groups to be fixed; a batched product does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class PlainKernels(TorchFunctionMode):
    """Products in the place of convolutions whose number of groups follows from the batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = _PRODUCTS.get(func)
        if product is not None:
            found = product(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))


def _convolved(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: Any = 1,
) -> torch.Tensor:
    if not isinstance(groups, torch.SymInt) or input.shape[0] != 1:
        return NotImplemented
    rank = weight.dim() - 2
    spread = _of_axes(dilation, rank)
    if isinstance(padding, str):
        around = [d * (k - 1) if padding == "same" else 0 for k, d in zip(weight.shape[2:], spread, strict=True)]
        pads = [(p // 2, p - p // 2) for p in around]
    else:
        pads = [(p, p) for p in _of_axes(padding, rank)]
    x = F.pad(input, [p for pair in reversed(pads) for p in pair])
    x = x.reshape(groups, weight.shape[1], *x.shape[2:])
    return _product(x, weight, bias, _of_axes(stride, rank), spread)


def _transposed(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: Any = 1,
    dilation: int | Sequence[int] = 1,
) -> torch.Tensor:
    """With zeros between the entries of the input it is a convolution with the kernel turned round."""
    if not isinstance(groups, torch.SymInt) or input.shape[0] != 1:
        return NotImplemented
    rank, channels = weight.dim() - 2, weight.shape[1]
    steps, spread = _of_axes(stride, rank), _of_axes(dilation, rank)
    x = input.reshape(groups, -1, *input.shape[2:])
    weight = weight.reshape(groups, x.shape[1], channels, *weight.shape[2:]).transpose(1, 2)
    weight = weight.reshape(-1, *weight.shape[2:]).flip(list(range(2, rank + 2)))
    pads: list[int] = []
    rest = zip(steps, spread, _of_axes(padding, rank), _of_axes(output_padding, rank), weight.shape[2:], strict=True)
    for axis, (step, apart, pad, more, size) in enumerate(rest, 2):
        x = F.pad(x.unsqueeze(axis + 1), [0, 0] * (x.dim() - axis - 1) + [0, step - 1]).flatten(axis, axis + 1)
        border = apart * (size - 1) - pad
        pads = [border, border + more - (step - 1), *pads]
    return _product(F.pad(x, pads), weight, bias, [1] * rank, spread)


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """Of x (groups, channels, sizes) and weight (groups · out, channels, kernel): windows (groups, channels · area,
    positions) by kernels (groups, out, channels · area), as (1, groups · out, sizes)."""
    kernel, rank = weight.shape[2:], weight.dim() - 2
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    windows: list[torch.Tensor] = []
    for place in itertools.product(*map(range, kernel)):
        window = x
        for axis, (i, apart, step, size) in enumerate(zip(place, dilation, stride, sizes, strict=True), 2):
            window = window.movedim(axis, -1)[..., i * apart : i * apart + step * (size - 1) + 1 : step]
            window = window.movedim(-1, axis)
        windows.append(window)
    entries = torch.stack(windows, 2).reshape(x.shape[0], x.shape[1] * math.prod(kernel), -1)
    result = weight.reshape(x.shape[0], -1, entries.shape[1]) @ entries
    result = result.reshape(1, weight.shape[0], *sizes)
    return result if bias is None else result + bias.reshape(1, -1, *[1] * rank)


def _of_axes(given: int | Sequence[int], rank: int) -> list[int]:
    """A number for every axis."""
    several = [given] if isinstance(given, int) else list(given)
    return several * rank if len(several) == 1 else several


_PRODUCTS: dict[Any, Any] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolved),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed),
}
