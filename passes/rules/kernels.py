"""Kernels of convolutions: groups, labels along a kernel's axes, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import Labels, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.contraction import (
    per_slice,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.terms import Contraction, Term


class Sizes(NamedTuple):
    """Groups of a convolution, input channels per group, output channels per group."""

    groups: int
    entering: int
    leaving: int

    @property
    def whole(self) -> bool:
        """Whether groups are units, and not the positions inside every group: whichever gives more units."""
        return self.groups > 1 and self.groups >= max(self.entering, self.leaving)


def bind_kernel(flow: Flow, name: str, owner: str, sizes: Sizes, entering: torch.Tensor) -> torch.Tensor:
    """Bind the axes of a convolution's weight, known by its canonical name. Returns labels of the output's channels."""
    return kernel_labels(flow, owner, sizes, entering, flow.bound_axis(name, 0), partial(flow.bind_axis, name))


def kernel_labels(
    flow: Flow,
    owner: str,
    sizes: Sizes,
    entering: torch.Tensor,
    out: torch.Tensor | None,
    bind: Callable[[int, torch.Tensor], None],
) -> torch.Tensor:
    """Labels of a convolution's output channels: `out`, or new ones. `bind` is told those of the weight's axes."""
    if sizes.groups == 1:
        bind(1, entering)
        out = flow.fresh(sizes.leaving, owner) if out is None else out
    else:
        blocks = entering.reshape(sizes.groups, sizes.entering)
        flow.unite(blocks, blocks[:, :1] if sizes.whole else blocks[:1])
        if sizes.whole:
            out = blocks[:, 0].repeat_interleave(sizes.leaving)
        else:
            bind(1, blocks[0])
            out = flow.fresh(sizes.leaving, owner).repeat(sizes.groups) if out is None else out
    bind(0, out)
    return out


def kernel_macs(
    flow: Flow, node: fx.Node, sizes: Sizes, kernel: int, entering: torch.Tensor | None, out: torch.Tensor
) -> tuple[Term, ...]:
    """Multiply-adds of a convolution. `kernel`: its area; `entering`, `out`: labels of the weight's axes."""
    positions = flow.one(node).numel() // (sizes.groups * sizes.leaving)
    if sizes.whole:
        return per_slice(
            flow, node, Term(positions * kernel * sizes.entering * sizes.leaving, (out[:: sizes.leaving],))
        )
    assert entering is not None
    return per_slice(flow, node, Term(positions * kernel, (entering, out)))


def is_of_batch(number: object) -> bool:
    """Whether a number is computed from the first size of a value: from that of the batch."""
    if not isinstance(number, fx.Node):
        return False
    sources = number.all_input_nodes
    if any(isinstance(value_of(s), torch.Tensor | torch.Size) for s in sources):
        return any(type(a) is int and a == 0 for a in (*number.args, *number.kwargs.values()))
    return any(is_of_batch(source) for source in sources)


def convolved_one_by_one(flow: Flow, node: fx.Node) -> Labels:
    """Every example has a kernel of its own, and the batch lies along the axis of the channels: none of them goes."""
    for source in node.all_input_nodes:
        flow.freeze(flow.values[source], node, "a convolution with as many groups as there are examples")
    flow.contractions[node] = Contraction(None, (), ())
    return frozen((1,) * value_of(node).dim())
