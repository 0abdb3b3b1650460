"""JSON files of results: written and read in one way, whatever they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from fxcat.checks import as_path
from fxcat.errors import InputError, StorageError, located
from fxcat.utils.written_files import write_text

T = TypeVar("T")


def write_json(path: str | os.PathLike[str], content: Any, what: str) -> None:
    """`what`: the name of what is written. Raises `StorageError` if the path cannot be written, and `InputError` for
    what JSON cannot hold."""
    file = as_path(path)
    try:
        text = json.dumps(content, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the {what} holds what no JSON file can: {error}", where=str(path), remedy="give numbers and texts"
        ) from error
    write_text(file, text + "\n", f"the {what}")


def read_json(path: str | os.PathLike[str], parsed: Callable[[Any], T], what: str, *, remedy: str) -> T:
    """What `parsed` makes of a file's content. Raises `StorageError` if the path cannot be read or `parsed` raises
    what content of another form leads to."""
    file = as_path(path)
    with located(str(path)):
        return checked_content(lambda: parsed(json.loads(file.read_text(encoding="utf-8"))), what, remedy=remedy)


def checked_content(made: Callable[[], T], what: str, *, remedy: str) -> T:
    """What is made of the content of such a file. Raises `StorageError` where it is of another form."""
    try:
        return made()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"no {what} can be read: {type(error).__name__}: {error}", remedy=remedy) from error
