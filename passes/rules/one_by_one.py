"""Convolutions in which every example has kernels of its own: examples lie beside each other along the channels.

`conv2d(x.view(1, batch * channels, h, w), kernels.view(batch * out, channels, k, k), groups=batch)`, as StyleGAN2 and
CondConv have it, and `conv_transpose2d` likewise. Units are those of one example; a gate is put before the examples are
laid beside each other, or behind where they are apart again, since none there would fit another batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import VALUE, path_of, value_of
from fxcat.passes.rules.base import Zero
from fxcat.passes.rules.contraction import consumed, unite_bias
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.kernels import Sizes, kernel_labels, kernel_macs
from fxcat.passes.rules.movement import Axes, Copy, Reshape, Reshaping
from fxcat.passes.rules.padding import Pad
from fxcat.passes.rules.table import find_rule
from fxcat.passes.rules.terms import Contraction, Term


def is_of_batch(number: object) -> bool:
    """Whether a number is computed from the first size of a value: from that of the batch."""
    if not isinstance(number, fx.Node):
        return False
    sources = number.all_input_nodes
    if any(isinstance(value_of(s), torch.Tensor | torch.Size) for s in sources):
        return any(type(a) is int and a == 0 for a in (*number.args, *number.kwargs.values()))
    return any(is_of_batch(source) for source in sources)


def sizes_of_one(flow: Flow, groups: fx.Node, weight: fx.Node, transposed: bool) -> Sizes:
    """Groups of the convolution of one example, and the channels of a group."""
    rows, columns = value_of(weight).shape[:2]
    rows //= value_of(groups)
    return Sizes(flow.one(groups), *((rows, columns) if transposed else (columns, rows)))


def convolved_one_by_one(flow: Flow, node: fx.Node, given: dict[str, Any], *, transposed: bool = False) -> Labels:
    """Labels of the result, which has those of one example for every example. `transposed`: the kernels have their
    input channels along the first axis, beside each other for the examples, and their output channels along the next.
    """
    weight, groups = given["weight"], given["groups"]
    source = _before_folding(given["input"])
    apart = _unfolding(node)
    if source is None or apart is None or not isinstance(flow.values[weight], Grid):
        return frozen_one_by_one(flow, node)
    sizes = sizes_of_one(flow, groups, weight, transposed)
    if transposed and sizes.groups > 1:
        return frozen_one_by_one(flow, node)
    examples = value_of(groups) // sizes.groups
    _keep_longer_side(flow, weight, sizes, transposed)
    lines = flow.lines(weight)
    entering, outer = consumed(flow, node, 1)
    if outer is not None:
        return frozen_one_by_one(flow, node)
    entering = _of_each(flow, entering, examples)

    def bind(axis: int, labels: torch.Tensor) -> None:
        own = 1 - axis if transposed else axis
        line = lines[own]
        if line is None:
            flow.freeze(labels, node, f"kernels whose {'input' if axis else 'output'} channels share an axis")
        else:
            flow.unite(labels, line if own else _of_each(flow, line, examples))

    out = kernel_labels(flow, path_of(node), sizes, entering, None, bind)
    unite_bias(flow, out.repeat(examples), given.get("bias"))
    kernel = math.prod(value_of(weight).shape[2:])
    if transposed:
        positions = flow.one(given["input"]).numel() // sizes.entering
        terms: tuple[Term, ...] = (Term(positions * kernel, (entering, out)),)
    else:
        terms = kernel_macs(flow, node, sizes, kernel, entering[: sizes.entering], out)
    flow.contractions[node] = Contraction(terms, (source,), ())
    flow.folded.update((node, *apart))
    return along(out.repeat(examples), 1, value_of(node).dim())


def _keep_longer_side(flow: Flow, weight: fx.Node, sizes: Sizes, transposed: bool) -> None:
    """Kernels that are rows of a matrix have input and output channels along one axis of it, where an entry can only be
    of one unit: of those that are more."""
    grid = flow.values[weight]
    assert isinstance(grid, Grid)
    kept = int(sizes.groups == 1 and (sizes.entering > sizes.leaving) is not transposed)
    found: list[torch.Tensor] = []
    for layer in grid.layers:
        first = layer
        if layer.shape[0] > 1 < layer.shape[1]:
            for axis in range(layer.dim()):
                first = first if axis == kept else first.narrow(axis, 0, 1)
            flow.unite(layer, first)
        found.append(first)
    flow.values[weight] = Grid(tuple(found))


def _of_each(flow: Flow, labels: torch.Tensor, examples: int) -> torch.Tensor:
    """Labels along an axis that has the same for every example, of one of them."""
    rows = labels.reshape(examples, -1)
    flow.unite(rows, rows[:1])
    return rows[0]


def frozen_one_by_one(flow: Flow, node: fx.Node) -> Labels:
    """Labels where the forms around such a convolution are others than those that are known."""
    for source in node.all_input_nodes:
        flow.freeze(flow.values[source], node, "a convolution with as many groups as there are examples")
    flow.contractions[node] = Contraction(None, (), ())
    return frozen((1,) * value_of(node).dim())


def _before_folding(source: Any) -> fx.Node | None:
    """The value whose examples are laid beside each other, and perhaps padded, for a convolution."""
    while isinstance(source, fx.Node):
        rule = find_rule(source, None) if source.op in ("call_function", "call_method") else None
        inputs = [n for n in source.all_input_nodes if isinstance(VALUE.get(n), torch.Tensor)]
        padded = isinstance(rule, Pad) and rule.zero_at(source) is not Zero.BREAKS
        if len(inputs) != 1 or not (padded or isinstance(rule, Copy | Reshaping)):
            return None
        source = inputs[0]
        if isinstance(rule, Reshaping):
            return source
    return None


def _unfolding(node: fx.Node) -> list[fx.Node] | None:
    """What comes between a value and where its examples are apart again; None if anything else reads it before."""
    between: list[fx.Node] = []
    for user in node.users:
        if not isinstance(VALUE.get(user), torch.Tensor):
            continue  # its sizes
        rule = find_rule(user, None) if user.op in ("call_function", "call_method") else None
        if isinstance(rule, Axes | Copy):
            further = _unfolding(user)
            if further is None:
                return None
            between += [user, *further]
        elif not isinstance(rule, Reshape) or not _takes_apart(user):
            return None
    return between


def _takes_apart(node: fx.Node) -> bool:
    """Whether a view gives the batch an axis of its own, the first, and the channels the next."""
    given: Any = node.kwargs.get("shape", node.args[1] if len(node.args) == 2 else node.args[1:])
    sizes = given if isinstance(given, tuple | list) else ()
    return len(sizes) > 1 and (is_of_batch(sizes[0]) or _is_of_model(sizes[1]))


def _is_of_model(size: object) -> bool:
    """Whether a size is a number that the model states, or that of its parameters."""
    if not isinstance(size, fx.Node):
        return isinstance(size, int) and size > 0
    if isinstance(value_of(size), torch.Tensor):
        return size.op == "get_attr"
    return bool(size.all_input_nodes) and all(map(_is_of_model, size.all_input_nodes))
