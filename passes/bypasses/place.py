"""Where bypasses go: residual connections round the nonlinear sections of a network that has none there.

In: a captured graph. Out: `Bypasses`: what is put round which section and what it costs, and what is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import fx, nn

from fxcat.passes.analysis.costing import full_macs
from fxcat.passes.analysis.flow_labels import describe, flow_labels
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.sections import find_sections
from fxcat.passes.bypasses.stretches import Stretch, find_stretches
from fxcat.passes.bypasses.windows import Window, is_convolution
from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.batch_norm import BatchNorm, BatchNormFunction, FrozenBatchNorm

Kind = Literal["identity", "pooling", "projection"]


@dataclass(frozen=True, slots=True)
class Bypass:
    """A residual connection round one nonlinear section.

    `name`: the section's first layer. `modules`: what the section holds, in order: paths of modules, names of
    functions. `entering`, `leaving`: shapes of one example. `kind`: what is added to the section's result: its input;
    that, averaged to the result's positions; or that, mapped to the result's channels. `is_normalized`: whether batch
    normalization follows a projection, as it does in a section that has it. `macs`, `params`: of the bypass;
    `section_macs`: of what it bypasses; both for one example.
    """

    name: str
    modules: tuple[str, ...]
    entering: tuple[int, ...]
    leaving: tuple[int, ...]
    kind: Kind
    is_normalized: bool
    macs: int
    params: int
    section_macs: int
    stretch: Stretch = field(repr=False)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of the average poolings of the bypass, in order."""
        return tuple(w for w in self.stretch.windows if not w.keeps_size)


@dataclass(frozen=True, slots=True)
class Unbypassed:
    """A layer round which no bypass goes, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bypasses:
    """Of a whole network, in the order of its layers: what was found, and which layers are left alone."""

    found: tuple[Bypass, ...]
    left: tuple[Unbypassed, ...]

    def describe(self, most: int | None = None) -> str:
        """A line for each bypass and for each layer without one, of which there are at most so many."""
        lines = [
            f"  {b.name}: {b.kind}, {_shape(b.entering)} to {_shape(b.leaving)}, {b.macs:,} MACs and {b.params:,} "
            f"parameters round {b.section_macs:,} MACs ({', '.join(b.modules)})"
            for b in self.found
        ]
        lines += [f"  none: {u.name}: {u.reason}" for u in self.left[:most]]
        if most is not None and len(self.left) > most:
            lines.append(f"  … and {len(self.left) - most} more: see fxcat.find_bypasses")
        return "\n".join([f"fxcat: {len(self.found)} bypasses", *lines])

    def __str__(self) -> str:
        return self.describe()


def place_bypasses(captured: Captured, network: nn.Module, ignore: Sequence[str]) -> Bypasses:
    """Find where bypasses go in a captured model. `network`: a copy of it, whose data do not matter.

    `ignore`: paths of modules that get none.
    """
    graph = captured.graph
    flow = flow_labels(graph, network, captured.batch, (), captured.orders)
    weight = full_macs(flow)
    stretches, unfit = find_stretches(graph, flow)
    bypassed = frozenset(n for s in find_sections(graph, weight) for part in s.parts for n in part.nodes)
    found: list[Bypass] = []
    left = [(u.layer, u.reason) for u in unfit if u.layer not in bypassed]
    for stretch in stretches:
        if stretch.nodes & bypassed:
            continue
        result = _bypass(flow, stretch, sum(weight.get(n, 0) for n in stretch.nodes))
        if isinstance(result, Bypass) and _is_ignored(result, ignore):
            result = "listed in ignore="
        if isinstance(result, Bypass):
            found.append(result)
        else:
            left.append((stretch.layers[0], result))
    order = {node: i for i, node in enumerate(graph.nodes)}
    left.sort(key=lambda item: order[item[0]])
    return Bypasses(tuple(found), tuple(Unbypassed(_layer_name(n), reason) for n, reason in left))


def _bypass(flow: LabelFlow, stretch: Stretch, section_macs: int) -> Bypass | str:
    """The bypass of a stretch, or why there is none."""
    entering, leaving = value_of(stretch.entry), value_of(stretch.exit)
    axis = 1 if is_convolution(flow.rules[stretch.layers[0]]) else -1
    before, after = entering.shape[axis], leaving.shape[axis]
    pooled = [w for w in stretch.windows if not w.keeps_size]
    if any(not w.has_pooling for w in pooled):
        return "its padding is wider than half of its window, for which there is no pooling"
    macs = params = 0
    kind: Kind = "pooling" if pooled else "identity"
    is_normalized = before != after and axis % leaving.dim() == 1 and _has_batch_norm(flow, stretch.nodes)
    if before != after:
        kind, params = "projection", before * after
        macs = flow.one(stretch.exit).numel() // after * params
        if macs >= section_macs:
            return f"a projection would cost as much as it does ({macs:,} MACs instead of {section_macs:,})"
    shapes = tuple(entering.shape[1:]), tuple(leaving.shape[1:])
    names = _names(flow, stretch.nodes)
    params += 2 * after * is_normalized
    name = _layer_name(stretch.layers[0])
    return Bypass(name, names, *shapes, kind, is_normalized, macs, params, section_macs, stretch)


def _has_batch_norm(flow: LabelFlow, nodes: Iterable[fx.Node]) -> bool:
    """Whether one of them normalizes by statistics, as a module or as a function."""
    rules = [flow.rules.get(n) for n in nodes]
    return any(isinstance(r, BatchNorm | BatchNormFunction) and not isinstance(r, FrozenBatchNorm) for r in rules)


def _names(flow: LabelFlow, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    inside = frozenset(nodes)
    ordered = [n for n in next(iter(inside)).graph.nodes if n in inside]
    return tuple(str(n.target) if n.op == "call_module" else describe(flow, n) for n in ordered)


def _layer_name(layer: fx.Node) -> str:
    """Of a module its path; of a function that of its weight, if it is a parameter."""
    if layer.op == "call_module":
        return str(layer.target)
    weight = arguments(layer, "input", "weight").get("weight")
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return place(layer)


def _is_ignored(bypass: Bypass, ignore: Sequence[str]) -> bool:
    paths = [bypass.name, *bypass.modules]
    return any(path == i or path.startswith(i + ".") for path in paths for i in ignore)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
