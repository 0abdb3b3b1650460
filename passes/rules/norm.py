"""Normalisations.

Statistics of one channel: labels pass through, the shift makes a dead unit non-zero, the gate folds in. Statistics
over channels (LayerNorm, GroupNorm, RMSNorm): the gated form counts live units only, so that removal is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from fxcat.passes.arguments import arguments
from fxcat.passes.arrays import along, frozen
from fxcat.passes.rules.counting import gated_group_norm, gated_layer_norm, gated_rms_norm
from fxcat.passes.rules.table import Counting, Folding, Labels, Moved, Replacement, Rule, Sample, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
class BatchNorm(Rule):
    """BatchNorm over axis 1. Its statistics are per channel, so its own input needs no gate."""

    zero = Zero.BREAKS
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
        subclass = _GATED.get(type(module)) if module.weight is not None and module.bias is not None else None
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
    return flow.line(first, node.meta["value"].shape[1]), first


@rule(F.batch_norm)
class BatchNormFunction(Rule):
    """F.batch_norm, whose statistics and affine parameters are arguments."""

    zero = Zero.BREAKS

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        value, mean = args[0], args[1] if len(args) > 1 else kwargs.get("running_mean")
        return value if mean is not None and value.dim() > 1 and value.shape[1] == len(mean) else None

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = node.all_input_nodes[1:]
        return tuple(n for n in given if n.op == "get_attr" and isinstance(n.meta["value"], torch.Tensor))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        bound = self.binds(node)
        labels, result = _channels(flow, node)
        for given in node.all_input_nodes[1:]:
            if given in bound:
                flow.bind_axis(flow.attribute_name(given), 0, labels)
            elif isinstance(given.meta["value"], torch.Tensor):
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


_GATED: dict[Any, Any] = {
    base: type(f"Gated{base.__name__}", (base,), {"forward": _gated_forward, "__module__": __name__})
    for base in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


class _GatedFrozen(FrozenBatchNorm2d):
    """Scale and shift that were multiplied by the gate: (γξ)·(x − mean)/σ + βξ."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        scale = weight * (self.get_buffer("running_var") + self.eps).rsqrt()
        shift = bias - self.get_buffer("running_mean") * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNorm(Rule):
    """InstanceNorm: statistics of one channel of one example. Without a shift, what is zero stays zero."""

    parameters = ("weight", "bias", "running_mean", "running_var")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.axis(source, 1)
        if labels is None or node.meta["value"].dim() != flow.of(source).dim():
            flow.freeze(flow.of(source), node, "units along an axis that InstanceNorm averages over")
            labels = frozen((node.meta["value"].shape[1],))
        flow.bind_all(node, self.parameters, labels)
        return along(labels, 1, node.meta["value"].dim())

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        module.num_features = entering[1]

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.InstanceNorm2d(6), (2, 6, 3, 3)),
            Sample(nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (2, 6, 5)),
        )


def _over_last_axes(flow: Flow, node: fx.Node, rank: int) -> torch.Tensor:
    """Labels of a value that is normalised over its last `rank` axes."""
    labels = flow.of(node.all_input_nodes[0])
    inner = labels.shape[labels.dim() - rank :]
    if inner.numel() == 1 or labels.numel() == inner.numel():
        return labels
    # units along the batch axis (heads that were folded into it) go as a whole
    tied = range(labels.dim() - rank, labels.dim()) if labels.shape[0] > 1 else range(labels.dim() - rank)
    first = labels
    for axis in tied:
        first = first.narrow(axis, 0, 1)
    flow.unite(labels, first)
    return first


def _counted(flow: Flow, node: fx.Node, rank: int, target: Callable[..., Any]) -> Counting | None:
    labels = flow.of(node)
    inner = labels.shape[labels.dim() - rank :]
    return Counting(target, labels.reshape(inner)) if 1 < labels.numel() == inner.numel() else None


class _OverLastAxes(Rule):
    """Statistics over the last axes."""

    zero = Zero.BREAKS
    gated: Callable[..., Any]

    def rank(self, flow: Flow, node: fx.Node) -> int:
        raise NotImplementedError

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return _counted(flow, node, self.rank(flow, node), self.target(flow, node))

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return self.gated


