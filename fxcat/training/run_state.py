"""All that a run of `fit` goes on from, in one nested value, and back.

Network, optimizer, gates and schedule are the same in all processes; random states, data order and recent inputs are
each process's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fxcat.errors import InputError
from fxcat.gate_training.controller import GateController
from fxcat.gate_training.settings import check_settings
from fxcat.network.module_state import extra_of, first_difference, put_extra, put_tensors, shapes_of, tensors_of
from fxcat.network.recipe import check_shapes
from fxcat.training.history import EpochRecord, History
from fxcat.training.optimizer_state import check_optimizer, optimizer_state, set_optimizer_state
from fxcat.training.weights import WeightTraining
from fxcat.utils.json_tensors import pack
from fxcat.utils.processes import from_everyone, rank
from fxcat.utils.random_state import (
    check_loader,
    loader_state,
    random_states,
    set_loader_state,
    set_random_states,
    warn_of_lost_state,
)


@dataclass(frozen=True, slots=True)
class RunState:
    """The objects of a run that have a state. `loaders`: by the names of `fit`'s arguments."""

    settings: Mapping[str, Any]
    controller: GateController
    weights: WeightTraining
    loaders: Mapping[str, Any]
    history: History

    def check_storable(self) -> None:
        """Raise `InputError` now if the state cannot be stored, rather than after the first epoch; warn if not all."""
        pack(self.collect([]), {}, "state")
        for name, loader in self.loaders.items():
            warn_of_lost_state(loader, f"{name}=")

    def collect(self, recent: list[Any]) -> dict[str, Any]:
        """The state between two epochs; `recent`: inputs that the next epoch still needs."""
        net = self.controller.net
        loaders = {name: loader_state(loader) for name, loader in self.loaders.items()}
        own = {"loaders": loaders, "random": random_states(), "recent": recent}
        return {
            "settings": dict(self.settings),
            "shapes": dict(net.recipe[-1].shapes),
            "network": tensors_of(net.network),
            "extra": extra_of(net.network),
            "controller": self.controller.state_dict(),
            "optimizer": optimizer_state(self.weights.optimizer, net.network),
            "scheduler": None if self.weights.scheduler is None else self.weights.scheduler.state_dict(),
            "scaler": self.weights.scaler.state_dict(),
            "averages": [tensors_of(a) for a in self.weights.averages],
            "processes": from_everyone(own),
            "history": {"epochs": [asdict(e) for e in self.history.epochs], "shrunk_at": self.history.shrunk_at},
        }

    def restore(self, state: Mapping[str, Any]) -> list[Any]:
        """Go on from a state, with a network that has just been prepared; returns the recent inputs.

        Raises `InputError` if it is that of another run; then nothing has changed.
        """
        net, optimizer, processes = self.controller.net, self.weights.optimizer, state["processes"]
        own = processes[rank() % len(processes)]
        prolonged = check_settings(self.settings, state["settings"], may_grow="epochs")
        check_shapes(net.recipe[-1].shapes, state["shapes"])
        check_optimizer(optimizer, net.network, state["optimizer"], state["network"])
        for name, loader in self.loaders.items():
            check_loader(loader, own["loaders"][name], f"{name}=")
        self.controller.load_state_dict(state["controller"])
        differs = first_difference(shapes_of(net.network), {n: tuple(t.shape) for n, t in state["network"].items()})
        if differs is not None:
            raise InputError(f"the network did not become what it was: {differs}", remedy="call prepare() as before")
        put_tensors(net.network, state["network"])
        put_extra(net.network, state["extra"])
        epochs = [EpochRecord(**e) for e in state["history"]["epochs"]]
        scheduled = (
            self.weights.scheduled([e.loss for e in epochs], self.settings["steps_per_epoch"]) if prolonged else []
        )
        set_optimizer_state(optimizer, net.network, state["optimizer"])
        for group, options in zip(optimizer.param_groups, scheduled, strict=False):
            group |= options
        if self.weights.scheduler is not None and not prolonged:
            self.weights.scheduler.load_state_dict(state["scheduler"])
        for average, tensors in zip(self.weights.averages, state["averages"], strict=True):
            put_tensors(average, tensors)
        if state["scaler"]:
            self.weights.scaler.load_state_dict(state["scaler"])
        for name, loader in self.loaders.items():
            set_loader_state(loader, own["loaders"][name])
        self.history.epochs[:] = epochs
        self.history.shrunk_at = state["history"]["shrunk_at"]
        set_random_states(own["random"])
        if rank() >= len(processes):
            torch.manual_seed(int(torch.randint(2**31, ())) + rank())  # a stream of its own for a new process
        return own["recent"]
