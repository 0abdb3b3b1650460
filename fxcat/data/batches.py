"""What data loaders yield, as arguments of a network and targets of a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.network.draws import batch_size

Unpack = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """`inputs`: what the network is called with, read by `call`. `targets`: what the loss is given, too."""

    inputs: Any
    targets: Any

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device."""
        return replace(self, inputs=moved(self.inputs, device), targets=moved(self.targets, device))

    @property
    def size(self) -> int:
        """Examples."""
        return batch_size((self.inputs,)) or 1


def read_batch(found: Any, net: GatedModule, unpack: Unpack | None = None) -> Batch:
    """A pair is (inputs, targets). A mapping holds arguments of `forward` by name, and is the targets too; without such
    names it is the one argument. A tensor is both inputs and targets. `unpack`: makes a pair of anything else.

    Raises `InputError` for batches of another form.
    """
    if unpack is not None:
        found = unpack(found)
    leaves = pytree.tree_leaves(found)
    if any(isinstance(x, torch.Tensor) and x.is_meta for x in leaves):
        raise InputError(
            "a data loader yields a tensor on the meta device, which holds no values",
            remedy="make the data outside of torch.device('meta')",
        )
    arrays = [x for x in leaves if isinstance(x, np.ndarray)]
    if arrays:
        raise InputError(
            f"a data loader yields a NumPy array of shape {arrays[0].shape}",
            remedy="make tensors of arrays: torch.from_numpy, or a torch.utils.data.DataLoader, which does so",
        )
    if isinstance(found, torch.Tensor):
        return Batch(found, found)
    if isinstance(found, Mapping):
        names = _names(net)
        named: dict[str, Any] = {k: v for k, v in found.items() if names is None or k in names}
        return Batch(named or found, found)
    if isinstance(found, list | tuple) and len(found) == 2:  # pyright: ignore[reportUnknownArgumentType]
        return Batch(found[0], found[1])
    what = f"{type(found).__name__} of {len(found)}" if isinstance(found, list | tuple) else type(found).__name__
    raise InputError(
        f"a data loader yields a {what}, not (inputs, targets)",
        remedy="give unpack=, a function from what the loader yields to (inputs, targets)",
    )


def call(model: Callable[..., Any], net: GatedModule, inputs: Any) -> Any:
    """Call a model on inputs: a tuple holds arguments if `forward` takes as many, a mapping with names of its arguments
    holds them by name; all else is one argument. `net`: whose `forward` that is."""
    if isinstance(inputs, Mapping):
        names = _names(net)
        if names is None or all(k in names for k in inputs):  # pyright: ignore[reportUnknownVariableType]
            return model(**inputs)
    if isinstance(inputs, list | tuple) and _takes(net, inputs):
        return model(*inputs)
    return model(inputs)


def _names(net: GatedModule) -> set[str] | None:
    """Of the arguments of `forward`; None if it takes any."""
    parameters = inspect.signature(net.network.forward).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _takes(net: GatedModule, inputs: list[Any] | tuple[Any, ...]) -> bool:
    """Whether several inputs are arguments: `forward` takes so many, and was not captured with one that holds them."""
    if isinstance(inputs, list) and all(isinstance(x, torch.Tensor) and x.dim() == 3 for x in inputs):
        return False  # images of a detector
    parameters = list(inspect.signature(net.network.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    return max(2, required) <= len(inputs) <= len(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def moved(value: Any, device: torch.device) -> Any:
    """The same value with all tensors in it on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device, non_blocking=True), value)


_END = object()


class _OverAndOver:
    """Batches one by one; the first after the last."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._rest: Iterator[Any] = iter(())

    def next(self) -> Any:
        """The next one; `_END` if there is none at all."""
        found = next(self._rest, _END)
        if found is _END:
            self._rest = iter(self._batches)
            found = next(self._rest, _END)
        return found


class HeldOut:
    """Batches that the weights do not see, over and over."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = _OverAndOver(batches)

    def next(self) -> tuple[Any, Any]:
        """The next one. Raises `InputError` if there is none at all."""
        found = self._batches.next()
        if found is _END:
            raise InputError("held_out= has no batch", remedy="give a data loader, or a list of (inputs, targets)")
        return found


class Repeated:
    """A loader without a length, cut into epochs of so many steps; it is begun again when it has ended.

    Iterating raises `InputError` if it yields nothing at all."""

    def __init__(self, loader: Iterable[Any], steps: int) -> None:
        self._loader, self._steps = loader, steps
        self._batches = _OverAndOver(loader)

    def __len__(self) -> int:
        return self._steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._steps):
            found = self._batches.next()
            if found is _END:
                raise InputError(
                    "train_loader yields nothing, or nothing more",
                    remedy="give what can be iterated over anew in every epoch: a data loader or a list, no generator",
                )
            yield found
