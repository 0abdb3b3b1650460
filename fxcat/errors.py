"""Every error that a user can cause: what happened, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class FxcatError(Exception):
    """Base of all fxcat errors."""

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if remedy:
            lines.append(f"  what to do: {remedy}")
        super().__init__("\n".join(lines))


class InputError(FxcatError):
    """An argument of the wrong type, shape or value."""


class CaptureError(FxcatError):
    """The model cannot be captured as a graph."""


class NothingToPruneError(FxcatError):
    """The model has neither a unit nor a section that could be removed."""


class TargetError(FxcatError):
    """A target or pressure that is out of range or cannot be reached."""


class PlanError(FxcatError):
    """A gate setting that cannot be turned into a network."""


class VerificationError(FxcatError):
    """Two networks that should compute the same do not."""


class ExportError(FxcatError):
    """The ONNX export failed or does not compute what the module computes."""


class TrainingError(FxcatError):
    """Training cannot go on."""


class StorageError(FxcatError):
    """A file cannot be read or written."""


@contextmanager
def located(where: str) -> Generator[None, None, None]:
    """Errors in a block that name no place name this one."""
    try:
        yield
    except FxcatError as error:
        if error.where is not None:
            raise
        raise type(error)(error.what, where=where, remedy=error.remedy) from error
