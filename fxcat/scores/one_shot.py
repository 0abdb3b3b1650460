"""θ from importance scores: where gated training starts, or at once where it would end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fxcat.checks import check_batches
from fxcat.choosing.cost_shares import cost_fractions, cost_gradients, undercuts, wanted_of
from fxcat.choosing.groups import kept_gates
from fxcat.choosing.select import check_reachable, select_structure
from fxcat.choosing.sharing import emphasized
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.records import COSTS, Target, check_target
from fxcat.scores.compensation import measure
from fxcat.scores.importance import norm_scale

LEAST = 0.55
"""Initial θ of the least important gate. Above ½: `eval()` is still the whole network, and so is the warm-up."""
LARGEST = 1e280
"""What larger scores, also infinite ones, count as: sums of them are still numbers."""
TIE = 1e-6
"""By how much, relatively, equal scores are made different."""


def one_shot(
    net: GatedModule, scores: torch.Tensor | None = None, *, target: Target, compensate: Iterable[Any] | None = None
) -> None:
    """Prune without gated training: set θ to 0 and 1, so that `finalize(net)` meets the target.

    What scores least per cost is closed until the cost is within 1 % below the target (as far as the widths allow),
    and never above it. The cost of a gate is what it adds to the whole network: by costs that follow what has been
    closed already, the layers next to narrow ones would be kept wide. `scores`: one per gate, from
    `fxcat.importance` or your own, ≥ 0, by default those of `norm_scale`, which needs no data; `target.layers` shifts
    them between sections and units. The weights are not touched, unless you ask for it. Fine-tune what `finalize`
    returns.

    `compensate`: a few batches of `(inputs, targets)`; the targets are not used. What the units that close gave on
    average over these, in the whole network in `eval()`, then goes into the biases of the convolutions and linear
    layers that read them: a unit that is constant over the data goes without any change, others with less
    (Variance-Based Pruning, arXiv 2507.12988, §3). A layer without a bias gets one, or the running mean of a batch
    normalisation that alone follows it takes the shift; make optimizers afterwards. Where positions differ, as at
    borders that a convolution pads with zeros, it is the mean over them. Not made up for, and logged as a warning: what
    ops other than those layers make of the units. Nor is what sections give that close. `finalize` is exact as ever;
    but with all gates open again, the network would no longer be the one that was prepared.

    Raises `InputError` for scores of another shape, NaN or negative ones, and without a batch, `TargetError` if the
    target cannot be reached, and `TrainingError` if what units give is not finite; then nothing has changed, except
    that layers which were to be compensated may have got a bias of zero.
    """
    check_batches(compensate, "compensate", optional=True)
    batches = None if compensate is None else list(compensate)
    scores, last = _ranked(net, scores, target)
    setting = torch.ones_like(net.gate_vector.theta.detach())
    setting[last] = 0.0
    chosen = select_structure(net, target, scores, setting)
    if batches is not None:
        found = measure(net, chosen, batches)
        while missing := found.without_place(net):
            net.add_biases(missing)
            # they cost parameters: perhaps more has to close for them
            chosen = select_structure(net, target, scores, chosen)
            found = measure(net, chosen, batches)
        found.apply(net)
    net.gate_vector.theta.data.copy_(chosen)


def warm_start(net: GatedModule, scores: torch.Tensor | None = None, *, target: Target) -> None:
    """Let gated training of a pretrained network start from scores: set θ, before `fit` or `GateController`.

    `scores`: as for `one_shot`. What that would close gets θ from 0.55 upwards, in the order of score per cost; the
    others, and the best unit of each group, 1. Scores decide where training starts, not where it ends: during the
    warm-up θ above ½ is as good as 1, and worth is measured as ever; then sampling begins at these θ, the target's
    schedule begins at their expected cost, and worth decides.

    Raises as `one_shot` does; then nothing has changed.
    """
    _, last = _ranked(net, scores, target)
    theta = torch.ones_like(net.gate_vector.theta.detach())
    ramp = torch.linspace(LEAST, 1.0, len(last) + 1, dtype=theta.dtype, device=theta.device)
    theta[last] = ramp[:-1]
    net.gate_vector.theta.data.copy_(theta)


def _ranked(net: GatedModule, scores: torch.Tensor | None, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Checked scores, and the gates that have to close for the target, least score per cost first."""
    check_gated(net, "one_shot() or warm_start()")
    check_target(target)
    scores = emphasized(net, checked_scores(net, norm_scale(net) if scores is None else scores), target.layers)
    check_reachable(net, target)
    order = closing_order(net, scores, target)
    wanted = wanted_of(net, target)
    last = order[: _cut(net, order, wanted)]
    while len(last) and bool(undercuts(_cost_without(net, last), wanted)):
        # the last one, a whole section say, is too much: others instead of it, if they are enough
        others = order[order != last[-1]]
        if bool((_cost_without(net, others) > wanted).any()):
            break
        order, last = others, others[: _cut(net, others, wanted)]
    return scores, last


def closing_order(net: GatedModule, scores: torch.Tensor, target: Target) -> torch.Tensor:
    """Numbers of the gates that may close, those with the least score per cost first; `target`: which costs count."""
    _, gradients = cost_gradients(net, torch.ones_like(net.gate_vector.theta.detach()))
    limited = [getattr(target, name) is not None for name in COSTS[: len(gradients)]]
    price = gradients[torch.tensor(limited, device=gradients.device)].sum(0)
    ratio = torch.where(price > 0, scores / price.clamp(min=1e-30), torch.inf)
    ratio[kept_gates(net, scores)] = torch.inf
    return ratio.argsort(stable=True)[: int(ratio.isfinite().sum())]


def _cut(net: GatedModule, order: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many of the gates, at least, have to close in that order for the wanted cost fractions, shape (costs,)."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        enough = bool((_cost_without(net, order[:middle]) <= wanted).all())
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _cost_without(net: GatedModule, closed: torch.Tensor) -> torch.Tensor:
    """Cost fractions, shape (costs,), if these gates close."""
    setting = torch.ones_like(net.gate_vector.theta.detach())
    setting[closed] = 0.0
    return cost_fractions(net, setting)


def checked_scores(net: GatedModule, scores: torch.Tensor) -> torch.Tensor:
    """Scores as doubles on the network's device, those of a group all different.

    Where scores are equal (the scales of an untrained network), every group shall lose the same share, not one all.
    """
    theta = net.gate_vector.theta
    if not isinstance(scores, torch.Tensor) or scores.shape != theta.shape:
        given = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"type {type(scores).__name__}"
        raise InputError(
            f"scores of {given} do not fit {theta.numel()} gates",
            remedy=f"give a tensor of shape ({theta.numel()},): units, then sections, in the order of net.gates",
        )
    if scores.is_complex() or scores.is_meta:
        raise InputError(f"scores= are no numbers: {scores.dtype} on {scores.device}", remedy="give real values")
    scores = scores.detach().to(theta.device, torch.float64)
    if not bool((scores >= 0).all()):
        raise InputError(
            "some scores are negative or NaN",
            remedy="scores are ≥ 0, with 0 for what does nothing; of torch-pruning's normalizers use 'mean' or 'sum'",
        )
    scores = scores.clamp(max=LARGEST)
    place = torch.cat([torch.arange(part.count, dtype=torch.float64) / part.count for part in net.parts])
    return scores * (1 + TIE * place.to(scores.device))
