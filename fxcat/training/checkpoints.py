"""Checkpoints of `fit` in a folder: the last two states of a run, and its best network."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxcat.checks import as_path
from fxcat.errors import StorageError, located
from fxcat.gated import GatedModule
from fxcat.network.recipe_schema import CLOSED, GATES, SHAPES, check_closed
from fxcat.storage import save
from fxcat.utils import schema
from fxcat.utils.json_tensors import pack, unpack
from fxcat.utils.processes import is_main
from fxcat.utils.safetensors_file import read_tensors, write_tensors
from fxcat.utils.written_files import make_folder, remove_unfinished

KIND = "fxcat-checkpoint-5"

_TENSORS = schema.named(schema.tensor)
_PLAIN = schema.named(schema.anything)
_CONTROLLER = {"gates": GATES, "closed": CLOSED, "steps": schema.integer(1 << 53)}
_STATE = schema.record(
    {
        **dict.fromkeys(("settings", "controller", "extra", "scaler"), _PLAIN),
        "shapes": SHAPES,
        "network": _TENSORS,
        "optimizer": schema.record({"state": _PLAIN, "others": _TENSORS}),
        "scheduler": schema.optional(_PLAIN),
        "averages": schema.listed(_TENSORS, 1000),
        "processes": schema.listed(_PLAIN, 1_000_000, 1),
        "history": schema.record(
            {"epochs": schema.listed(_PLAIN, 10_000_000), "shrunk_at": schema.optional(schema.integer(1 << 53))}
        ),
    }
)
"""What a state is made of; what is in its parts is known to those that they are of (`RunState.restore`)."""

_log = logging.getLogger(__name__)


class Checkpoints:
    """`last.safetensors`, `previous.safetensors` and `best.safetensors` in a folder.

    The last and the previous one hold all that a run goes on from; the best one is the network of the best validation
    accuracy with the final structure, a file that `load` reads. A run that begins anew replaces those of another.
    Raises `StorageError` at once if the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder, "checkpoint_dir")
        self._last, self._previous, self._best = (
            self.folder / f"{name}.safetensors" for name in ("last", "previous", "best")
        )
        self._resumed = False
        self._last_is_whole = False
        make_folder(self.folder, "checkpoints")

    def newest(self) -> dict[str, Any] | None:
        """The state in the newest checkpoint that is whole; None if there is none at all.

        Raises `StorageError` if there are checkpoints, and none can be used.
        """
        for path in (self._last, self._best):
            remove_unfinished(self.folder, path.name)
        refused: list[StorageError] = []
        for path in (self._last, self._previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except StorageError as error:
                refused.append(error)
                continue
            for error in refused:
                _log.warning("%s\ngoing on from %s instead", error, path)
            self._resumed, self._last_is_whole = True, not refused
            return state
        if refused:
            raise StorageError(
                f"no checkpoint can be used: {refused[0].what}",
                where=str(self.folder),
                remedy="remove the folder's checkpoints to start anew, or restore one from a copy",
            ) from refused[0]
        return None

    def save(self, state: Mapping[str, Any], net: GatedModule, *, best: bool) -> None:
        """Write the state after an epoch, and the network too if it is the best one so far; rank 0 does.

        Raises `StorageError`.
        """
        if not is_main():
            return
        tensors: dict[str, torch.Tensor] = {}
        packed = pack(dict(state), tensors, "state")
        with located(str(self.folder)):
            if not self._resumed:  # of an earlier run
                _remove(self._previous, self._best)
            if best:
                # before the state that says so: a process that is killed in between trains this epoch again
                save(net, self._best)
            # a damaged file must not push out the one before it
            backup = self._previous if self._last_is_whole else None
            write_tensors(self._last, KIND, tensors, {"state": json.dumps(packed)}, previous=backup)
        self._resumed = self._last_is_whole = True


def _read(path: Path) -> dict[str, Any]:
    tensors, texts = read_tensors(path, KIND)
    try:
        state = unpack(json.loads(texts["state"]), tensors)
        _STATE(state, "the state")
        for name, check in _CONTROLLER.items():
            check(state["controller"][name], f"the state.controller.{name}")
        check_closed(state["controller"]["gates"], state["controller"]["closed"])
        return state
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"the state in this checkpoint cannot be read: {error}", where=str(path)) from error


def _remove(*paths: Path) -> None:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"a checkpoint of an earlier run cannot be removed: {error}") from error
