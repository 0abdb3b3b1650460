"""`DistributedDataParallel` round a network whose parameters become others."""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fxcat.checks import check_instance
from fxcat.errors import InputError, TrainingError
from fxcat.utils.processes import is_distributed, is_same_everywhere


class Wrappers:
    """The `DistributedDataParallel`s round a network."""

    def __init__(self) -> None:
        self._found: WeakSet[DistributedDataParallel] = WeakSet()

    def note(self) -> None:
        """A forward pass of the network begins."""
        if is_distributed():
            found: object = DistributedDataParallel._get_active_ddp_module()
            if isinstance(found, DistributedDataParallel) and found not in self._found:
                if found.static_graph:
                    raise InputError(
                        "static_graph=True: the graph does not stay what it is when the network becomes smaller",
                        remedy="leave it out: DistributedDataParallel(net)",
                    )
                self._found.add(found)

    def follow(self, net: nn.Module) -> None:
        """The network has become smaller, or has fewer parameters that are trained.

        Those through which it was called follow, and those that were made for it and not yet called: a state may be
        loaded in between."""
        if is_distributed():
            # by type: what else there is may be a proxy of something that has gone
            objects = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
            self._found.update(o for o in objects if any(m is net for m in o.module.modules()))
        for wrapper in self._found:
            rewrap(wrapper)
        self._found.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Wrappers, ()  # they are not the copy's


def rewrap(ddp: DistributedDataParallel) -> None:
    """Prepare a `DistributedDataParallel` anew for the parameters that its module has now; the object, its arguments,
    hooks and communication hooks stay. Otherwise it would go on with buckets of the parameters as they were, and, with
    `find_unused_parameters=True`, no longer average gradients at all.

    `GateController` does so for those round its network, when it or a state that is loaded changes them. All processes
    must.
    Raises `InputError` if it has a process group of its own: such a one must be made again.
    """
    check_instance(ddp, DistributedDataParallel, "rewrap()")
    try:
        state = ddp.__getstate__()
    except RuntimeError as error:
        raise InputError(
            f"DistributedDataParallel with a process group of its own cannot follow a smaller network: {error}",
            remedy="use the default group, or make it again whenever controller.step() returns True",
        ) from error
    hooks = list(ddp._comm_hooks)  # pyright: ignore[reportPrivateUsage]
    # hooks of the old one on the parameters go with its reducer
    for name in ("reducer", "logger"):
        delattr(ddp, name)
    ignored = ddp.parameters_to_ignore
    left = [p for n, p in ddp.module.named_parameters() if n not in ignored]
    state |= {"_module_parameters": left, "_comm_hooks": [], "_has_rebuilt_buckets": False}
    ddp.__setstate__(state)
    for hook, its_state in hooks:
        ddp.register_comm_hook(its_state, hook)


def check_same_weights(network: nn.Module) -> None:
    """Raise `TrainingError` if the weights are not the same in all processes."""
    if not is_distributed():
        return
    sums = torch.stack([p.detach().double().sum() for p in network.parameters()])
    bits: list[int] = (sums.view(torch.int64) >> 1).tolist()
    if not is_same_everywhere(sums.device, *bits):
        raise TrainingError(
            "the weights differ between processes since the network became smaller",
            remedy="train through DistributedDataParallel(net)",
        )
