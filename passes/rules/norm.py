"""Per-channel normalisations: labels pass through, the shift makes a dead unit non-zero, the gate folds in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.arrays import along
from fxcat.passes.rules.table import Folding, Labels, Rule, Sample, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNorm(Rule):
    """BatchNorm over axis 1. Its statistics are per channel, so its own input needs no gate."""

    zero = Zero.BREAKS
    parameters = ("weight", "bias", "running_mean", "running_var")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        return value if value.dim() > 1 and value.shape[1] == module.num_features else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.axis(source, 1)
        if labels is None:
            flow.freeze(flow.of(source), node, "units along an axis that BatchNorm averages over")
            labels = torch.zeros(node.meta["value"].shape[1], dtype=torch.int64)
        for name in self.parameters:
            flow.bind(node, name, 0, labels)
        return along(labels, 1, node.meta["value"].dim())

    def resize(self, module: nn.Module) -> None:
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        known = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        if known is not None:
            module.num_features = known.shape[0]

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        subclass = _GATED.get(type(module)) if module.weight is not None and module.bias is not None else None
        return None if subclass is None else Folding(subclass, ("weight", "bias"))

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.BatchNorm2d(6), ((2, 6, 3, 3),)),
            Sample(nn.BatchNorm2d(6, affine=False), ((2, 6, 3, 3),)),
            Sample(nn.BatchNorm1d(6), ((4, 6),)),
            Sample(nn.BatchNorm3d(6, track_running_stats=False), ((2, 6, 2, 3, 3),)),
        )


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
