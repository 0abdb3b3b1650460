"""What a step says of the gates: the forward passes that it was made from, or an error where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fxcat.data.batches import HeldOut, call, read_batch
from fxcat.data.losses import Loss, checked
from fxcat.errors import InputError, TrainingError
from fxcat.gated import GatedModule
from fxcat.network.draws import Draw
from fxcat.network.gates import GateVector
from fxcat.utils.processes import from_main, is_same_everywhere

SaidByHeldOut = Callable[[GatedModule, tuple[Any, Any], Loss, int], list[Draw]]

UNSEEN = 30
"""So many steps in a row may say nothing of the gates: a loss scaler finds its scale in half of them."""

FROZEN = "the gates of this network take no gradients"
FREEZE = "freeze its weights alone: net.network.requires_grad_(False); net.gate_vector.requires_grad_(True)"


class SaidByTraining:
    """Asked once after every training step. A single step may say nothing: a loss scaler skips it where it overflows;
    many in a row are a fault of the loop."""

    def __init__(self) -> None:
        self._silent = 0
        """Steps in a row that have said nothing."""

    def taken(self, vector: GateVector) -> list[Draw]:
        """The draws that the step was made from, in all processes or in none.

        Raises `TrainingError` if no loss was made from the network, if a backward pass came too late, and where it has
        said nothing for long."""
        draws = vector.draws
        if not draws.made:
            if not vector.theta.requires_grad:
                raise TrainingError(FROZEN, remedy=FREEZE)
            raise TrainingError(
                "no loss was made from the network with gates since the last step",
                remedy="call controller.step() after optimizer.step() (of several optimizers once, after the last), in "
                "train() mode, with the loss made from net(x) (not within torch.func.grad or vmap, which say nothing "
                "of the gates)",
            )
        if draws.were_late:
            raise TrainingError(
                "a backward pass came to a forward pass that was made before the last step of the gates: the network "
                "may become smaller in between",
                remedy="call controller.step() after loss.backward() and optimizer.step(), before the next net(x)",
            )
        made, taken = draws.made, draws.take()
        if not is_same_everywhere(vector.theta.device, made, len(taken)):  # one of them left a batch out
            # then none learns from this step; what is drawn next must be the same everywhere again
            taken, state = [], vector.random_state.to(vector.theta.device)
            from_main(state)
            vector.random_state = state.cpu()
        self._silent = 0 if taken else self._silent + 1
        if self._silent == UNSEEN:
            _raise_silent(draws.reached)
        return taken


def _raise_silent(were_reached: bool) -> None:
    if not were_reached:
        raise TrainingError(
            f"in {UNSEEN} steps no backward pass came to the gates: gradients of the weights alone, by "
            "torch.autograd.grad, say nothing of them",
            remedy="call loss.backward(), or torch.autograd.grad(loss, [*weights, *net.gate_parameters()])",
        )
    raise TrainingError(
        f"in {UNSEEN} steps no optimizer that the controller knows made a step with gradients of the network",
        remedy="pass the controller the optimizers whose step() the loop calls, and clear gradients after it",
    )


def held_out_batch(batch: tuple[Any, Any] | None, held_out: HeldOut | None) -> tuple[Any, Any]:
    """The batch that a step was given, else the next of those given at the start. Raises `InputError` without both."""
    if batch is not None:
        return batch
    if held_out is None:
        raise InputError(
            'policy="ratio" learns from batches that the weights do not see, and there are none',
            remedy="give held_out= a data loader, and loss=, to GateController",
        )
    return held_out.next()


def said_by_held_out(net: GatedModule, batch: tuple[Any, Any], loss: Loss, step: int) -> list[Draw]:
    """The draws of a batch that the weights do not see. Raises `TrainingError` if its loss is not finite."""
    vector = net.gate_vector
    read = read_batch(batch, net).to(vector.theta.device)
    with torch.enable_grad():
        try:
            output = call(net, net, read.inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            remedy = "give pairs of inputs and targets, the inputs as in training"
            raise InputError(f"the network does not take a held-out batch: {error}", remedy=remedy) from error
        value = checked(loss(output, read.targets))
        draws = vector.differentiated(value)
    if not math.isfinite(float(value.detach())):
        raise TrainingError(
            f"the loss of a held-out batch is {value.item()}",
            where=f"step {step}",
            remedy="lower the learning rate or check the held-out data",
        )
    return draws
