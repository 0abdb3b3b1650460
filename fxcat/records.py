"""Frozen records that several parts of fxcat share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch

from fxcat.checks import check_instance, check_number, plain_number
from fxcat.errors import TargetError

N = TypeVar("N", int, float, torch.Tensor)


@dataclass(frozen=True, slots=True)
class Cost(Generic[N]):
    """Cost of a network for one example: multiply-adds (FLOPs = 2 × MACs) and parameters, in absolute numbers."""

    macs: N
    params: N


COUNTED = tuple(field.name for field in fields(Cost))
"""The kinds of cost that the cost graph counts, in the order of `Cost`; a `CostTerm` has a coefficient for each."""

COSTS = ("flops", *COUNTED[1:], "latency")
"""What `Target` calls them, in the same order, and milliseconds, which only a network with a latency table has."""


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

    `latency`: of the milliseconds that a run takes where a `LatencyTable` was measured, which the network must have
    (`net.use_latency(table)`). Of several that are given all are met.

    `layers` in [0, 1]: layers versus units (κ of arXiv 2411.09127): above ½ sections close sooner, below it later. At 0
    sections, at 1 units go only where the others are not enough.

    Raises `TargetError` for a value outside these ranges, and if no fraction is given, `InputError` for no number.
    """

    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    layers: float = 0.5

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in COSTS}
        if all(v is None for v in given.values()):
            raise TargetError("the target is empty", remedy="write Target(flops=0.5), for example")
        for name, value in given.items():
            remedy = f"give the fraction of the start network to keep, for example Target({name}=0.5)"
            check_number(value, f"Target({name})", above=0, most=1, error=TargetError, remedy=remedy, optional=True)
            object.__setattr__(self, name, plain_number(value))
        check_number(
            self.layers, "Target(layers)", least=0, most=1, error=TargetError, remedy="give 0.5 for the balance"
        )
        object.__setattr__(self, "layers", float(self.layers))


@dataclass(frozen=True, slots=True)
class Pressure:
    """The user parameters of complexity-aware training (arXiv 2411.09127), fixed instead of adapted.

    `nu` ≥ 0: pruning pressure, which is reached when the gated phase ends: the loss that all MACs of the start network
    are worth; `layers` in [0, 1]: layers versus units; `params` in [0, 1]: parameters versus
    computation; `latency` in [0, 1 − params]: milliseconds versus both, for a network with a latency table.
    Raises `TargetError` for values outside these ranges, `InputError` for no numbers.
    """

    nu: float
    layers: float = 0.5
    params: float = 0.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        check_number(self.nu, "Pressure(nu)", least=0, error=TargetError)
        check_number(self.layers, "Pressure(layers)", least=0, most=1, error=TargetError)
        left = 1.0
        for name in COSTS[1:]:
            check_number(getattr(self, name), f"Pressure({name})", least=0, most=left, error=TargetError)
            left -= getattr(self, name)
        for field in fields(self):
            object.__setattr__(self, field.name, float(getattr(self, field.name)))


def check_target(value: Any, *, optional: bool = False) -> None:
    """Raise `InputError` for anything but a `Target`."""
    check_instance(value, Target, "target", remedy="write target=fxcat.Target(flops=0.5)", optional=optional)


def check_pressure(value: Any, *, optional: bool = False) -> None:
    """Raise `InputError` for anything but a `Pressure`."""
    check_instance(value, Pressure, "pressure", remedy="write pressure=fxcat.Pressure(nu=0.3)", optional=optional)
