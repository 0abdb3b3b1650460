"""What was found in a network, and what the compiler does for one with gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import networkx as nx
import torch
from torch import nn

from fxcat.network.cost_model import CostModel, CostTerm, cost_graph
from fxcat.network.latency import TimedOp
from fxcat.network.origin import Left
from fxcat.records import Cost, Group, Pinned, SectionInfo


@dataclass(frozen=True, slots=True)
class GatePart:
    """A named part of the gate vector."""

    name: str
    kind: Literal["units", "section"]
    count: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What was found.

    `required`: sets of units of which one each must stay: numbers of the set, ascending, and of a unit in it, shape
    (2, members), int32. `coverage`: share of the MACs in ops with at least one prunable axis or inside a section.
    `edges`: names of ops, and of the ops that read their results.
    """

    groups: tuple[Group, ...]
    sections: tuple[SectionInfo, ...]
    pinned: tuple[Pinned, ...]
    cost: Cost[int]
    required: torch.Tensor
    coverage: float
    terms: tuple[CostTerm, ...]
    edges: tuple[tuple[str, ...], tuple[str, ...]]
    activation_bytes: Mapping[str, int]

    @property
    def costs(self) -> nx.DiGraph[str]:
        """The cost graph: a node per op and per parameter, with `macs`, `params` and `activation_bytes` (of its result,
        for one example) at full width, and its `terms`."""
        return cost_graph(self.terms, self.edges, self.activation_bytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Structure:
        return self


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer of weight and bias, affine in its input, that reads units which close.

    `path`: of its module. `axis`: of the channels, from the end, in what it reads and in what it gives. `closed`: which
    of those that it reads close; `open`: which of its own stay; bool, 1-D. `norm`: path of the batch normalisation that
    alone takes its result, if it has running statistics and is called nowhere else.
    """

    path: str
    axis: int
    closed: torch.Tensor
    open: torch.Tensor
    norm: str | None


class Program(Protocol):
    """What the compiler does for a `GatedModule` (implemented in `fxcat.passes`)."""

    def install(self, network: nn.Module) -> None:
        """Make the graph with gates the network's `forward`."""
        ...

    def finalized(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> nn.Module:
        """A copy of the network without gates and without what is 0. The network is not changed."""
        ...

    def left(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Left:
        """What `finalized` would leave of its tensors. The network is not changed."""
        ...

    def layers(self) -> frozenset[str]:
        """Paths of the modules that only generated code may call."""
        ...

    def shrunk(self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor) -> Shrunk:
        """Remove what is 0 from the network, in place. On an error nothing is changed."""
        ...

    def shapes_after(self, network: nn.Module, closed: Sequence[Sequence[int]]) -> Mapping[str, torch.Size]:
        """Those of the state that would be left, by name, if gates with these numbers were closed, shrink after shrink.
        The network is not changed."""
        ...

    def consumers(
        self, network: nn.Module, units: torch.Tensor, sections: torch.Tensor
    ) -> tuple[tuple[Consumer, ...], tuple[Pinned, ...]]:
        """The layers that read what a setting closes, and the other places where it meets what stays."""
        ...

    def with_biases(self, network: nn.Module, paths: Sequence[str]) -> tuple[Program, CostModel, Structure]:
        """Give layers without a bias one that is zero, in place."""
        ...

    def renewed(self, network: nn.Module) -> tuple[Program, CostModel, Structure]:
        """The same for modules of which some are others than before. Raises `InputError` if the gates would be others;
        then nothing has changed."""
        ...

    def has_grouped_convolutions(self, network: nn.Module) -> bool:
        """Whether there are depthwise convolutions, or others of several groups, as modules or as functions."""
        ...

    def timed_ops(self, network: nn.Module, batch: int) -> tuple[TimedOp, ...]:
        """What a runtime takes time for, with so many examples in a run. The network is not changed."""
        ...

    def unit_axes(self, network: nn.Module) -> Mapping[str, Mapping[int, torch.Tensor]]:
        """Per parameter or buffer, for every axis that carries units: the unit number of each index, −1 for none."""
        ...


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A network after a shrink: `keep` per parameter axis, and for new units and sections their old numbers."""

    program: Program
    parts: tuple[GatePart, ...]
    cost_model: CostModel
    structure: Structure
    keep: Mapping[str, Mapping[int, torch.Tensor]]
    unit_origin: torch.Tensor
    section_origin: torch.Tensor

    def gate_origin(self, units: int) -> torch.Tensor:
        """For every gate that is left its old number; there were so many `units`."""
        return torch.cat([self.unit_origin, self.section_origin + units])
