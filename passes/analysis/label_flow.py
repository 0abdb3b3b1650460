"""The state of the label analysis: labels of values and parameters, and what is to be settled when all have some."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from fxcat.network.module_state import named_once
from fxcat.passes.analysis.labelling import Labelling, Names
from fxcat.passes.analysis.unions import Unions
from fxcat.passes.graph.label_arrays import Grid, Labels, compress, leaves, place
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.terms import Contraction


class Meeting(NamedTuple):
    """A node gets units from one value, and from another one, along the same axis, entries that are none."""

    node: fx.Node
    source: fx.Node
    axis: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """A value with units that is stretched over the units of another in one op, and has axes with units in common with
    it: which of them may go is settled when it is known along which axis the units of the other one lie."""

    labels: torch.Tensor
    other: torch.Tensor
    where: str
    reason: str = "broadcast over the units of another value"


@dataclass(slots=True)
class LabelFlow:
    """State of the label analysis; rules know it as a `Flow`. It is there from the first rule until gates have their
    places, and holds the network; what stays after that is `found`."""

    network: InitVar[nn.Module]
    values: dict[fx.Node, Labels] = field(default_factory=dict[fx.Node, Labels])
    parameters: dict[str, Mapping[int, torch.Tensor]] = field(default_factory=dict[str, Mapping[int, torch.Tensor]])
    rules: dict[fx.Node, Rule | None] = field(default_factory=dict[fx.Node, "Rule | None"])
    ones: Mapping[fx.Node, Any] = field(default_factory=dict[fx.Node, Any])
    """Values for a batch of one, where they are not the example values: costs are for one example."""
    contractions: dict[fx.Node, Contraction] = field(default_factory=dict[fx.Node, Contraction])
    outer: dict[fx.Node, torch.Tensor] = field(default_factory=dict[fx.Node, torch.Tensor])
    """Labels of contractions whose input has units along axes that they leave alone."""
    tied: Collection[fx.Node] = ()
    """Values with groups of channels folded into the batch, of which the same channels go in every group."""
    rivals: set[fx.Node] = field(default_factory=set[fx.Node])
    """Ops of a value that has units and a parameter with entries along an axis of its own: either has none then."""
    alone: Collection[fx.Node] = ()
    """Those of them in which the value has its units."""
    folded: set[fx.Node] = field(default_factory=set[fx.Node])
    """Values in which examples lie beside each other along the axis of the channels."""
    ties: dict[fx.Node, list[fx.Node]] = field(default_factory=dict[fx.Node, list[fx.Node]])
    """Other values that stand for a node's input at times."""
    repeats: dict[fx.Node, int] = field(default_factory=dict[fx.Node, int])
    """How often nodes run in one forward pass, where that is not once."""
    orders: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """Indices that `index_select` nodes of earlier rewrites use, by the name of their buffer."""
    stretches: list[Stretch] = field(default_factory=list["Stretch"])
    counted: dict[fx.Node, int] = field(default_factory=dict[fx.Node, int])
    """MACs of nodes without a rule, for one example."""
    weights: dict[fx.Node, Rule | None] = field(default_factory=dict[fx.Node, "Rule | None"])
    """Values whose labels are `Grid`s, with the rules of the ops that compute them (None for parameters)."""
    weight_axes: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict[str, "dict[int, torch.Tensor]"])
    """Labels along the axes of parameters among them; units only if a layer makes them such."""
    statistics: dict[fx.Node, list[torch.Tensor]] = field(default_factory=dict[fx.Node, "list[torch.Tensor]"])
    """Of functions of many entries of weights the labels along the axes that they run over."""
    tables: list[fx.Node] = field(default_factory=list[fx.Node])
    """Values made of nothing but numbers of channels: see `with_tables`."""
    meetings: list[Meeting] = field(default_factory=list["Meeting"])
    """Where values without units meet units."""
    doubtful: list[tuple[torch.Tensor, fx.Node | str, str]] = field(
        default_factory=list[tuple[torch.Tensor, "fx.Node | str", str]]
    )
    """What `freeze_if_units` was given."""
    unions: Unions = field(default_factory=Unions)
    """What goes together, so far."""
    names: Names = field(init=False)
    _lines: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    """By the id of the labels, which `values` keeps."""
    _modules: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])

    def __post_init__(self, network: nn.Module) -> None:
        self._modules.update(network.named_modules(remove_duplicate=False))
        self.names = Names.of(self._modules)

    @property
    def root(self) -> nn.Module:
        """The network, whose structure counts here, not its data."""
        return self._modules[""]

    @property
    def of_weights(self) -> Collection[fx.Node]:
        """Values whose labels are `Grid`s."""
        return self.weights.keys()

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The network's parameters, with their canonical names."""
        return named_once((path, module._parameters) for path, module in self._modules.items())

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return self._modules[str(node.target)]

    def found(self) -> Labelling:
        """What stays of it."""
        return Labelling(self.values, self.rules, self.ones, self.repeats, self.names)

    def fresh(self, count: int, owner: str, *, producer: bool = True) -> torch.Tensor:
        """`count` new labels, 1-D. Labels that no producer (a contraction) owns or joins are not units."""
        return self.unions.fresh(count, owner, producer=producer)

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """What `a` and `b` (broadcastable to each other) label at the same place goes together."""
        self.unions.unite(a, b)

    def freeze(self, labels: Labels, where: str | fx.Node, reason: str, *, besides: bool = False) -> None:
        """These labels are never removed."""
        self.unions.freeze(labels, where, reason, besides=besides)

    def has_producer(self, labels: torch.Tensor) -> bool:
        """Whether a producer owns some of these labels, and not parameters and buffers, which are read as values."""
        return self.unions.has_producer(labels)

    def has_units(self, labels: torch.Tensor) -> bool:
        """Whether there are units among labels, as far as is known by now."""
        return self.unions.has_units(labels)

    def settled(self, labels: torch.Tensor) -> torch.Tensor:
        """The same labels, of size 1 along every axis along which all goes together, as far as is known by now."""
        return compress(torch.from_numpy(self.unions.roots())[labels])

    def of(self, node: fx.Node) -> torch.Tensor:
        """Labels of a node whose value is one tensor."""
        labels = self.values[node]
        assert isinstance(labels, torch.Tensor), f"{node} is not a tensor"
        return labels

    def one(self, node: fx.Node) -> Any:
        """A node's value for a batch of one."""
        return self.ones[node] if node in self.ones else value_of(node)

    def axis(self, node: fx.Node, axis: int) -> torch.Tensor | None:
        """Labels along one axis, 1-D and full length; None if the value's labels vary along another axis too."""
        labels = self.of(node)
        return self.line(labels, value_of(node).shape[axis]) if labels.numel() == labels.shape[axis] else None

    def line(self, labels: torch.Tensor, size: int) -> torch.Tensor:
        """Labels of a value, varying along one axis at most, as 1-D and of its full size; again the same tensor."""
        found = self._lines.get(id(labels), labels)
        if found.shape != (size,):
            found = self._lines[id(labels)] = labels.reshape(-1).expand(size)
        return found

    def freeze_if_units(self, labels: torch.Tensor, where: fx.Node, reason: str) -> None:
        """The same, where only the rest of the graph tells whether they are units; only then it is reported."""
        self.doubtful.append((labels.reshape(-1), where, reason))

    def lines(self, node: fx.Node) -> list[torch.Tensor | None]:
        """Labels along each axis of a weight, 1-D and full length, None for axes without; what has units along several
        axes goes in whole slices along the first."""
        labels = self.values[node]
        found: list[torch.Tensor | None] = [None] * value_of(node).dim()
        for layer in labels.layers if isinstance(labels, Grid) else leaves(labels):
            axes = [a for a, size in enumerate(layer.shape) if size > 1]
            keep = next((a for a in axes if found[a] is None), None)
            if keep is None:
                if layer.numel() > 1:
                    self.freeze_if_units(layer, node, "units along an axis of a weight that has others")
                continue
            first = layer
            for axis in axes:
                first = first if axis == keep else first.narrow(axis, 0, 1)
            self.unite(layer, first)
            found[keep] = first.reshape(-1)
        return found

    def stretch(self, labels: torch.Tensor, other: torch.Tensor, node: fx.Node) -> None:
        """`labels` belong to a value that is stretched over the units of a value labelled `other`: it multiplies or
        shifts many of them at once, and is none of them; but along axes with units that both have it may be."""
        found = Stretch(labels, other, place(node))
        if any(a > 1 < b for a, b in zip(labels.shape, other.shape, strict=True)):
            self.stretches.append(found)
        else:
            self.freeze(labels, node, found.reason)

    def meet(self, node: fx.Node, source: fx.Node, axes: Sequence[int]) -> None:
        """`source` enters `node` without units along some axes of the result, along which others have units."""
        before = value_of(node).dim() - value_of(source).dim()
        self.meetings += [Meeting(node, source, axis - before) for axis in axes]

    def parameter_name(self, node: fx.Node, name: str) -> str:
        """Full, canonical name of a parameter or buffer of a node's module."""
        return self.names.of_module(node, name)

    def name_of(self, known: str) -> str:
        """The first name of a parameter or buffer that is known by some name: tied weights have several."""
        return self.names.canonical(known)

    def attribute_name(self, node: fx.Node) -> str:
        """Canonical name of the parameter or buffer that a get_attr node reads."""
        return self.names.read_by(node)

    def bind(self, node: fx.Node, name: str, axis: int, labels: torch.Tensor) -> None:
        """Axis `axis` of the module's parameter `name` carries `labels` (1-D); absent parameters are skipped."""
        module = self.module(node)
        if getattr(module, name) is None:
            return
        self.bind_axis(self.parameter_name(node, name), axis, labels)

    def bind_axis(self, name: str, axis: int, labels: torch.Tensor) -> None:
        """The same for a parameter by its canonical name."""
        axes = self.parameters.get(name, {})
        if axis in axes:
            self.unite(axes[axis], labels)
        else:
            self.parameters[name] = {**axes, axis: labels}  # `bind_all` may have given it to others

    def bind_all(self, node: fx.Node, names: Sequence[str], labels: torch.Tensor) -> None:
        """The only axis of all these parameters of the module carries `labels` (1-D); absent ones are skipped."""
        module, axes = self.module(node), {0: labels}
        for name in names:
            if getattr(module, name) is not None:
                known = self.parameters.setdefault(self.parameter_name(node, name), axes)
                if known is not axes:
                    self.bind(node, name, 0, labels)

    def bound(self, node: fx.Node, name: str, axis: int) -> torch.Tensor | None:
        """Labels bound to that axis by an earlier use of the same parameter."""
        return self.bound_axis(self.parameter_name(node, name), axis)

    def bound_axis(self, name: str, axis: int) -> torch.Tensor | None:
        """The same for a parameter by its canonical name."""
        return self.parameters.get(name, {}).get(axis)
