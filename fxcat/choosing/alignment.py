"""Where widths are kept to multiples without being asked, since with others the network would be slower than before.

Inference libraries compute channels in blocks. ONNX Runtime (`onnxruntime/core/optimizer/nchwc_transformer.cc`) takes
its blocked kernels for a convolution of several groups only if its channels are a multiple of the block, for another
one if its input channels are: 8 with AVX2, 16 with AVX-512. What is left over is unrolled into a matrix product; for a
depthwise convolution, which does little else than read and write, that costs more than pruning saves.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fxcat.choosing.widths import group_widths
from fxcat.network.gated_network import GatedNetwork
from fxcat.network.limits import GateLimits

BLOCK = 8
"""Channels of a block."""


def limits_with_blocks(net: GatedNetwork) -> GateLimits:
    """The network's limits, and multiples of `BLOCK` channels for every group that has two blocks or more, unless its
    limits say a multiple."""
    wide = [w.units * w.channels >= 2 * BLOCK for w in group_widths(net)]
    groups = tuple(
        replace(limits, multiple_of=BLOCK) if limits.multiple_of is None and is_wide else limits
        for limits, is_wide in zip(net.limits.groups, wide, strict=True)
    )
    return replace(net.limits, groups=groups)


def note_of_blocks(net: GatedNetwork) -> str:
    """What `prepare` says of that."""
    aligned = sum(limits.multiple_of == BLOCK for limits in net.limits.groups)
    return (
        f"  widths: multiples of {BLOCK} channels in {aligned} groups, since grouped convolutions are slow at others "
        "(round_to=1: any)"
    )


def beside_blocks(net: GatedNetwork, setting: torch.Tensor) -> int:
    """In how many groups a 0/1 setting, shape (gates,), leaves a number of channels that is no multiple of `BLOCK`
    where there was one."""
    found = 0
    for width in group_widths(net):
        left = int(setting[width.start : width.start + width.units].sum())
        found += not width.units * width.channels % BLOCK and bool(left * width.channels % BLOCK)
    return found
