"""Which line of the model's Python is running, or has failed."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

from torch import nn


def running_line() -> tuple[str, int]:
    """The file and the line of the model's Python that is running; of plain containers of layers there is none."""
    frame: types.FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("torch.", "fxcat.passes.")):
        frame = frame.f_back  # without a call of `_name`: every node asks
    if frame is None or _name(frame).startswith("fxcat."):
        return "unknown file", 0
    return frame.f_code.co_filename, frame.f_lineno


def _name(frame: types.FrameType) -> str:
    return frame.f_globals.get("__name__", "")


def innermost_line(error: BaseException | None = None) -> str:
    """File and line of the innermost frame of the user's code: of what is running, or of what raised an error."""
    frames = [f for f, _ in _walk_traceback(error)] if error is not None else [f.frame for f in inspect.stack()[::-1]]
    place = "unknown line"
    for frame in frames:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not _name(frame).startswith(("torch.", "fxcat.")):
            line = frame.f_lineno
            if error is not None:
                line = next(n for f, n in _walk_traceback(error) if f is frame)
            place = f"{frame.f_code.co_filename}:{line}"
    return place


def _walk_traceback(error: BaseException) -> list[tuple[Any, int]]:
    frames: list[tuple[Any, int]] = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames
