"""Safetensors files that are whole or not there, and that show when they are damaged. Reading one executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from fxcat.errors import StorageError
from fxcat.utils.written_files import write_whole

FORMAT = "pt"
"""Says whose tensors these are, as loaders ask for (`transformers`)."""


def write_tensors(
    path: Path,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    texts: Mapping[str, str],
    *,
    previous: Path | None = None,
) -> None:
    """Write a safetensors file atomically: at any moment `path` holds the old file or the whole new one.

    `kind`: what the file is, asked for again when it is read. `texts`: goes into its header. `previous`: receives the
    file that was at `path`. Raises `StorageError`; then `path` is what it was.
    """
    # one after the other: tensors may share memory, which the format refuses
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    marked = {**texts, "format": FORMAT, "kind": kind}
    header = {**marked, "checksum": checksum(own, marked)}
    try:
        content = serialize(own, header)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(
            f"a tensor cannot be stored as safetensors: {error}", where=str(path), remedy="use another type of numbers"
        ) from error
    write_whole(path, content, previous=previous)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, on the CPU, and texts of a file of the given kind.

    Raises `StorageError` if it cannot be read, is of another kind, or is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            found = header.get("kind", header.get("format"))  # earlier versions had one mark for both
            if found != kind:
                raise StorageError(
                    f"this is not a file of the kind {kind!r}" + (f", but {found!r}" if found else ""),
                    where=str(path),
                    remedy="give a file that this version of fxcat has written for this purpose",
                )
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118  (no mapping; read it now)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StorageError(
            f"the file cannot be read: {error}", where=str(path), remedy="it is damaged, or no safetensors file"
        ) from error
    written = header.pop("checksum", None)
    if written != checksum(tensors, header):
        raise StorageError(
            "the file is damaged: its checksum is not that of its contents",
            where=str(path),
            remedy="copy it again, or use an earlier one",
        )
    return tensors, {name: text for name, text in header.items() if name not in ("format", "kind")}


def checksum(tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 over texts, and over names, types, shapes and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
