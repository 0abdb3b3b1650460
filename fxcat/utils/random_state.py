"""All random states that a run depends on: the process's, and those of its data loaders."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fxcat.errors import InputError

_log = logging.getLogger(__name__)


def random_states() -> dict[str, Any]:
    """States of the random generators of PyTorch (CPU and CUDA), Python and NumPy, as plain data and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": on_devices,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on from them; states of CUDA devices that are not there are left out."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:  # without any, looking for devices takes most of the time
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def loader_state(loader: Any) -> Any:
    """Where a data loader is between two epochs.

    What its own `state_dict` says if it has one, otherwise the states of the `torch.Generator`s in its attributes and
    in those of its samplers and data set.
    """
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return {"own": loader.state_dict()}
    return {"generators": {path: g.get_state() for path, g in _generators(loader)}}


def set_loader_state(loader: Any, state: Mapping[str, Any]) -> None:
    """Go on from it."""
    if "own" in state:
        loader.load_state_dict(state["own"])
        return
    for path, generator in _generators(loader):
        generator.set_state(state["generators"][path])


def check_loader(loader: Any, state: Mapping[str, Any], name: str) -> None:
    """Raise `InputError` if a loader cannot go on from a state: it is made in another way than the one then."""
    found = loader_state(loader)
    if found.keys() != state.keys() or found.get("generators", {}).keys() != state.get("generators", {}).keys():
        raise InputError(
            f"{name} has other random generators than the one of the run that was stored",
            remedy="make the data loader in the same way, with generator= if it had one",
        )


def warn_of_lost_state(loader: Any, name: str) -> None:
    """Say so if a part of a loader's state cannot be stored."""
    if getattr(loader, "persistent_workers", False):
        _log.warning(
            "%s has persistent workers, whose random states cannot be stored: a resumed run will see other data than "
            "one that is not interrupted. Leave persistent_workers out if that matters",
            name,
        )


def _generators(loader: Any) -> Iterator[tuple[str, torch.Generator]]:
    """Paths and generators; one that several share comes once."""
    batches = getattr(loader, "batch_sampler", None)
    holders = {
        "loader": loader,
        "sampler": getattr(loader, "sampler", None),
        "batch_sampler": batches,
        "batch_sampler.sampler": getattr(batches, "sampler", None),
        "dataset": getattr(loader, "dataset", None),
    }
    seen: set[int] = set()
    for path, holder in holders.items():
        for name, value in getattr(holder, "__dict__", {}).items():
            if isinstance(value, torch.Generator) and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}", value
