"""A file that appears under its name only when it is complete and checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fxcat.errors import StorageError
from fxcat.utils.written_files import check_free


@contextmanager
def staged(target: Path) -> Generator[Path, None, None]:
    """A path of the same name in a new folder beside `target`: what is written there replaces `target` when the block
    ends without an error, and is gone otherwise. Further files beside it move too, before it.

    Raises `StorageError` at once if the folder of `target` cannot be written.
    """
    if target.is_dir():
        raise StorageError("the path is a folder", where=str(target), remedy="give the name of a file")
    check_free(target)
    if not target.parent.is_dir():
        raise StorageError(
            "the folder does not exist", where=str(target.parent), remedy="make it first, or choose another path"
        )
    try:
        # In the same folder, so that the move is a renaming: it happens whole or not at all.
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise StorageError(
            f"the folder cannot be written: {error.strerror}",
            where=str(target.parent),
            remedy="make it writable, or choose another path",
        ) from error
    with folder:
        temporary = Path(folder.name) / target.name
        yield temporary
        try:
            for file in sorted(temporary.parent.iterdir(), key=lambda f: f == temporary):
                os.replace(file, target.parent / file.name)
        except OSError as error:
            raise StorageError(
                f"the file cannot be put in place: {error.strerror}", where=str(target), remedy="choose another path"
            ) from error
