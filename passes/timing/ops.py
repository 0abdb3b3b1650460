"""The ops of an analysed graph that a runtime takes time for in inference, with what fuses into them.

A norm or activation that alone reads a value, and nothing else, belongs to the op that gives it. What is computed from
parameters and sizes alone is done before; a view of the same memory in the same order, and what does nothing in
inference, take no time.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxcat.errors import InputError
from fxcat.network.cost_model import Axis, Holding
from fxcat.network.latency import Instance, Kind, TimedOp
from fxcat.passes.analysis.costing import Axes, Context, own_tensors, parameter_axes, section_contexts
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.nodes.effects import FACTS
from fxcat.passes.nodes.examples import of_examples
from fxcat.passes.rules.batch_norm import BatchNorm, BatchNormFunction
from fxcat.passes.rules.boundary import region_input, region_output
from fxcat.passes.rules.creation import Creation
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.padding import Pad, pads_nothing
from fxcat.passes.timing.instances import Parts, Sizes, Width, build, run_alone
from fxcat.passes.work import Analysis

_OUTSIDE: Collection[Context] = ((),)
_MOST_AXES = 2


def timed_ops(analysis: Analysis, network: nn.Module, batch: int) -> tuple[TimedOp, ...]:
    """All of them, in the order of the graph. `network`: on the meta device, without gates. `batch`: examples in a
    run.

    Raises `InputError` if the network does not take so many."""
    finder = _Finder(analysis, network, batch)
    return tuple(finder.op(chain) for chain in finder.chains())


class _Finder:
    def __init__(self, analysis: Analysis, network: nn.Module, batch: int) -> None:
        self._analysis, self._network = analysis, network
        self._axes = Axes(analysis.units)
        self._products = {term.owner for term in analysis.terms if term.macs}
        self._of_one: dict[tuple[int, int], Axis | None] = {}
        self._values = _values(analysis, network, batch)
        self._constants = _known_before(analysis, network)
        self._contexts = section_contexts(analysis.sections, analysis.inference)
        self._joined = {s.join: i for i, s in enumerate(analysis.sections)}

    def chains(self) -> Iterator[tuple[fx.Node, ...]]:
        """The nodes of every op."""
        inside: set[fx.Node] = set()
        for node in self._analysis.graph.nodes:
            if node in inside or not self._takes_time(node):
                continue
            chain = [node]
            while (following := self._fused(chain[-1])) is not None:
                chain.append(following)
            inside.update(chain)
            yield tuple(chain)

    def op(self, chain: tuple[fx.Node, ...]) -> TimedOp:
        """What is known of a chain."""
        parts = self._parts(chain)
        found: dict[int, Axis] = {}
        groups = [parts.entries.values(), parts.constants.values(), *(t.values() for t in parts.tensors.values())]
        for sizes in (s for group in groups for s in group):
            found |= {id(size.axis): size.axis for size in sizes if isinstance(size, Width)}
        axes = tuple(found.values())
        together = len(axes) > _MOST_AXES
        asked = (max(axes, key=lambda a: a.width),) if together else axes
        first = chain[0]
        return TimedOp(
            _key(chain, parts, axes, self._network),
            str(first.target) if first.op == "call_module" else first.name,
            asked,
            Holding.of_uses(self._uses(first)),
            self._analysis.labels.repeats.get(first, 1),
            self._kind(chain),
            partial(_built, parts, self._network, axes, asked),
        )

    def _uses(self, node: fx.Node) -> Collection[Context]:
        """The sections with which a node goes; the sum at the end of one goes too."""
        uses = self._contexts.get(node, _OUTSIDE)
        section = self._joined.get(node)
        return uses if section is None else [(*use, section) for use in uses]

    def _takes_time(self, node: fx.Node) -> bool:
        if node not in self._analysis.inference or node in self._constants or not node.op.startswith("call"):
            return False
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            return value.numel() > 0 and not self._is_view(node) and not self._does_nothing(node)
        return isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value)

    def _is_view(self, node: fx.Node) -> bool:
        """Whether a value is a part of a tuple, or has the elements of the one tensor it is made of in their order:
        what is not contiguous before was copied, which counts."""
        sources = [i for i in node.all_input_nodes if not isinstance(VALUE.get(i), int | float | bool)]
        if len(sources) != 1:
            return False
        before, value = self._value(sources[0]), self._value(node)
        if not isinstance(before, torch.Tensor):
            return node.target is operator.getitem
        rule = self._analysis.labels.rules.get(node)
        if rule is None or not rule.movement or before.numel() != value.numel():
            return False
        places = torch.arange(before.numel(), dtype=torch.int32)
        moved = run_alone(node, self._network, self._values, {sources[0]: places.reshape(before.shape)})
        return isinstance(moved, torch.Tensor) and torch.equal(moved.reshape(-1), places)

    def _value(self, node: fx.Node) -> Any:
        """A node's value for the examples of a run."""
        return self._values[node] if node in self._values else value_of(node)

    def _does_nothing(self, node: fx.Node) -> bool:
        """Whether a node gives what it is given, in inference."""
        rule = self._analysis.labels.rules.get(node)
        if isinstance(rule, Pad):
            return pads_nothing(node)
        module = self._network.get_submodule(str(node.target)) if node.op == "call_module" else None
        return rule is not None and rule.returns_input(node, module, False)

    def _kind(self, chain: Sequence[fx.Node]) -> Kind:
        if any(node.name in self._products for node in chain):
            return "product"
        return "passing" if all(self._passes_on(node) for node in chain) else "value"

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether a node only joins, scales or moves values."""
        rule = self._analysis.labels.rules.get(node)
        return rule is not None and (rule.movement or isinstance(rule, Elementwise | Pad))

    def _fused(self, node: fx.Node) -> fx.Node | None:
        """What reads the value of a node alone, and fuses into it."""
        users = [u for u in node.users if u in self._analysis.inference or u.op == "output"]
        if len(users) != 1 or users[0] not in self._analysis.inference or self._joins_values(node):
            return None
        user = users[0]
        norm = isinstance(self._analysis.labels.rules.get(user), BatchNorm | BatchNormFunction | Elementwise)
        alone = [i for i in user.all_input_nodes if i not in self._constants] == [node]
        alone = alone and list(user.all_input_nodes).count(node) == 1 and user not in self._joined
        same = value_of(user).shape == value_of(node).shape if _is_tensor(user) and _is_tensor(node) else False
        return user if norm and alone and same and self._uses(user) == self._uses(node) else None

    def _joins_values(self, node: fx.Node) -> bool:
        """Whether a node is a sum or product of several values: what follows stays when a section that ends there goes,
        and is an op of its own whether there are sections or not."""
        rule = self._analysis.labels.rules.get(node)
        return isinstance(rule, Elementwise) and sum(map(_is_tensor, node.all_input_nodes)) > 1

    def _parts(self, chain: tuple[fx.Node, ...]) -> Parts:
        entries: dict[fx.Node, Sizes] = {}
        constants: dict[fx.Node, Sizes] = {}
        tensors: dict[fx.Node, Mapping[str, Sizes]] = {}
        results = {node: self._sizes(node) for node in chain if _is_tensor(node)}
        for node in chain:
            for source in node.all_input_nodes:
                if source not in chain and _is_tensor(source):
                    (constants if source in self._constants else entries)[source] = self._sizes(source)
            if node.op == "call_module":
                tensors[node] = self._of_module(node)
        return Parts(chain, entries, constants, tensors, results, self._analysis.labels.rules, self._values)

    def _sizes(self, node: fx.Node) -> Sizes:
        known = self._analysis.labels
        shape = self._value(node).shape
        if node.op == "get_attr":
            return self._of_tensor(known.names.read_by(node), shape)
        sizes: list[int | Width] = list(shape)
        labels = known.values.get(node)
        if isinstance(labels, torch.Tensor):
            one = known.one(node).shape
            for axis, size in enumerate(labels.shape):
                if size > 1:
                    line = labels[tuple(slice(None) if a == axis else 0 for a in range(labels.dim()))]
                    sizes[axis] = self._counted(line, one[axis], shape[axis])
        return tuple(sizes)

    def _of_module(self, node: fx.Node) -> dict[str, Sizes]:
        module = self._network.get_submodule(str(node.target))
        found: dict[str, Sizes] = {}
        for name in own_tensors(module, buffers=True):
            path, _, leaf = name.rpartition(".")
            full = self._analysis.labels.names.canonical(f"{node.target}.{name}")
            found[name] = self._of_tensor(full, getattr(module.get_submodule(path), leaf).shape)
        return found

    def _of_tensor(self, name: str, shape: torch.Size) -> Sizes:
        """Of a parameter or buffer of the network."""
        sizes: list[int | Width] = list(shape)
        for axis, labels in parameter_axes(name, self._analysis.units).items():
            sizes[axis] = self._counted(labels, shape[axis], shape[axis])
        return tuple(sizes)

    def _counted(self, labels: torch.Tensor, one: int, size: int) -> int | Width:
        """What varies of an axis: nothing if it has at most one unit, which goes as a whole or not at all. `labels`: of
        the example value; `one`, `size`: of the axis for one example, and for those of a run."""
        found = self._axes.of(labels.contiguous())
        starts, stops, _ = found.runs
        if (stops - starts).sum() <= 1 or found.width != len(labels) or len(labels) % one or size % one:
            return size
        axis = self._for_one(found, len(labels) // one)
        return size if axis is None else Width(axis, size // one)

    def _for_one(self, axis: Axis, examples: int) -> Axis | None:
        """An axis that holds entries of so many examples, for one of them; None if not all have the same."""
        if examples == 1:
            return axis
        key = id(axis), examples
        if key not in self._of_one:
            starts, stops, weights = axis.runs
            fits = axis.constant % examples == 0 and not (weights % examples).any()
            runs = np.stack([starts, stops, weights // examples])
            self._of_one[key] = Axis(axis.constant // examples, runs) if fits else None
        return self._of_one[key]


def _values(analysis: Analysis, network: nn.Module, batch: int) -> Mapping[fx.Node, Any]:
    """Values of nodes for so many examples, where these are not their example values."""
    if batch == 1:
        return analysis.labels.ones
    found = of_examples(analysis.graph, network, analysis.captured.batch, batch)
    if found is None:
        raise InputError(
            f"the network does not run with {batch} examples",
            where=analysis.captured.name,
            remedy="give batch=1, or inputs whose first axis is the batch to prepare()",
        )
    return found


def _known_before(analysis: Analysis, network: nn.Module) -> set[fx.Node]:
    """Nodes whose values a runtime knows before it runs: parameters, buffers, what is made of sizes, and what is
    computed from these alone, the same for any number of examples."""
    found: set[fx.Node] = set()
    batch = analysis.captured.batch
    varying = of_examples(analysis.graph, network, batch, 2 * batch) or analysis.labels.ones
    for node in analysis.graph.nodes:
        inputs = [i for i in node.all_input_nodes if not isinstance(VALUE.get(i), FACTS)]
        made = node.op in ("call_function", "call_method") and node.target not in (region_input, region_output)
        new = isinstance(analysis.labels.rules.get(node), Creation) and node.target not in (torch.rand, torch.randn)
        same = node not in varying and not any(i in varying for i in node.all_input_nodes if i not in inputs)
        if node.op == "get_attr" or (made and same and all(i in found or new for i in inputs)):
            found.add(node)
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(VALUE.get(node), torch.Tensor)


def _built(
    parts: Parts, network: nn.Module, axes: Sequence[Axis], asked: Sequence[Axis], widths: Sequence[int]
) -> Instance | None:
    """The op at widths of the axes that were asked for; others scale with these."""
    given = dict(zip(map(id, asked), widths, strict=True))
    share = widths[0] / asked[0].width if asked else 1.0
    every = {id(axis): given.get(id(axis), max(1, round(axis.width * share))) for axis in axes}
    try:
        return build(parts, network, every)
    except Exception:  # whatever an op has against sizes that its arguments do not state
        return None


def _key(chain: Sequence[fx.Node], parts: Parts, axes: Sequence[Axis], network: nn.Module) -> str:
    """What the op is, in words: its nodes with their arguments, and the sizes of what enters, letters where they
    vary."""
    letters = {id(axis): f"{'abcdefgh'[min(i, 7)]}={axis.width}" for i, axis in enumerate(axes)}
    shown = {n: _shown(sizes, letters) for n, sizes in (*parts.entries.items(), *parts.constants.items())}
    texts: list[str] = []
    for node in chain:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            held = [_shown(s, letters) for s in parts.tensors[node].values() if any(isinstance(x, Width) for x in s)]
            name = f"{type(module).__name__}({module.extra_repr()}){' '.join(held[:1])}"
        else:
            name = str(getattr(node.target, "__name__", node.target))
        given = [_argument(a, shown, parts) for a in node.args]
        given += [f"{k}={_argument(v, shown, parts)}" for k, v in node.kwargs.items()]
        texts.append(f"{name}({', '.join(given)})")
    return " → ".join(texts)


def _shown(sizes: Sizes, letters: Mapping[int, str]) -> str:
    return f"[{', '.join(_size(s, letters) for s in sizes)}]"


def _size(size: int | Width, letters: Mapping[int, str]) -> str:
    if not isinstance(size, Width):
        return str(size)
    return letters[id(size.axis)] if size.times == 1 else f"{size.times}·{letters[id(size.axis)]}"


def _argument(argument: Any, shown: Mapping[fx.Node, str], parts: Parts) -> str:
    if isinstance(argument, fx.Node):
        return shown.get(argument, "·" if _is_tensor(argument) else str(parts.value(argument)))
    if isinstance(argument, tuple | list):
        return f"({', '.join(_argument(a, shown, parts) for a in argument)})"  # pyright: ignore[reportUnknownVariableType]
    return str(argument)
