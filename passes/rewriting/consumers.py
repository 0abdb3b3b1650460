"""The layers that lose something when units close, and the places where nothing can make up for it.

In: an analysis, the gates, a network, and the nodes that a setting leaves. Out: a `Consumer` for every layer that is
affine in what it reads, and `Pinned` for every other op in which units that close meet those that stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torchvision.ops import FrozenBatchNorm2d

from fxcat.network.program import Consumer
from fxcat.passes.analysis.on_weights import OnWeights
from fxcat.passes.analysis.units import NO_UNIT
from fxcat.passes.gating.insert import Gatings
from fxcat.passes.graph.label_arrays import leaves, place
from fxcat.passes.graph.meta import value_of
from fxcat.passes.work import Analysis
from fxcat.records import Pinned


def find_consumers(
    analysis: Analysis, gatings: Gatings, network: nn.Module, left: Collection[fx.Node], units: torch.Tensor
) -> tuple[tuple[Consumer, ...], tuple[Pinned, ...]]:
    """`left`: nodes of the graph that a setting leaves; `units`: its units, 0/1, shape (units,)."""
    closing = _Closing(analysis, units)
    consumers: dict[int, Consumer] = {}
    lost: list[Pinned] = []
    biases = Counter(id(b) for m in network.modules() for b in (m._parameters.get("bias"),) if b is not None)
    calls = [str(n.target) for n in analysis.graph.nodes if n.op == "call_module"]
    for node in analysis.graph.nodes:
        gating = gatings.of_node.get(node)
        counts = gating is not None and gating.counted is not None
        closed = closing.read_by(node) - (set() if counts else closing.given_by(node)) if node in left else set[int]()
        rule = analysis.labels.rules.get(node)
        if not closed or (rule is not None and rule.movement) or isinstance(rule, OnWeights):
            continue
        if counts:
            lost.append(Pinned(place(node), "its statistics count the units that stay", len(closed)))
        elif rule is None or not rule.affine or node.op != "call_module":
            lost.append(Pinned(place(node), "it is no layer whose bias could make up for them", len(closed)))
        elif node not in analysis.inference:
            lost.append(Pinned(place(node), "it takes part in training only", len(closed)))
        else:
            module = network.get_submodule(str(node.target))
            found = closing.consumer(node, module, _norm_after(node, network, calls))
            if biases[id(module._parameters["bias"])] > 1:
                lost.append(Pinned(place(node), "another layer has the same bias", len(closed)))
            elif found is None:
                lost.append(Pinned(place(node), "units lie along another axis than its channels", len(closed)))
            else:
                consumers.setdefault(id(module), found)
    return tuple(consumers.values()), tuple(lost)


class _Closing:
    """Which units of values close."""

    def __init__(self, analysis: Analysis, units: torch.Tensor) -> None:
        self._analysis = analysis
        # the last entry answers for NO_UNIT = -1
        self._closes = torch.cat([~units.bool().cpu(), torch.zeros(1, dtype=torch.bool)])

    def _numbers(self, labels: torch.Tensor) -> torch.Tensor:
        return self._analysis.units.of_label[labels].long()

    def given_by(self, node: fx.Node) -> set[int]:
        """Numbers of the closing units in a value."""
        arrays = leaves(self._analysis.labels.values.get(node))
        return {n for a in arrays for n in self._numbers(a).unique().tolist() if n != NO_UNIT and self._closes[n]}

    def read_by(self, node: fx.Node) -> set[int]:
        if self._analysis.labels.values.get(node) is None:
            return set()  # sizes
        return set[int]().union(*(self.given_by(n) for n in node.all_input_nodes if n.op != "get_attr"))

    def consumer(self, node: fx.Node, module: nn.Module, norm: str | None) -> Consumer | None:
        """None if units lie elsewhere than along the channels of the input, or it is passed by keyword."""
        weight = module.get_parameter("weight")
        axis = 1 - weight.dim()
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        lines: list[torch.Tensor] = []
        for value in (source, node):
            labels, size = self._analysis.labels.of(value), value_of(value).shape[axis]
            if labels.numel() not in (1, labels.shape[axis]):
                return None
            lines.append(self._closes[self._numbers(labels.reshape(-1))].expand(size))
        return Consumer(str(node.target), axis, lines[0], ~lines[1], norm)


def _norm_after(node: fx.Node, network: nn.Module, calls: list[str]) -> str | None:
    user = next(iter(node.users))
    if len(node.users) > 1 or user.op != "call_module" or calls.count(str(user.target)) > 1:
        return None
    norm = network.get_submodule(str(user.target))
    has_mean = isinstance(norm, _BatchNorm | FrozenBatchNorm2d) and norm.running_mean is not None
    return str(user.target) if has_mean and calls.count(str(node.target)) == 1 else None
