"""The teacher of a run of `fit`: what it computes, how much it counts, and that it stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxcat.data.batches import call
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.network.module_state import tensors_of
from fxcat.training.distillation import distillation_loss
from fxcat.utils.processes import from_everyone, from_main
from fxcat.utils.safetensors_file import checksum

DistillationLoss = Callable[[Any, Any], torch.Tensor]
WEIGHT = 0.5
"""How much the teacher counts if nothing else is said."""
SHOWN = 12
"""How many digits of a digest tell teachers apart, and fit into an error message."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """`loss` of the network's and the teacher's output, which counts `weight` in [0, 1], and the task's loss the rest.

    `identity`: what kind of network the teacher is, and a digest of its weights; the same in all processes.
    """

    module: nn.Module
    loss: DistillationLoss
    weight: float
    identity: str

    @classmethod
    def begin(
        cls,
        net: GatedModule,
        teacher: nn.Module | bool | None,
        loss: DistillationLoss,
        weight: float,
        device: torch.device,
    ) -> Teacher | None:
        """The teacher that `fit` was asked for, on the device; True is a copy of the network with all gates open.

        Raises `InputError` for arguments that do not fit each other, a teacher that shares weights with the network,
        and one that is not the same in all processes.
        """
        if teacher is None or teacher is False:
            if loss is not distillation_loss or weight != WEIGHT:
                given = "distillation" if loss is not distillation_loss else "distillation_weight"
                raise InputError(f"{given}= was given, and no teacher", remedy="give teacher= too")
            return None
        if not 0 <= weight <= 1:
            raise InputError(f"distillation_weight={weight} is not in [0, 1]")
        if teacher is True:
            return cls._made(_copy_of(net), loss, weight)
        if not isinstance(teacher, nn.Module):
            raise InputError(
                f"teacher= got a {type(teacher).__name__}",
                remedy="give True (the network as it is now) or a torch.nn.Module",
            )
        own = {id(p) for p in net.parameters()}
        if any(id(p) in own for p in teacher.parameters()):
            raise InputError(
                "the teacher holds weights of the network that is trained: it would not stay what it is",
                remedy="give teacher=True for a copy of the network",
            )
        made = cls._made(teacher.to(device), loss, weight)
        if len(set(from_everyone(made.identity))) > 1:
            raise InputError(
                "the teacher's weights differ between the processes",
                remedy="load the same weights in every process",
            )
        return made

    @classmethod
    def _made(cls, module: nn.Module, loss: DistillationLoss, weight: float) -> Teacher:
        digest = checksum({name: t.cpu().contiguous() for name, t in tensors_of(module).items()}, {})
        return cls(module, loss, weight, f"{type(module).__name__} {digest[:SHOWN]}")

    def output(self, net: GatedModule, inputs: Any) -> Any:
        """What the teacher makes of inputs; without a history, so that none of its weights gets a gradient."""
        with torch.no_grad():
            return call(self.module, net, inputs)

    def mixed(self, task: torch.Tensor, distillation: torch.Tensor) -> torch.Tensor:
        """What is minimised."""
        return (1 - self.weight) * task + self.weight * distillation


def teacher_settings(teacher: Teacher | None) -> dict[str, Any]:
    """What a run that goes on must have again, by the names of `fit`'s arguments."""
    return {
        "teacher": None if teacher is None else teacher.identity,
        "distillation_weight": None if teacher is None else teacher.weight,
    }


def _copy_of(net: GatedModule) -> nn.Module:
    """The network as it is now, all gates open and without them; of rank 0 in all processes, as its weights are."""
    gates, units = torch.ones_like(net.gate_vector.theta.detach()), net.gate_vector.unit_count
    copy = net.program.finalized(net.network, gates[:units], gates[units:]).requires_grad_(False)
    for tensor in tensors_of(copy).values():
        sent = tensor.contiguous()  # collectives refuse other memory formats
        from_main(sent)
        tensor.copy_(sent)
    return copy
