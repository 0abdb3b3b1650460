"""Normalisations by statistics of one channel.

Labels pass through, the shift makes a dead unit non-zero, the gate folds in.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, along, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Folding, Rule, Sample, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule
from fxcat.utils.made_classes import gated_class


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
class BatchNorm(Rule):
    """BatchNorm over axis 1. Its statistics are per channel, so its own input needs no gate."""

    zero = Zero.BREAKS
    equivariant = True
    parameters = ("weight", "bias", "running_mean", "running_var")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        return value if value.dim() > 1 and value.shape[1] == module.num_features else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels, result = _channels(flow, node)
        flow.bind_all(node, self.parameters, labels)
        return result

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        known = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        if known is not None:
            module.num_features = known.shape[0]

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        subclass = _gated(type(module)) if module.weight is not None and module.bias is not None else None
        return None if subclass is None else Folding(subclass, ("weight", "bias"))

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.BatchNorm2d(6), (2, 6, 3, 3)),
            Sample(nn.BatchNorm2d(6, affine=False), (2, 6, 3, 3)),
            Sample(nn.BatchNorm1d(6), (4, 6)),
            Sample(nn.BatchNorm3d(6, track_running_stats=False), (2, 6, 2, 3, 3)),
        )


def _channels(flow: Flow, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels along axis 1, 1-D, and those of the result of a norm that averages over all other axes."""
    source = node.all_input_nodes[0]
    result = flow.of(source)
    labels = flow.axis(source, 1)
    if labels is not None:
        return labels, result
    first = result
    for axis in range(result.dim()):
        first = first.narrow(axis, 0, 1) if axis != 1 else first
    flow.unite(result, first)
    if first.numel() == 1:
        flow.freeze(first, node, "units along an axis that BatchNorm averages over")
    return flow.line(first, value_of(node).shape[1]), first


@rule(F.batch_norm)
class BatchNormFunction(Rule):
    """F.batch_norm, whose statistics and affine parameters are arguments."""

    zero = Zero.BREAKS

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        value, mean = args[0], args[1] if len(args) > 1 else kwargs.get("running_mean")
        return value if mean is not None and value.dim() > 1 and value.shape[1] == len(mean) else None

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = node.all_input_nodes[1:]
        return tuple(n for n in given if n.op == "get_attr" and isinstance(value_of(n), torch.Tensor))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        bound = self.binds(node)
        labels, result = _channels(flow, node)
        for given in node.all_input_nodes[1:]:
            if given in bound:
                flow.bind_axis(flow.attribute_name(given), 0, labels)
            elif isinstance(value_of(given), torch.Tensor):
                flow.unite(labels, flow.of(given))
        return result

    def folding_call(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node)
        affine = tuple(given[name] for name in ("weight", "bias") if given.get(name) is not None)
        return affine if len(affine) == 2 and all(n in self.binds(node) for n in affine) else ()


@rule(FrozenBatchNorm2d)
class FrozenBatchNorm(BatchNorm):
    """BatchNorm with constants: all four are buffers, whose lengths are the only sizes that it states."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value if value.dim() == 4 and value.shape[1] == module.get_buffer("weight").shape[0] else None

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        pass

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        return Folding(_GatedFrozen, ("weight", "bias")) if type(module) is FrozenBatchNorm2d else None

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(FrozenBatchNorm2d(6), (2, 6, 3, 3)),)


def _gated_forward(self: nn.BatchNorm2d, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`nn.BatchNorm*d.forward` with γ and β that were multiplied by the gate."""
    self._check_input_dim(input)  # pyright: ignore[reportPrivateUsage]
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
    by_batch = self.training or (self.running_mean is None and self.running_var is None)
    tracked = not self.training or self.track_running_stats
    return F.batch_norm(
        input,
        self.running_mean if tracked else None,
        self.running_var if tracked else None,
        weight,
        bias,
        by_batch,
        momentum,
        self.eps,
    )


@cache
def _gated(base: type[nn.Module]) -> type[nn.Module] | None:
    """The class that takes γ and β; None for one that may do more than `nn.BatchNorm*d`."""
    if base not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return None
    return gated_class(base, _gated_forward, (_gated, (base,)))


class _GatedFrozen(FrozenBatchNorm2d):
    """Scale and shift that were multiplied by the gate: (γξ)·(x − mean)/σ + βξ."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        scale = weight * (self.get_buffer("running_var") + self.eps).rsqrt()
        shift = bias - self.get_buffer("running_mean") * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


@rule(F.instance_norm)
class InstanceNormFunction(Rule):
    """F.instance_norm."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, *parameters = node.all_input_nodes
        labels = flow.axis(source, 1)
        if labels is None or parameters:
            flow.freeze(flow.of(source), node, "units in an instance_norm with parameters, or not along its channels")
        return flow.of(source)


_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@rule(*_INSTANCE_NORMS)
class InstanceNorm(Rule):
    """InstanceNorm: statistics of one channel of one example. Without a shift, what is zero stays zero."""

    parameters = ("weight", "bias", "running_mean", "running_var")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, value, module = node.all_input_nodes[0], value_of(node), flow.module(node)
        assert isinstance(module, _INSTANCE_NORMS)
        batched = value.dim() > module._get_no_batch_dim()  # pyright: ignore[reportPrivateUsage]
        labels = flow.axis(source, 1) if batched else None
        if labels is None:
            why = "units along an axis that InstanceNorm averages over" if batched else "the input has no batch axis"
            flow.freeze(flow.of(source), node, why)
            labels = frozen((value.shape[int(batched)],))
        flow.bind_all(node, self.parameters, labels)
        return along(labels, int(batched), value.dim())

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, _INSTANCE_NORMS)
        if len(entering) > module._get_no_batch_dim():  # pyright: ignore[reportPrivateUsage]
            module.num_features = entering[1]

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.InstanceNorm2d(6), (2, 6, 3, 3)),
            Sample(nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (2, 6, 5)),
        )
