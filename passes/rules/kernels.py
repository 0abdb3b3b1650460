"""Kernels of convolutions: groups, labels along a kernel's axes, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import fx

from fxcat.passes.rules.contraction import per_slice
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.terms import Term


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
