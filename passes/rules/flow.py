"""What a rule may call: the state of the label analysis, as rules know it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.rules.terms import Contraction


class Flow(Protocol):
    """What is known of labels while rules run, node by node in the order of the graph; every method of a rule gets it.

    A rule asks `of`, `axis` and `lines` for the labels of its inputs, makes new ones by `fresh`, ties them to
    parameters by `bind` (a module's) or `bind_axis` (a function's), and says by `unite` and `freeze` what goes together
    and what stays. The other members serve the rules of fxcat.
    """

    values: dict[fx.Node, Labels]
    """Labels of every value so far."""
    parameters: dict[str, Mapping[int, torch.Tensor]]
    """Labels along the axes of parameters, by their canonical names."""
    contractions: dict[fx.Node, Contraction]
    outer: dict[fx.Node, torch.Tensor]
    """Labels of contractions whose input has units along axes that they leave alone."""
    rivals: set[fx.Node]
    """Ops of a value that has units and a parameter with entries along an axis of its own: either has none then."""
    alone: Collection[fx.Node]
    """Those of them in which the value has its units."""
    folded: set[fx.Node]
    """Values in which examples lie beside each other along the axis of the channels."""
    ties: dict[fx.Node, list[fx.Node]]
    """Other values that stand for a node's input at times."""
    orders: Mapping[str, torch.Tensor]
    """Indices that `index_select` nodes of earlier rewrites use, by the name of their buffer."""
    statistics: dict[fx.Node, list[torch.Tensor]]
    """Of functions of many entries of weights the labels along the axes that they run over."""
    tables: list[fx.Node]
    """Values made of nothing but numbers of channels."""

    @property
    def root(self) -> nn.Module:
        """The network, whose structure counts here, not its data."""
        ...

    @property
    def of_weights(self) -> Collection[fx.Node]:
        """Values that are computed from parameters alone."""
        ...

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        ...

    def fresh(self, count: int, owner: str, *, producer: bool = True) -> torch.Tensor:
        """`count` new labels, 1-D. Labels that no producer (a contraction) owns or joins are not units."""
        ...

    def of(self, node: fx.Node) -> torch.Tensor:
        """Labels of a node whose value is one tensor."""
        ...

    def one(self, node: fx.Node) -> Any:
        """A node's value for a batch of one."""
        ...

    def axis(self, node: fx.Node, axis: int) -> torch.Tensor | None:
        """Labels along one axis, 1-D and full length; None if the value's labels vary along another axis too."""
        ...

    def line(self, labels: torch.Tensor, size: int) -> torch.Tensor:
        """Labels of a value, varying along one axis at most, as 1-D and of its full size."""
        ...

    def lines(self, node: fx.Node) -> list[torch.Tensor | None]:
        """Labels along each axis of a weight, 1-D and full length, None for axes without."""
        ...

    def settled(self, labels: torch.Tensor) -> torch.Tensor:
        """The same labels, of size 1 along every axis along which all goes together, as far as is known by now."""
        ...

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """What `a` and `b` (broadcastable to each other) label at the same place goes together."""
        ...

    def stretch(self, labels: torch.Tensor, other: torch.Tensor, node: fx.Node) -> None:
        """`labels` belong to a value that is stretched over the units of a value labelled `other`."""
        ...

    def meet(self, node: fx.Node, source: fx.Node, axes: Sequence[int]) -> None:
        """A value without units meets units along axes."""
        ...

    def freeze(self, labels: Labels, where: str | fx.Node, reason: str, *, besides: bool = False) -> None:
        """These labels are never removed. `besides`: only to be told where that has no other reason."""
        ...

    def freeze_if_units(self, labels: torch.Tensor, where: fx.Node, reason: str) -> None:
        """The same, where only the rest of the graph tells whether they are units; only then it is reported."""
        ...

    def has_producer(self, labels: torch.Tensor) -> bool:
        """Whether a producer owns some of these labels, and not parameters and buffers, which are read as values."""
        ...

    def has_units(self, labels: torch.Tensor) -> bool:
        """Whether there are units among labels, as far as is known by now."""
        ...

    def parameter_name(self, node: fx.Node, name: str) -> str:
        """Full, canonical name of a parameter or buffer of a node's module."""
        ...

    def name_of(self, known: str) -> str:
        """The first name of a parameter or buffer that is known by some name: tied weights have several."""
        ...

    def attribute_name(self, node: fx.Node) -> str:
        """Canonical name of the parameter or buffer that a get_attr node reads."""
        ...

    def bind(self, node: fx.Node, name: str, axis: int, labels: torch.Tensor) -> None:
        """Axis `axis` of the module's parameter `name` carries `labels` (1-D); absent parameters are skipped."""
        ...

    def bind_axis(self, name: str, axis: int, labels: torch.Tensor) -> None:
        """The same for a parameter by its canonical name."""
        ...

    def bind_all(self, node: fx.Node, names: Sequence[str], labels: torch.Tensor) -> None:
        """The only axis of all these parameters of the module carries `labels` (1-D); absent ones are skipped."""
        ...

    def bound(self, node: fx.Node, name: str, axis: int) -> torch.Tensor | None:
        """Labels bound to that axis by an earlier use of the same parameter."""
        ...

    def bound_axis(self, name: str, axis: int) -> torch.Tensor | None:
        """The same for a parameter by its canonical name."""
        ...
