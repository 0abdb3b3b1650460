"""θ from importance scores: where gated training starts, or at once where it would end."""

from __future__ import annotations

import torch

from fxcat.errors import InputError
from fxcat.fractions import cost_fractions, cost_gradients
from fxcat.gated import GatedModule
from fxcat.records import Target
from fxcat.selection import best_of_groups, check_reachable, select_structure

LEAST = 0.55
"""Initial θ of the least important gate. Above ½: `eval()` is still the whole network, and so is the warm-up."""


def one_shot(net: GatedModule, scores: torch.Tensor, *, target: Target) -> None:
    """Prune without gated training: set θ to 0 and 1, so that `finalize(net)` meets the target.

    What scores least per cost is closed until the cost is within 1 % below the target (as far as the widths allow), and
    never above it. `scores`: one per gate, from `fxcat.importance` or your own, ≥ 0. The weights are not touched.
    Fine-tune what `finalize` returns.

    Raises `InputError` for scores of another shape, NaN or negative ones, and `TargetError` if the target cannot be
    reached; then nothing has changed.
    """
    scores = _checked(net, scores)
    check_reachable(net, target)
    setting = select_structure(net, target, scores, torch.ones_like(net.gate_vector.theta.detach()))
    net.gate_vector.theta.data.copy_(setting)


def warm_start(net: GatedModule, scores: torch.Tensor, *, target: Target) -> None:
    """Let gated training of a pretrained network start from scores: set θ, before `fit` or `GateController`.

    Gates are ranked by score per cost. As many of the last as have to close for the target get θ from 0.55 upwards, in
    the order of their ranks; the others, and the best unit of each group, 1. Scores decide where training starts, not
    where it ends: during the warm-up all gates are open and their worth is measured as ever; then sampling begins at
    these θ, the target's schedule begins at their expected cost, and worth decides.

    Raises as `one_shot` does; then nothing has changed.
    """
    scores = _checked(net, scores)
    check_reachable(net, target)
    opened = torch.ones_like(net.gate_vector.theta.detach())
    limited = [w is not None for w in (target.flops, target.params)]
    _, gradients = cost_gradients(net, opened)
    price = gradients[torch.tensor(limited, device=gradients.device)].sum(0)
    ratio = torch.where(price > 0, scores / price.clamp(min=1e-30), torch.inf)
    ratio[best_of_groups(net, scores)] = torch.inf
    order = ratio.argsort(stable=True)[: int(ratio.isfinite().sum())]
    wanted = torch.tensor([w or 1.0 for w in (target.flops, target.params)], device=price.device, dtype=price.dtype)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        closed = opened.clone()
        closed[order[:middle]] = 0.0
        low, high = (low, middle) if bool((cost_fractions(net, closed) <= wanted).all()) else (middle + 1, high)
    opened[order[:low]] = torch.linspace(LEAST, 1.0, low + 1, dtype=opened.dtype, device=opened.device)[:low]
    net.gate_vector.theta.data.copy_(opened)


def _checked(net: GatedModule, scores: torch.Tensor) -> torch.Tensor:
    """Scores as doubles on the network's device."""
    theta = net.gate_vector.theta
    if not isinstance(scores, torch.Tensor) or scores.shape != theta.shape:
        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise InputError(
            f"scores of shape {shape} do not fit {theta.numel()} gates",
            remedy=f"give one per gate, shape ({theta.numel()},): units, then sections, in the order of net.gates",
        )
    scores = scores.detach().to(theta.device, torch.float64)
    if not bool((scores >= 0).all()):
        raise InputError(
            "some scores are negative or NaN",
            remedy="scores are ≥ 0, with 0 for what does nothing; of torch-pruning's normalizers use 'mean' or 'sum'",
        )
    return scores
