"""Files and folders that are written, or an error that says which of them cannot be, and why."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from fxcat.errors import StorageError

_TEMPORARY = ".tmp"
"""How the name of a file ends that is still being written."""


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


def write_text(path: Path, text: str, what: str) -> None:
    """Write a text file. `what`: the name of what is written. Raises `StorageError` if the path cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{what} cannot be written: {error}", where=str(path)) from error


def write_whole(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write a file atomically: at any moment, also after a power failure, `path` holds the old file or the whole new
    one. `previous`: receives the old one. Raises `StorageError`; then `path` is what it was."""
    check_free(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"the file cannot be written: {error}", where=str(path), remedy="check the folder, its rights and its space"
        ) from error


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what a killed process has left of writing the file `name` whole. Raises `StorageError`."""
    try:
        for file in folder.glob(f"{name}.*{_TEMPORARY}"):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"an unfinished file cannot be removed: {error}", where=str(folder)) from error


def make_folder(folder: Path, what: str) -> None:
    """Make a folder in which files can be made. `what`: those that will be. Raises `StorageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written: {error}",
            where=str(folder),
            remedy="give a folder that can be made and written",
        ) from error


def _sync_folder(folder: Path) -> None:
    """The names in the folder are on the disk, too."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
