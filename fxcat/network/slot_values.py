"""The values of gates where a network reads them, out of a sample of all gates, with a derivative of their own."""

from __future__ import annotations

import math
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
    sample: torch.Tensor, index: torch.Tensor, repeated: int, sizes: list[int], *parameters: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    gates = _product(_factors(sample, index))
    flat = torch.cat(parameters) if parameters else gates.new_empty(0)
    end = flat.numel() - repeated
    scaled = (flat * torch.cat([gates[:repeated], gates[:end]])).split(sizes[: len(parameters)])
    plain = gates[end:].clone().split(sizes[len(parameters) :])
    return (*(v.to(p.dtype) for v, p in zip(scaled, parameters, strict=True)), *plain)


def _factors(sample: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
    """Of every entry the gates whose product it is."""
    padded = nn.functional.pad(sample, (1, 0), value=1.0)
    return [padded.index_select(0, row) for row in index]


def _product(factors: list[torch.Tensor]) -> torch.Tensor:
    return math.prod(factors[1:], start=factors[0])


class SlotValues(torch.autograd.Function):
    """Values of all slots: products of gates, the first of them times parameters.

    One node of the autograd graph: hundreds of small ones, one per slot and op, would cost a few percent of a step.
    Its backward pass is made of differentiable ops on its inputs, and so can be differentiated again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        sample: torch.Tensor, index: torch.Tensor, repeated: int, sizes: list[int], *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return slot_values(sample, index, repeated, sizes, *parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sample, index, repeated, sizes, *parameters = inputs
        ctx.save_for_backward(sample, index, *parameters)
        ctx.repeated, ctx.sizes = repeated, sizes

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        sample, index, *parameters = ctx.saved_tensors
        factors = _factors(sample, index)
        gates, repeated = _product(factors), ctx.repeated
        of_values = torch.cat(gradients)
        flat = torch.cat(parameters) if parameters else gates.new_empty(0)
        of_scaled = of_values[: flat.numel()]
        scales = torch.cat([gates[:repeated], gates[: flat.numel() - repeated]])
        scaled = (of_scaled * scales).split(ctx.sizes[: len(parameters)])
        of_gates = torch.cat([of_scaled * flat, of_values[flat.numel() :]])
        # the first entries stand for two parameters each
        both = of_gates[repeated : 2 * repeated] + of_gates[:repeated]
        of_gates = torch.cat([both, of_gates[2 * repeated :]])
        of_sample = sample.new_zeros(sample.numel() + 1)
        for i, row in enumerate(index):
            others = factors[:i] + factors[i + 1 :]
            of_sample = of_sample.index_add(0, row, math.prod(others, start=of_gates).to(sample.dtype))
        of_parameters = [g.to(p.dtype) for g, p in zip(scaled, parameters, strict=True)]
        return (of_sample[1:], None, None, None, *of_parameters)
