"""Where a file is going to be put in place as a whole, nothing may be but a file."""

from __future__ import annotations

from pathlib import Path

from fxcat.errors import StorageError


def check_free(path: Path) -> None:
    """Raise `StorageError` for a device, a pipe or a socket: a file that is put in its place would end it."""
    try:
        is_other = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as error:
        raise StorageError(
            f"the path cannot be used: {error}", where=str(path), remedy="choose another path"
        ) from error
    if is_other:
        raise StorageError(
            "what is there is no file, and would be replaced by one", where=str(path), remedy="give the path of a file"
        )
