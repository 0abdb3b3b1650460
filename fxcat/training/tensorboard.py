"""TensorBoard logs of `fit`, by `torch.utils.tensorboard`; the package `tensorboard` is optional."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fxcat.errors import InputError
from fxcat.training.history import EpochRecord
from fxcat.utils.written_files import make_folder

_log = logging.getLogger(__name__)


class TensorBoard:
    """Scalars of every epoch in an event file; nothing without a folder. Epochs count from 1, as in the plots.

    Raises `InputError` without the package, and `StorageError` at once if the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "log_dir= needs the package tensorboard", remedy='pip install "fxcat[tensorboard]"'
            ) from error
        make_folder(Path(folder), "TensorBoard logs")  # the writer's own thread would fail later, and silently
        self._writer = SummaryWriter(folder)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def write(self, record: EpochRecord) -> None:
        """Add the scalars of one epoch."""
        if self._writer is None:
            return
        try:
            for name, value in _scalars(record).items():
                if value is not None:
                    self._writer.add_scalar(name, value, record.epoch + 1)
            self._writer.flush()
        except OSError as error:  # a full disk must not end the training
            _log.warning("TensorBoard logs end here: %s", error)
            self._writer = None


def _scalars(record: EpochRecord) -> dict[str, float | None]:
    return {
        "loss/training": record.train_loss,
        "loss/validation": record.val_loss,
        "loss/distillation": record.distillation_loss,
        "accuracy/training": record.train_accuracy,
        "accuracy/validation": record.val_accuracy,
        "cost/MACs": record.macs,
        "cost/parameters": record.params,
        "cost/latency": record.latency,
        "gates/undecided": record.undecided,
        "gates/open sections": record.open_sections,
        "learning_rate": record.learning_rate,
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
        **{f"live_units/{name}": count for name, count in record.open_units.items()},
    }
