"""What a report says of a network, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxcat.records import Cost, Pinned
from fxcat.report.layers import LayerCost
from fxcat.scores.sensitivity_result import Sensitivity
from fxcat.training.history import History


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Units of a group at the start, and what is left of them; `macs`, `params`: what the group cost."""

    name: str
    units: int
    left: int
    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class SectionResult:
    """MACs of a section at the start, and what is left. `worth`, `price`: in units of the loss, if training knows."""

    name: str
    macs: int
    macs_left: int
    is_open: bool
    worth: float | None
    price: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What became of a network. `results`: what was measured beside it, as text by its name; `settings`: how the run
    was asked for, as text; `smallest`: the least that could be reached."""

    title: str
    start: Cost[int]
    left: Cost[int]
    smallest: Cost[int]
    coverage: float
    groups: tuple[GroupResult, ...]
    sections: tuple[SectionResult, ...]
    layers: tuple[LayerCost, ...]
    pinned: tuple[Pinned, ...]
    history: History | None = None
    sensitivity: Sensitivity | None = None
    results: Mapping[str, str] = field(default_factory=dict[str, str])
    command: str | None = None
    settings: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    made_at: str = ""
