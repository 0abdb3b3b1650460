"""The values of gates where a network reads them, out of a sample of all gates, with a derivative of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class GateSlot:
    """A tensor that the gated graph reads: gate values in a shape, times a parameter if `scales` names one."""

    name: str
    shape: tuple[int, ...]
    scales: tuple[str, str] | None = None
    """Path of a module, and the name of its parameter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> GateSlot:
        return self


@dataclass(frozen=True, slots=True)
class GateLayout:
    """What the gated graph reads in one forward pass; slots that scale parameters come first.

    `index`: shape (factors, entries), numbers of gates plus one, 0 for the constant one. The first `repeated` entries
    stand for two parameters each (weight and bias of a norm): the first slots have them, and all the others follow.
    """

    index: torch.Tensor
    slots: tuple[GateSlot, ...]
    repeated: int


def slot_values(
    sample: torch.Tensor,
    index: torch.Tensor,
    repeated: int,
    sizes: list[int],
    parameters: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Values of all slots: products of gates, the first of them times parameters, each of these with one axis.

    `index`, `repeated`: see `GateLayout`. `sizes`: entries of the slots.
    """
    count = len(parameters)
    flat = torch.cat(list(parameters)) if parameters else sample.new_empty(0)
    values: tuple[torch.Tensor, torch.Tensor] = Scaled.apply(sample, index, repeated, flat)
    products = values[0].split(sizes[:count])
    if any(p.dtype != values[0].dtype for p in parameters):
        products = [v.to(p.dtype) for v, p in zip(products, parameters, strict=True)]
    return (*products, *values[1].split(sizes[count:]))


def _factors(sample: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
    """Of every entry the gates whose product it is."""
    padded = nn.functional.pad(sample, (1, 0), value=1.0)
    return [padded.index_select(0, row) for row in index]


def _product(factors: list[torch.Tensor]) -> torch.Tensor:
    return math.prod(factors[1:], start=factors[0])


class Scaled(torch.autograd.Function):
    """Parameters, one behind the other, times their gates; and the gates that stand for themselves.

    One node of the autograd graph: many small ones would cost a few percent of a step.

    Its backward pass is made of differentiable ops on its inputs, and so can be differentiated again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        sample: torch.Tensor, index: torch.Tensor, repeated: int, flat: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gates = _product(_factors(sample, index))
        end = flat.numel() - repeated
        return flat * torch.cat([gates[:repeated], gates[:end]]), gates[end:].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sample, index, repeated, flat = inputs
        ctx.save_for_backward(sample, index, flat)
        ctx.repeated = repeated

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, of_scaled: torch.Tensor, of_plain: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        sample, index, flat = ctx.saved_tensors
        factors = _factors(sample, index)
        gates, repeated = _product(factors), ctx.repeated
        of_flat = of_scaled * torch.cat([gates[:repeated], gates[: flat.numel() - repeated]])
        of_gates = torch.cat([of_scaled * flat, of_plain])
        # the first entries stand for two parameters each
        both = of_gates[repeated : 2 * repeated] + of_gates[:repeated]
        of_gates = torch.cat([both, of_gates[2 * repeated :]])
        of_sample = sample.new_zeros(sample.numel() + 1)
        for i, row in enumerate(index):
            others = factors[:i] + factors[i + 1 :]
            of_sample = of_sample.index_add(0, row, math.prod(others, start=of_gates).to(sample.dtype))
        return of_sample[1:], None, None, of_flat.to(flat.dtype)
