"""Expected cost of a gated network as fractions of the start network, and what every gate adds to it."""

from __future__ import annotations

import torch

from fxcat.network.gated_network import GatedNetwork
from fxcat.records import Target

SLACK = 0.01
"""The result lies within this share below the target, and never above it."""


def target_fractions(target: Target, device: torch.device) -> torch.Tensor:
    """Fractions of MACs and parameters to reach, 1 where none is asked for; double, shape (2,)."""
    wanted = [1.0 if w is None else w for w in (target.flops, target.params)]
    return torch.tensor(wanted, dtype=torch.float64, device=device)


def undercuts(fractions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether cost fractions, shape (2,) or (2, n), are below what is wanted, shape (2,), by more than `SLACK`.

    Of two that are limited, one alone may be as low as the other needs.
    """
    limited = wanted < 1
    bound = torch.where(limited, (1 - SLACK) * wanted, torch.inf)
    return limited.any() & (fractions.movedim(0, -1) < bound).all(-1)


def cost_fractions(net: GatedNetwork, theta: torch.Tensor) -> torch.Tensor:
    """Expected MACs and parameters at θ as fractions of the start network; double, shape (2,)."""
    count = net.gate_vector.unit_count
    start = net.start_cost
    scale = torch.tensor([max(start.macs, 1), max(start.params, 1)], dtype=torch.float64, device=theta.device)
    return net.cost_model(theta[:count], theta[count:]) / scale


def cost_gradients(net: GatedNetwork, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost fractions, shape (2,), and their gradients in θ, shape (2, gates)."""
    with torch.inference_mode(False), torch.enable_grad():
        at = theta.detach().double().clone().requires_grad_()
        gradients = torch.zeros((2, at.numel()), dtype=at.dtype, device=at.device)
        fractions = cost_fractions(net, at)
        for i, fraction in enumerate(fractions.unbind(0)):
            gradients[i] = torch.autograd.grad(fraction, at, retain_graph=True)[0]
    return fractions.detach(), gradients


def marginal_macs(net: GatedNetwork) -> torch.Tensor:
    """What every gate adds to the MACs while all are open, as fractions of the start network; double, (gates,)."""
    return cost_gradients(net, torch.ones_like(net.gate_vector.theta))[1][0]
