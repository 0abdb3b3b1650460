"""JSON files of results: written and read in one way, whatever they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from fxcat.checks import as_path
from fxcat.errors import StorageError
from fxcat.utils.written_files import write_text

T = TypeVar("T")


def write_json(path: str | os.PathLike[str], content: Any, what: str) -> None:
    """`what`: the name of what is written. Raises `StorageError` if the path cannot be written."""
    write_text(as_path(path), json.dumps(content, indent=1) + "\n", f"the {what}")


def read_json(path: str | os.PathLike[str], parsed: Callable[[Any], T], what: str, *, remedy: str) -> T:
    """What `parsed` makes of a file's content. Raises `StorageError` if the path cannot be read or `parsed` raises
    what content of another form leads to."""
    file = as_path(path)
    try:
        return parsed(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"no {what} can be read: {type(error).__name__}: {error}", where=str(path), remedy=remedy
        ) from error
