"""Image files by matplotlib, which is optional."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fxcat.errors import InputError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches. Raises `InputError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib", remedy='pip install "fxcat[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure into an image file of the path's suffix.

    Raises `StorageError` if the path cannot be written, `InputError` for a suffix that matplotlib does not know.
    """
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StorageError(f"the plot cannot be written: {error}", where=str(path)) from error
    except ValueError as error:
        raise InputError(f"the plot cannot be written: {error}", where=str(path), remedy="use .png or .svg") from error
