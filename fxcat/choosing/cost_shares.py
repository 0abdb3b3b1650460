"""Expected cost of a gated network as fractions of the start network, and what every gate adds to it."""

from __future__ import annotations

from dataclasses import astuple

import torch

from fxcat.network.gated_network import GatedNetwork
from fxcat.records import COSTS, COUNTED, Pressure, Target

SLACK = 0.01
"""The result lies within this share below the target, and never above it."""


def target_fractions(target: Target, device: torch.device, costs: int = len(COUNTED)) -> torch.Tensor:
    """Fractions of the first so many `COSTS` to reach, 1 where none is asked for; double, shape (costs,)."""
    asked = (getattr(target, name) for name in COSTS[:costs])
    return torch.tensor([1.0 if w is None else w for w in asked], dtype=torch.float64, device=device)


def wanted_of(net: GatedNetwork, target: Target) -> torch.Tensor:
    """The same for all costs that a network counts, on its device."""
    return target_fractions(target, net.gate_vector.theta.device, len(_costs_of(net)))


def price_mix(net: GatedNetwork, pressure: Pressure) -> torch.Tensor:
    """How much every cost that a network counts is to count, MACs what the others leave; double, shape (costs,)."""
    others: dict[str, float] = {name: getattr(pressure, name) for name in COSTS[1:]}
    of_macs = 1.0
    for share in others.values():
        of_macs -= share
    mix = [of_macs, *(others[name] for name in _costs_of(net)[1:])]
    return torch.tensor(mix, dtype=torch.float64, device=net.gate_vector.theta.device)


def _costs_of(net: GatedNetwork) -> tuple[str, ...]:
    """Names of the costs that a network counts."""
    return COSTS[: len(COUNTED) + (net.latency is not None)]


def undercuts(fractions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether cost fractions, shape (costs,) or (costs, n), are below what is wanted, shape (costs,), by more than
    `SLACK`.

    Of several that are limited, one alone may be as low as the other needs.
    """
    limited = wanted < 1
    bound = torch.where(limited, (1 - SLACK) * wanted, torch.inf)
    return limited.any() & (fractions.movedim(0, -1) < bound).all(-1)


def cost_fractions(net: GatedNetwork, theta: torch.Tensor) -> torch.Tensor:
    """Expected MACs and parameters at θ as fractions of the start network, and milliseconds if it has a latency table;
    double, shape (costs,)."""
    count = net.gate_vector.unit_count
    at_start = [max(amount, 1) for amount in astuple(net.start_cost)]
    scale = torch.tensor(at_start, dtype=torch.float64, device=theta.device)
    fractions = net.cost_model(theta[:count], theta[count:]) / scale
    return fractions if net.latency is None else torch.cat([fractions, net.latency_share(theta).reshape(1)])


def cost_gradients(net: GatedNetwork, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost fractions, shape (costs,), and their gradients in θ, shape (costs, gates)."""
    with torch.inference_mode(False), torch.enable_grad():
        at = theta.detach().double().clone().requires_grad_()
        fractions = cost_fractions(net, at)
        gradients = torch.zeros((len(fractions), at.numel()), dtype=at.dtype, device=at.device)
        for i, fraction in enumerate(fractions.unbind(0)):
            gradients[i] = torch.autograd.grad(fraction, at, retain_graph=True)[0]
    return fractions.detach(), gradients


def marginal_macs(net: GatedNetwork) -> torch.Tensor:
    """What every gate adds to the MACs while all are open, as fractions of the start network; double, (gates,)."""
    added = cost_gradients(net, torch.ones_like(net.gate_vector.theta))[1][0]
    return added.clamp(min=0.0)  # of what only training computes, sums of shares leave a little less than nothing
