"""Checkpoints of `fit`: weights, gates and the history so far, as safetensors. Nothing in them can execute."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from fxcat.errors import StorageError
from fxcat.gated import GatedModule
from fxcat.history import EpochRecord, History


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: the path holds the old file or the whole new one.

    Raises `StorageError`.
    """
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        try:
            save_file(own, temporary, dict(metadata))
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"the file cannot be written: {error}", where=str(path), remedy="check the folder, its rights and its space"
        ) from error


class Checkpoints:
    """`last.safetensors` and `best.safetensors` in a folder; nothing without a folder.

    Raises `StorageError` at once if the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise StorageError(
                f"checkpoints cannot be written: {error}",
                where=str(self.folder),
                remedy="give a folder that can be made and written",
            ) from error

    def save(self, net: GatedModule, history: History, record: EpochRecord) -> None:
        """Save after an epoch: always the last, and the best so far once the structure is final."""
        if self.folder is None:
            return
        tensors = {f"network.{k}": v for k, v in net.network.state_dict().items()}
        tensors["theta"] = net.gate_vector.theta
        tensors["numbers"] = net.gate_vector.numbers
        metadata = {"format": "fxcat-checkpoint-1", "history": json.dumps([asdict(e) for e in history.epochs])}
        write_tensors(self.folder / "last.safetensors", tensors, metadata)
        if history.best is record:
            write_tensors(self.folder / "best.safetensors", tensors, metadata)
