"""Frozen records that several parts of fxcat share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fxcat.errors import TargetError

N = TypeVar("N", int, float, torch.Tensor)


@dataclass(frozen=True, slots=True)
class Cost(Generic[N]):
    """Cost of a network for one example: multiply-adds (FLOPs = 2 × MACs) and parameters, in absolute numbers."""

    macs: N
    params: N


@dataclass(frozen=True, slots=True)
class Pinned:
    """Something that could not be gated: where, why, and how many indices of an axis it keeps."""

    where: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Group:
    """The units of one channel axis, coupled across layers. `macs`, `params`: what disappears if only this group goes
    (all units but those in other groups stay), at full width everywhere else."""

    name: str
    units: int
    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """A part of the network that a residual connection bypasses. `macs`, `params`: what it costs.

    `stream`: the same number for all that add to the same values, one after another: these stand in for each other.
    """

    name: str
    macs: int
    params: int
    stream: int


@dataclass(frozen=True, slots=True)
class Target:
    """Size to reach, as fractions of the start network in (0, 1]; FLOPs and MACs have the same fraction.

    `layers` in [0, 1]: layers versus units (κ of arXiv 2411.09127): above ½ sections close sooner, below it later. At 0
    sections, at 1 units go only where the others are not enough.

    Raises `TargetError` for a value outside these ranges, and if no fraction is given.
    """

    flops: float | None = None
    params: float | None = None
    layers: float = 0.5

    def __post_init__(self) -> None:
        given = {"flops": self.flops, "params": self.params}
        if all(v is None for v in given.values()):
            raise TargetError("the target is empty", remedy="write Target(flops=0.5) or Target(params=0.5)")
        for name, value in given.items():
            if value is not None and not 0.0 < value <= 1.0:
                raise TargetError(
                    f"Target({name}={value!r}) is outside (0, 1]",
                    remedy=f"give the fraction of the start network to keep, for example Target({name}=0.5)",
                )
        if not 0.0 <= self.layers <= 1.0:
            raise TargetError(f"Target(layers={self.layers!r}) is outside [0, 1]", remedy="0.5 is the balance")


@dataclass(frozen=True, slots=True)
class Pressure:
    """The three user parameters of complexity-aware training (arXiv 2411.09127), fixed instead of adapted.

    `nu` ≥ 0: pruning pressure, which is reached when the gated phase ends: the loss that all MACs of the start network
    are worth; `layers` in [0, 1]: layers versus units; `params` in [0, 1]: parameters versus
    computation. Raises `TargetError` for values outside these ranges.
    """

    nu: float
    layers: float = 0.5
    params: float = 0.0

    def __post_init__(self) -> None:
        ranges = (
            ("nu", self.nu, self.nu >= 0),
            ("layers", self.layers, 0 <= self.layers <= 1),
            ("params", self.params, 0 <= self.params <= 1),
        )
        for name, value, valid in ranges:
            if not valid:
                raise TargetError(
                    f"Pressure({name}={value!r}) is out of range", remedy="nu ≥ 0; layers and params lie in [0, 1]"
                )
