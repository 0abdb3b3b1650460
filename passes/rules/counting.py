"""Statistics that count live entries only, in the gated form of what averages over units; and functions that are not
finite at zero, in a form that spares dead entries.

Where a sample closes every gate of a group, the result is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format
from torch.utils._pytree import tree_map


def _is_closed(gate: torch.Tensor) -> torch.Tensor:
    """Where a gate is closed: while derivatives are taken it is not zero there, but below the resolution of numbers."""
    return gate < torch.finfo(gate.dtype).eps


def _is_small(value: torch.Tensor) -> torch.Tensor:
    """Where a value may be what a closed gate, or its square, has left."""
    if not (value.is_floating_point() or value.is_complex()):
        return value == 0
    return value.abs() < torch.finfo(value.dtype).eps ** 0.5


def _open(gate: torch.Tensor) -> torch.Tensor:
    """How many entries are live, at least one: nothing is divided by zero."""
    count = gate.sum()
    return torch.where(count > 0, count, 1.0)


def gated_mean(
    input: torch.Tensor,
    dim: int | list[int] | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`torch.mean` over what a gate, broadcastable to the input, leaves open."""
    total = (input * gate).sum(dim, keepdim)
    return total * (gate.numel() / _open(gate)) * (total.numel() / input.numel())


