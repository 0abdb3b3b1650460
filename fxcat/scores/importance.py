"""How much every gate matters, as far as the weights or a few batches can tell.

Scores have shape (gates,), units first and then sections, and are ≥ 0: what scores least per cost goes first. An
infinite score says that a gate shall stay. They are for `fxcat.one_shot` and `fxcat.warm_start`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torchvision.ops import FrozenBatchNorm2d

from fxcat.checks import check_batches, check_callable
from fxcat.choosing.cost_shares import marginal_macs
from fxcat.choosing.groups import group_ids
from fxcat.data.batches import call, read_batch
from fxcat.data.losses import checked, cross_entropy
from fxcat.errors import InputError, TrainingError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.scores.torch_pruning import from_torch_pruning
from fxcat.utils.modes import in_eval

__all__ = ["from_torch_pruning", "norm_scale", "taylor"]

LEAST_MEAN = 1e-30
"""Stands in for a mean of zero, where everything is zero."""
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, FrozenBatchNorm2d, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))


def norm_scale(net: GatedModule) -> torch.Tensor:
    """Scores from the weights alone; double, shape (gates,).

    The scale of a unit is the mean |γ| of the normalisations that carry it (Network Slimming, arXiv 1708.06519, §3),
    and where its group has none the L2 norm of all weights that go with it (over coupled layers as in DepGraph,
    arXiv 2301.12900, §3). The scale of a section is the mean |γ| of its normalisations, else the mean norm of its
    filters (cf. arXiv 2007.05667). Scales differ between layers, so a unit's is divided by the mean of its group, a
    section's by the mean of all sections: the start network is taken as balanced, an average unit as worth the MACs
    that it costs. The score is the relative scale times those MACs, as a share of the start network's; for a section
    times twice its MACs, since the units count each of them twice: that which reads and that which writes. A section
    without weights scores ∞.
    """
    check_gated(net, "norm_scale()")
    tensors, norms = _weights(net)
    scales = torch.cat([unit_scales(net), 2 * _section_scales(net, tensors, norms)])
    scores = scales * marginal_macs(net)
    return scores.nan_to_num(nan=torch.inf, posinf=torch.inf)  # ∞ times no MACs: a section that only training needs


def unit_scales(net: GatedModule) -> torch.Tensor:
    """The units' scales as in `norm_scale`, relative to the mean of their group; double, shape (units,)."""
    check_gated(net, "unit_scales()")
    device, count = net.gate_vector.theta.device, net.gate_vector.unit_count
    tensors, norms = _weights(net)
    gamma, carriers, square = torch.zeros((3, count), dtype=torch.float64, device=device)
    for name, axes in net.program.unit_axes(net.network).items():
        for axis, numbers in axes.items():
            numbers, tensor = numbers.to(device), tensors[name]
            inside, others = numbers >= 0, [a for a in range(tensor.dim()) if a != axis]
            if name in norms:
                gamma.index_add_(0, numbers[inside], tensor[inside].abs().double())
                carriers.index_add_(0, numbers[inside], inside[inside].double())
            elif others:
                squares = tensor.square().sum(others, dtype=torch.float64)
                square.index_add_(0, numbers[inside], squares[inside])
    groups = group_ids(net)[:count]
    has_norm = _group_means((carriers > 0).double(), groups) == 1
    units = torch.where(has_norm, gamma / carriers.clamp(min=1), square.sqrt())
    return units / _group_means(units, groups).clamp(min=LEAST_MEAN)


def _weights(net: GatedModule) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Parameters and buffers of the network by name, and the names of those that scale a normalisation."""
    tensors = {n: t.detach() for n, t in (*net.network.named_parameters(), *net.network.named_buffers())}
    norms = {f"{path}.weight" for path, m in net.network.named_modules() if isinstance(m, _NORMS)}
    return tensors, norms


def _group_means(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The mean of every unit's group; all of shape (units,)."""
    return (torch.bincount(groups, values) / torch.bincount(groups).clamp(min=1))[groups]


def _section_scales(net: GatedModule, tensors: dict[str, torch.Tensor], norms: set[str]) -> torch.Tensor:
    """Relative scales of the sections, shape (sections,)."""
    gammas, filters = torch.full((2, len(net.structure.sections)), torch.nan, dtype=torch.float64)
    for number in range(len(gammas)):
        terms = [t for t in net.structure.terms if t.params and number in t.holding.holders]
        inside = {t.owner: tensors[t.owner] for t in terms}
        for scales, found in (
            (gammas, [t.abs().double() for n, t in inside.items() if n in norms]),
            (filters, [t.flatten(1).norm(dim=1).double() for t in inside.values() if t.dim() > 1]),
        ):
            if found:
                scales[number] = torch.cat(found).mean()
    gammas /= gammas.nanmean().clamp(min=LEAST_MEAN)
    filters /= filters.nanmean().clamp(min=LEAST_MEAN)
    scales = torch.where(gammas.isnan(), filters, gammas)
    return scales.nan_to_num(nan=torch.inf).to(net.gate_vector.theta.device)


@torch.inference_mode(False)  # gradients are wanted
def taylor(
    net: GatedModule, batches: Iterable[Any], loss: Callable[[Any, Any], torch.Tensor] = cross_entropy
) -> torch.Tensor:
    """Scores from the loss on some batches of `(inputs, targets)`; double, shape (gates,), for units and sections.

    The score of a gate ξ is the mean over batches of (∂L/∂ξ)² at ξ = 1 (Molchanov et al. 2019, arXiv 1906.10771, §3),
    times half the batch size: then it estimates how much the loss grows without the gate, in units of the loss (Theis
    et al. 2018, arXiv 1801.05787, §2), and units and sections compare. All gates are open and every module is in
    `eval()` meanwhile; weights, buffers, gradients, θ and modes are afterwards what they were.

    Raises `InputError` without a batch, and `TrainingError` if a loss or its derivative is not finite.
    """
    check_gated(net, "taylor()")
    check_batches(batches, "batches")
    check_callable(loss, "loss")
    theta = net.gate_vector.theta
    total, seen = torch.zeros_like(theta, dtype=torch.float64), 0
    with _open_gates(net):
        for batch in batches:
            read = read_batch(batch, net).to(theta.device)
            value = checked(loss(call(net, net, read.inputs), read.targets))
            draws = net.gate_vector.differentiated(value)
            gradient = sum((d.gradient.double() for d in draws if d.gradient is not None), torch.zeros_like(total))
            if not bool(torch.isfinite(gradient).all()):
                raise TrainingError(
                    f"the loss is {value.detach().item()}, and its derivative in the gates is not finite",
                    where=f"batch {seen}",
                    remedy="check the weights and the data",
                )
            total += 0.5 * draws[-1].batch * gradient.square()
            seen += 1
    if not seen:
        raise InputError("taylor() got no batch", remedy="pass a loader, or a list of (inputs, targets)")
    return total / seen


@contextmanager
def _open_gates(net: GatedModule) -> Generator[None, None, None]:
    """Every gate open and differentiable, every module in `eval()`; all as it was afterwards."""
    vector = net.gate_vector
    theta = vector.theta
    before, needed, values = theta.detach().clone(), theta.requires_grad, vector.values
    reached = vector.draws.reached
    try:
        with in_eval(net), torch.enable_grad():
            vector.train()  # the vector alone: it is differentiable in training only
            vector.values = "hard"
            theta.requires_grad_().data.fill_(1.0)
            yield
    finally:
        theta.requires_grad_(needed).data.copy_(before)
        vector.values = values
        vector.draws.reached = reached  # nobody has trained the network