class _LastAxesModule(_OverLastAxes):
    """As a module. Without parameters it is captured as the function, which can be told its size."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value

    def rank(self, flow: Flow, node: fx.Node) -> int:
        module = flow.module(node)
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        return len(module.normalized_shape)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        rank = self.rank(flow, node)
        labels = _over_last_axes(flow, node, rank)
        for axis in range(-rank, 0):
            if labels.shape[axis] > 1:
                for name in self.parameters:
                    flow.bind(node, name, rank + axis, labels.reshape(-1))
        return labels

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return _subclass(type(flow.module(node)), self.gated)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
        module.normalized_shape = entering[-len(module.normalized_shape) :]


class _LastAxesFunction(_OverLastAxes):
    """As a function, with its size among the arguments."""

    def rank(self, flow: Flow, node: fx.Node) -> int:
        return len(arguments(node)["normalized_shape"])

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        rank = self.rank(flow, node)
        labels = _over_last_axes(flow, node, rank)
        inner = labels.shape[labels.dim() - rank :]
        given = arguments(node)
        for name in ("weight", "bias"):
            if isinstance(given.get(name), fx.Node) and labels.numel() == inner.numel() > 1:
                flow.unite(labels.reshape(inner), flow.of(given[name]))
        return labels

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node)
        shape = moved.shape[-len(given["normalized_shape"]) :]
        return Replacement(
            (node.args[0], shape, *node.args[2:]), {k: v for k, v in node.kwargs.items() if k != "normalized_shape"}
        )


@cache
def _subclass(base: type[nn.Module], function: Callable[..., Any]) -> type[nn.Module]:
    """A module class that takes its gate as the argument `gate` of `forward`, and hands it to `function`."""

    def forward(self: Any, input: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        size = self.num_groups if hasattr(self, "num_groups") else list(self.normalized_shape)
        parameters = {n: p for n, p in self.named_parameters(recurse=False)}
        return function(input, size, eps=self.eps, gate=gate, **parameters)

    return type(f"Gated{base.__name__}", (base,), {"forward": forward, "__module__": __name__})


@rule(nn.LayerNorm)
class LayerNorm(_LastAxesModule):
    """LayerNorm."""

    parameters = ("weight", "bias")
    gated = staticmethod(gated_layer_norm)

    def samples(self) -> tuple[Sample, ...]:
        return Sample(nn.LayerNorm(6), (2, 3, 6), axis=-1), Sample(nn.LayerNorm(6, bias=False), (2, 6), axis=-1)


@rule(nn.RMSNorm)
class RMSNorm(_LastAxesModule):
    """RMSNorm."""

    parameters = ("weight",)
    gated = staticmethod(gated_rms_norm)

    def samples(self) -> tuple[Sample, ...]:
        return Sample(nn.RMSNorm(6), (2, 3, 6), axis=-1), Sample(nn.RMSNorm(6, eps=1e-5), (2, 6), axis=-1)


@rule(F.layer_norm)
class LayerNormFunction(_LastAxesFunction):
    """F.layer_norm."""

    gated = staticmethod(gated_layer_norm)


@rule(F.rms_norm)
class RMSNormFunction(_LastAxesFunction):
    """F.rms_norm."""

    gated = staticmethod(gated_rms_norm)


class _Groups(Rule):
    """GroupNorm, whose groups must stay equally wide.

    Either its groups are the units, whose statistics are their own; or the positions inside every group are, and the
    statistics count the live ones: whichever gives more units.
    """

    zero = Zero.BREAKS

    def number(self, flow: Flow, node: fx.Node) -> int:
        """How many groups there are."""
        raise NotImplementedError

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        """The weight and the bias carry the labels."""
        raise NotImplementedError

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        """What counts the live units."""
        raise NotImplementedError

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.axis(source, 1)
        if labels is None:
            flow.freeze(flow.of(source), node, "units along an axis that GroupNorm averages over")
            return frozen((1,) * node.meta["value"].dim())
        blocks = labels.reshape(self.number(flow, node), -1)
        flow.unite(blocks, blocks[:, :1] if _groups_are_units(*blocks.shape) else blocks[:1])
        self.bind(flow, node, labels)
        return flow.of(source)

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        labels, groups = flow.axis(node, 1), self.number(flow, node)
        width = node.meta["value"].shape[1] // groups
        if _groups_are_units(groups, width) or labels is None or labels.unique().numel() == 1:
            return None
        return Counting(self.target(flow, node), labels)


def _groups_are_units(groups: int, width: int) -> bool:
    return groups >= width


@rule(nn.GroupNorm)
class GroupNorm(_Groups):
    """GroupNorm as a module."""

    parameters = ("weight", "bias")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        return value

    def number(self, flow: Flow, node: fx.Node) -> int:
        module = flow.module(node)
        assert isinstance(module, nn.GroupNorm)
        return module.num_groups

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        flow.bind_all(node, self.parameters, labels)

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return _subclass(type(flow.module(node)), gated_group_norm)

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.GroupNorm)
        width = module.num_channels // module.num_groups
        units = _groups_are_units(module.num_groups, width)
        module.num_channels = entering[1]
        if units:
            module.num_groups = entering[1] // width

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.GroupNorm(4, 8), (2, 8, 3, 3)),
            Sample(nn.GroupNorm(2, 8), (2, 8, 5)),
            Sample(nn.GroupNorm(1, 6, affine=False), (2, 6, 3, 3)),
            Sample(nn.GroupNorm(6, 6), (2, 6, 3, 3)),
        )


@rule(F.group_norm)
class GroupNormFunction(_Groups):
    """F.group_norm."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return args[0] if args else None

    def number(self, flow: Flow, node: fx.Node) -> int:
        return arguments(node)["num_groups"]

    def bind(self, flow: Flow, node: fx.Node, labels: torch.Tensor) -> None:
        for given in node.all_input_nodes[1:]:
            if isinstance(given.meta["value"], torch.Tensor):
                flow.unite(labels, flow.of(given))

    def target(self, flow: Flow, node: fx.Node) -> Callable[..., Any]:
        return gated_group_norm

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node)
        groups = given["num_groups"]
        channels = node.meta["value"].shape[1]
        if not _groups_are_units(groups, channels // groups):
            return None
        given["num_groups"] = moved.shape[1] * groups // channels
        return Replacement((given.pop("input"),), given)