def gated_var(
    input: torch.Tensor,
    dim: int | bool | list[int] | tuple[int, ...] | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: int | None = None,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`torch.var` over what a gate, broadcastable to the input, leaves open."""
    if isinstance(dim, bool):  # `x.var(False)`
        dim, unbiased = None, dim
    centred = input - gated_mean(input, dim, True, gate=gate)
    result = gated_mean(centred * centred, dim, keepdim, gate=gate)
    entries = input.numel() / result.numel() * (_open(gate) / gate.numel())
    return result * entries / (entries - (int(unbiased) if correction is None else correction)).clamp(min=1)


def gated_amax(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.amax` over what a gate, broadcastable to the input, leaves open."""
    result = torch.where(_is_closed(gate), -torch.inf, input * gate).amax(*args, **options)
    return torch.where(result > -torch.inf, result, 0.0)


def gated_amin(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.amin` over what a gate leaves open."""
    return -gated_amax(-input, *args, gate=gate, **options)


def gated_max(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
    """The values of `torch.max` along an axis, over what a gate leaves open."""
    return (gated_amax(input, *args, gate=gate, **options),)


def gated_min(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
    """The values of `torch.min` along an axis, over what a gate leaves open."""
    return (gated_amin(input, *args, gate=gate, **options),)


def gated_std(input: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """`torch.std` over what a gate leaves open; arguments as those of `gated_var`."""
    variance = gated_var(input, *args, **options)
    return torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)


def gated_var_mean(
    input: torch.Tensor, dim: Any = None, *args: Any, gate: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.var_mean` over what a gate leaves open; arguments as those of `gated_var`."""
    return gated_var(input, dim, *args, gate=gate, **options), _mean_beside(input, dim, args, options, gate)


def gated_std_mean(
    input: torch.Tensor, dim: Any = None, *args: Any, gate: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.std_mean` over what a gate leaves open; arguments as those of `gated_var`."""
    return gated_std(input, dim, *args, gate=gate, **options), _mean_beside(input, dim, args, options, gate)


def _mean_beside(
    input: torch.Tensor, dim: Any, args: tuple[Any, ...], options: dict[str, Any], gate: torch.Tensor
) -> torch.Tensor:
    """The mean that comes with a variance of these arguments."""
    keepdim = bool(options.get("keepdim", args[1] if len(args) > 1 else False))
    return gated_mean(input, None if isinstance(dim, bool) else dim, keepdim, gate=gate)


def gated_logsumexp(input: torch.Tensor, dim: Any, keepdim: bool = False, *, gate: torch.Tensor) -> torch.Tensor:
    """`torch.logsumexp` over what a gate, broadcastable to the input, leaves open."""
    most = gated_amax(input.detach(), dim, keepdim=True, gate=gate)
    total = _exponentials(input, most, gate).sum(dim, keepdim)
    return torch.where(total > 0, total, 1.0).log() + most.sum(dim, keepdim)


def gated_softmax(
    input: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None, *, gate: torch.Tensor
) -> torch.Tensor:
    """`torch.softmax` over what a gate, broadcastable to the input, leaves open; zero elsewhere."""
    input = input if dtype is None else input.to(dtype)
    found = _exponentials(input, gated_amax(input.detach(), dim, keepdim=True, gate=gate), gate)
    total = found.sum(dim, keepdim=True)
    return found / torch.where(total > 0, total, 1.0)


def gated_log_softmax(
    input: torch.Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None, *, gate: torch.Tensor
) -> torch.Tensor:
    """`torch.log_softmax`, likewise."""
    input = input if dtype is None else input.to(dtype)
    return (input - gated_logsumexp(input, dim, True, gate=gate)) * gate


def _exponentials(input: torch.Tensor, most: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """exp of what is left of the largest open entry; a closed one may be larger. The largest has a gradient, which
    `clamp` does not give in every version of PyTorch."""
    left = input - most
    return torch.where(left > 0, 0.0, left).exp() * gate


@cache
def spared(function: Callable[..., Any]) -> Callable[..., Any]:
    """An elementwise function that is not finite for some inputs, or whose gradient is not: where a gate, broadcastable
    to the result, is closed, ones enter in place of such inputs, and zeros leave."""

    def call(*args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
        with torch.no_grad():
            plain = function(*args, **options)
            given = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
            bad = ~plain.isfinite()
            for tensor in given:
                bad = bad | _is_small(tensor)
            bad = bad & _is_closed(gate)
        args, options = tree_map(
            lambda x: torch.where(bad, torch.ones_like(x), x) if isinstance(x, torch.Tensor) else x, (args, options)
        )
        return function(*args, **options) * gate

    call.__name__ = call.__qualname__ = f"spared_{function.__name__}"
    call.__module__ = __name__
    return call


@cache
def spared_windows(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same for a function that works on every channel apart: ones enter in place of zeros."""

    def call(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
        bad = _is_closed(gate) & _is_small(input.detach())
        return function(torch.where(bad, torch.ones_like(input), input), *args, **options) * gate

    call.__name__ = call.__qualname__ = f"spared_{function.__name__}"
    call.__module__ = __name__
    return call


def gated_layer_norm(
    input: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`F.layer_norm` over what a gate, broadcastable to `normalized_shape`, leaves open; zero elsewhere."""
    axes = tuple(range(-len(normalized_shape), 0))
    gate = gate.expand(list(normalized_shape))
    count = _open(gate)
    input = (input * gate).contiguous()  # as the result of F.layer_norm is, of which a view may be taken
    centred = (input - input.sum(axes, keepdim=True) / count) * gate
    result = centred * ((centred * centred).sum(axes, keepdim=True) / count + eps).rsqrt()
    result = result if weight is None else result * weight
    return result if bias is None else result + bias * gate


def gated_rms_norm(
    input: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`F.rms_norm` over what a gate, broadcastable to `normalized_shape`, leaves open; zero elsewhere."""
    axes = tuple(range(-len(normalized_shape), 0))
    gate = gate.expand(list(normalized_shape))
    input = (input * gate).contiguous()  # as the result of F.rms_norm is
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    result = input * ((input * input).sum(axes, keepdim=True) / _open(gate) + eps).rsqrt()
    return result if weight is None else result * weight


def gated_local_response_norm(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`F.local_response_norm` over neighbours among the channels that a gate, broadcastable to the input, leaves open.

    Closed ones come last, where they are zeros as beyond the last channel.
    """
    order = _is_closed(gate.detach().reshape(-1)).int().argsort(stable=True)
    result = F.local_response_norm((input * gate).index_select(1, order), *args, **options)
    return torch.empty_like(input).copy_(result.index_select(1, order.argsort()))  # with the same strides


def gated_group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`F.group_norm` over what a gate of shape (channels,), equal in all groups, leaves open; zero elsewhere."""
    channels = input.shape[1]
    blocks = input.reshape(input.shape[0], num_groups, channels // num_groups, -1)
    of_group = gate.reshape(num_groups, -1, 1)[:1].expand(-1, -1, blocks.shape[-1])
    result = gated_layer_norm(blocks, list(blocks.shape[2:]), eps=eps, gate=of_group[0]).reshape(input.shape)
    # as F.group_norm lays it out: dropout draws its numbers in the order in which values lie in memory
    result = result.contiguous(memory_format=suggest_memory_format(input))
    shape = [1, channels] + [1] * (input.dim() - 2)
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + (bias * gate).reshape(shape)


def gated_sum(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.sum` over what a gate leaves open."""
    return torch.sum(input * gate, *args, **options)


def gated_norm(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.norm` over what a gate leaves open."""
    return torch.norm(input * gate, *args, **options)


def gated_vector_norm(x: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.linalg.vector_norm` over what a gate leaves open."""
    return torch.linalg.vector_norm(x * gate, *args, **options)


def gated_normalize(input: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`F.normalize` over what a gate leaves open; zero elsewhere."""
    return F.normalize(input * gate, *args, **options)


def gated_matmul(input: torch.Tensor, other: torch.Tensor, *, gate: torch.Tensor) -> torch.Tensor:
    """`torch.matmul`, of vectors too, that sums over what a gate of shape (summed,) leaves open."""
    return torch.matmul(input * gate, other)


def gated_distances(x1: torch.Tensor, x2: torch.Tensor, *args: Any, gate: torch.Tensor, **options: Any) -> torch.Tensor:
    """`torch.cdist` over what a gate leaves open."""
    return torch.cdist(x1 * gate, x2 * gate, *args, **options)


def gated_weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0, *, gate: torch.Tensor) -> torch.Tensor:
    """`torch._weight_norm`, v · g / ‖v‖ for every slice along an axis, over what a gate leaves open; zero elsewhere."""
    v = v * gate
    axes = [a for a in range(v.dim()) if a != dim % v.dim()]
    norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    return v * (g / torch.where(norm > 0, norm, 1.0))


def gated_standardised(
    input: torch.Tensor,
    running_mean: None = None,
    running_var: None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    gate: torch.Tensor,
) -> torch.Tensor:
    """`F.batch_norm` without running statistics over what a gate, broadcastable to the input, leaves open."""
    axes = [a for a in range(input.dim()) if a != 1]
    mean, var = (f(input, axes, keepdim=True, gate=gate) for f in (gated_mean, _biased_var))
    shape = [-1 if a == 1 else 1 for a in range(input.dim())]
    result = (input - mean) * (var + eps).rsqrt()
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


def _biased_var(input: torch.Tensor, dim: list[int], keepdim: bool, gate: torch.Tensor) -> torch.Tensor:
    return gated_var(input, dim, keepdim=keepdim, correction=0, gate=gate)
