"""What a gate makes of the loss, by evaluating it twice."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.utils.processes import sum_over_processes, world_size
from fxcat.utils.random_state import random_states, set_random_states


def loss_difference(net: GatedModule, sample: torch.Tensor, gate: int, loss: Callable[[], torch.Tensor]) -> float:
    """L(ξ=0) − L(ξ=1) of one gate, the others as in `sample`, shape (gates,); averaged over processes.

    `loss`: evaluates the network on a batch. Dropout is the same in both evaluations. Buffers (BatchNorm statistics)
    and random states are afterwards what they were.
    """
    buffers = [(b, b.clone()) for b in net.network.buffers()]
    states = random_states()
    values: list[float] = []
    try:
        for value in (0.0, 1.0):
            setting = sample.clone()
            setting[gate] = value
            set_random_states(states)
            with net.gate_vector.fixed(setting), torch.no_grad():
                values.append(_computed(loss))
    finally:
        set_random_states(states)
        for buffer, before in buffers:
            buffer.copy_(before)
    difference = torch.tensor([values[0] - values[1]], dtype=torch.float64, device=sample.device)
    return float(sum_over_processes(difference)) / world_size()


def _computed(loss: Callable[[], torch.Tensor]) -> float:
    """Raises `InputError` where a closure wants gradients, as those of optimizers do."""
    try:
        return float(loss())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(
            f"closure= cannot be computed without gradients: {error}",
            remedy="let it return the loss and no more: controller.step(closure=lambda: criterion(net(x), y))",
        ) from error
