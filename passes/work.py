"""What is known of a network while it goes through the compiler's steps, and afterwards."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxcat.network.cost_model import CostTerm
from fxcat.passes.analysis.chains import Chain
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.labelling import Labelling
from fxcat.passes.analysis.sections import Section
from fxcat.passes.analysis.units import Units
from fxcat.passes.analysis.units_before import UnitsBefore
from fxcat.passes.capture.capture import Captured
from fxcat.passes.capture.regions import Region
from fxcat.passes.gating.insert import Gatings


@dataclass(frozen=True, slots=True)
class Source:
    """What is captured: see `capture`."""

    model: nn.Module
    example_inputs: Any
    in_regions: bool = True


UNKNOWN: Any = None
"""What a step has still to find."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `prepare` was asked for: kinds of gates, module paths to leave alone, whether to gate input features, and
    paths of modules whose Python is run as it is."""

    units: bool = True
    sections: bool = True
    ignore: tuple[str, ...] = ()
    inputs: bool = False
    python: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Options:
        """From the names and values of the fields, as JSON gives them."""
        flags = stored["units"], stored["sections"], tuple(stored["ignore"]), stored["inputs"]
        return cls(*flags, tuple(stored.get("python", ())))


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything known about a captured model."""

    captured: Captured
    options: Options
    labels: Labelling
    units: Units
    sections: tuple[Section, ...]
    terms: tuple[CostTerm, ...]
    inference: frozenset[fx.Node]

    @property
    def graph(self) -> fx.Graph:
        """Its nodes hold example values."""
        return self.captured.graph

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.captured.regions


@dataclass(frozen=True, slots=True)
class Work:
    """A network on its way from a model to gates. What is not known yet is None.

    `network`: what the graph is over, of which data do not matter. `source`: what is captured. `before`: what units the
    network had before it shrank, if it did. `joins`: where sections may end (None: anywhere).
    """

    name: str
    network: nn.Module
    options: Options
    source: Source = UNKNOWN
    captured: Captured = UNKNOWN
    before: UnitsBefore = field(default_factory=dict[str, Mapping[int, torch.Tensor]])
    joins: Container[fx.Node] | None = None
    flow: LabelFlow = UNKNOWN
    chains: tuple[Chain, ...] = UNKNOWN
    units: Units = UNKNOWN
    sections: tuple[Section, ...] = UNKNOWN
    inference: frozenset[fx.Node] = UNKNOWN
    terms: tuple[CostTerm, ...] = UNKNOWN
    gatings: Gatings = UNKNOWN

    @property
    def graph(self) -> fx.Graph:
        """Its nodes hold example values."""
        return self.captured.graph

    @property
    def analysis(self) -> Analysis:
        """What is known for good: the flow, which was for finding it, is no part of it."""
        known = self.flow.found(), self.units, self.sections, self.terms, self.inference
        return Analysis(self.captured, self.options, *known)
