"""Gates: one flat vector of probabilities θ, samples of it, and named views for people.

A gate is a 0/1 random variable ξ ~ Bernoulli(θ) that multiplies a unit or a section's output (arXiv 2205.04650,
2406.04549, 2411.09127). All gates are sampled together, once per forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.slicing import replace_data

SAMPLES = "fxcat_gates"
"""Attribute of the network under which the gated graph finds the gate values of the current forward pass."""


@dataclass(frozen=True, slots=True)
class GateLayout:
    """Which gates each site of the gated graph multiplies its value with.

    `index`: shape (factors, entries of all sites), numbers of gates plus one, 0 for the constant one. `shapes`: the
    shape in which each site wants its entries.
    """

    index: torch.Tensor
    shapes: tuple[tuple[int, ...], ...]


class GateSamples(nn.Module):
    """Gate values of one forward pass: tensors `site0`, `site1`, …; one gather serves all sites."""

    index: torch.Tensor

    def __init__(self, layout: GateLayout) -> None:
        super().__init__()
        self.register_buffer("index", layout.index, persistent=False)
        self._shapes = layout.shapes
        self._sizes = [torch.Size(s).numel() for s in layout.shapes]
        self._names = [f"site{i}" for i in range(len(layout.shapes))]

    def fill(self, sample: torch.Tensor) -> None:
        """Publish a sample of all gates, shape (gates,), for one forward pass."""
        padded = nn.functional.pad(sample, (1, 0), value=1.0)
        values = padded[self.index[0]]
        for factor in self.index[1:]:
            values = values * padded[factor]
        for name, value, shape in zip(self._names, values.split(self._sizes), self._shapes, strict=True):
            self.__dict__[name] = value if len(shape) == 1 else value.reshape(shape)

    def clear(self) -> None:
        """Drop them: tensors with a history cannot be copied, and would keep the autograd graph alive."""
        for name in self._names:
            self.__dict__.pop(name, None)


class GateVector(nn.Module):
    """θ of all units, then of all sections, in one parameter of shape (U + S,); its gradient is straight-through."""

    theta: nn.Parameter

    def __init__(self, units: int, sections: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(units + sections, dtype=dtype))
        self.unit_count = units
        self.sampling = True
        self.sample: torch.Tensor | None = None
        self._generator = torch.Generator().manual_seed(0)

    @property
    def units(self) -> torch.Tensor:
        return self.theta[: self.unit_count]

    @property
    def sections(self) -> torch.Tensor:
        return self.theta[self.unit_count :]

    def hard(self) -> torch.Tensor:
        """0/1 gates as inference uses them: open where θ > ½."""
        return (self.theta.detach() > 0.5).to(self.theta.dtype)

    def forward(self) -> torch.Tensor:
        """A sample of all gates, shape (U + S,), differentiable in θ by the straight-through estimator (§5.3)."""
        if not self.training:
            return self.hard()
        theta = self.theta
        if self.sampling and theta.requires_grad:
            draw = torch.rand(theta.shape, generator=self._generator).to(theta.device)
            sample = (draw < theta.detach()).to(theta.dtype)
        else:
            sample = self.hard()
        self.sample = sample
        if theta.requires_grad and torch.is_grad_enabled():
            sample = sample + (theta - theta.detach())
        return sample

    def restrict(self, origin: torch.Tensor, units: int) -> None:
        """Keep the entries `origin` only, as `units` units and then sections; the parameter object stays the same."""
        gradient = None if self.theta.grad is None else self.theta.grad[origin]
        replace_data(self.theta, self.theta.detach()[origin], gradient)
        self.unit_count = units

    def seed(self, seed: int) -> None:
        """Gates draw from a generator of their own, so that dropout and data order stay those of the plain run."""
        self._generator.manual_seed(seed)


@dataclass(frozen=True, slots=True)
class Gate:
    """A named part of the gate vector: the units of a group, or one section."""

    name: str
    kind: Literal["units", "section"]
    vector: GateVector
    start: int
    count: int

    @property
    def theta(self) -> torch.Tensor:
        """Probabilities in [0, 1], shape (units,) or (1,) for a section. Shares memory: write into it to set gates."""
        return self.vector.theta.detach()[self.start : self.start + self.count]

    def set(self, values: torch.Tensor | float) -> None:
        """Set all probabilities. Raises `InputError` for values outside [0, 1] or of another shape."""
        new = torch.as_tensor(values, dtype=self.theta.dtype, device=self.theta.device)
        if new.shape not in (torch.Size(()), self.theta.shape) or not bool(((new >= 0) & (new <= 1)).all()):
            raise InputError(
                f"gate {self.name!r} cannot take values of shape {tuple(new.shape)}",
                where=self.name,
                remedy=f"give one number, or {self.count} of them, in [0, 1]",
            )
        self.theta.copy_(new)
