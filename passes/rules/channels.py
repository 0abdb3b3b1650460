"""Ops that make several channels of each, or one of several, and gated halves: what becomes one goes together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule, Sample, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import decomposition, rule


@rule(F.pixel_shuffle, entering=-3, leaving=-3)
@rule(F.pixel_unshuffle, entering=-3, leaving=-3)
@rule(F.unfold, entering=-3, leaving=-2)
@rule(F.fold, entering=-2, leaving=-3)
class Blocks(Rule):
    """A fixed number of neighbouring channels for each channel, or the other way round.

    `entering`, `leaving`: the channels' axis of the input and of the output.
    """

    zero = Zero.PRESERVES

    def __init__(self, entering: int, leaving: int) -> None:
        self.entering, self.leaving = entering, leaving

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, value = node.all_input_nodes[0], value_of(node)
        before, after = value_of(source).shape[self.entering], value.shape[self.leaving]
        found = flow.axis(source, self.entering)
        if found is None:
            flow.freeze(flow.of(source), node, "units along an axis whose elements are mixed")
            found = torch.zeros(before, dtype=torch.int32)
        if before > after:
            blocks = found.reshape(after, -1)
            flow.unite(blocks, blocks[:, :1])
            found = blocks[:, 0]
        else:
            found = found.repeat_interleave(after // before)
        return found.reshape([after if axis == value.dim() + self.leaving else 1 for axis in range(value.dim())])


@rule(F.glu)
class GatedHalves(Rule):
    """GLU: one half of the channels times the sigmoid of the other."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else -1)
        labels = flow.of(source)
        axis = given % labels.dim()
        if labels.shape[axis] == 1:
            return labels
        first, second = labels.chunk(2, axis)
        flow.unite(first, second)
        return first


@rule(nn.PReLU)
class PReLU(Rule):
    """PReLU, with one slope for all channels or one for each."""

    zero = Zero.PRESERVES
    keeps_infinity = True
    parameters = ("weight",)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        module = flow.module(node)
        assert isinstance(module, nn.PReLU)
        if module.num_parameters > 1:
            labels = flow.axis(source, 1)
            if labels is None:
                flow.freeze(flow.of(source), node, "units along an axis that is not the slopes'")
                labels = torch.zeros(module.num_parameters, dtype=torch.int32)
            flow.bind(node, "weight", 0, labels)
        return flow.of(source)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.PReLU)
        module.num_parameters = len(module.weight)

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.PReLU(6), (2, 6, 3, 3)), Sample(nn.PReLU(), (2, 6, 3, 3)))


@decomposition(nn.ChannelShuffle)
def channel_shuffle(module: nn.ChannelShuffle, input: Any) -> Any:
    """The movements that it is made of."""
    return input.unflatten(1, (module.groups, -1)).transpose(1, 2).flatten(1, 2)
