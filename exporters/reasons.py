"""What to say about an exception that came from elsewhere: its gist, and the line of the user's code."""

from __future__ import annotations

import os
import traceback

import torch


def first_line(error: Exception) -> str:
    """What an exception says; the reason of a violated constraint is in its second line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    count = 2 if lines and lines[0].startswith("Constraints violated") else 1
    return " ".join(lines[:count]) or type(error).__name__


def source_line(error: Exception) -> str | None:
    """The innermost line of code that belongs neither to torch nor to this folder."""
    own = (os.path.dirname(torch.__file__), os.path.dirname(__file__), "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
