"""What a published folder says of itself: its `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxcat.checks import as_path, check_flag, check_instance, check_integer, check_text
from fxcat.errors import InputError, StorageError
from fxcat.utils import schema
from fxcat.utils.json_file import write_json
from fxcat.version import __version__

KIND = "fxcat-folder-1"
CONFIG, NETWORK, ONNX, CARD, REPORT = "config.json", "model.safetensors", "model.onnx", "README.md", "report.html"
SOURCE, SOURCE_WEIGHTS = "network.py", "network.safetensors"
_COUNT = schema.integer(2**50)
_ARCHITECTURE = schema.record(
    {"name": schema.text},
    {
        "classes": schema.optional(schema.integer(10**6, least=1)),
        "arguments": schema.optional(schema.named(schema.anything, 100)),
        "bypasses": schema.flag,
    },
)
_CONTENT = schema.record(
    {
        "architecture": schema.optional(_ARCHITECTURE),
        "input_shape": schema.optional(schema.listed(schema.integer(2**20, least=1), 8)),
        "params": _COUNT,
    },
    {
        **dict.fromkeys(("macs", "start_params", "start_macs"), schema.optional(_COUNT)),
        "fxcat_version": schema.text,
    },
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What made the model that was prepared: arguments of `fxcat.named_model`. `bypasses`: it was given residual
    bypasses by `add_bypasses`, for inputs of shape `input_shape`."""

    name: str
    classes: int | None = None
    arguments: Mapping[str, Any] | None = None
    bypasses: bool = False

    def __post_init__(self) -> None:
        check_instance(self.name, str, "Architecture(name)")
        check_integer(self.classes, "Architecture(classes)", least=1, optional=True)
        check_instance(self.arguments, Mapping, "Architecture(arguments)", optional=True)
        check_flag(self.bypasses, "Architecture(bypasses)")
        for argument in self.arguments or ():
            check_text(argument, "Architecture(arguments)", remedy='give them by name: {"image_size": 32}')
        try:
            json.dumps(dict(self.arguments or {}))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Architecture(arguments) are no plain data: {error}", remedy="give numbers, texts and lists of them"
            ) from error


@dataclass(frozen=True, slots=True)
class Config:
    """`input_shape`: of an example. `macs`, `params`: of the small network, and of the model it was made from."""

    architecture: Architecture | None
    input_shape: tuple[int, ...] | None
    params: int
    macs: int | None = None
    start_params: int | None = None
    start_macs: int | None = None
    fxcat_version: str = __version__

    def write(self, path: Path) -> None:
        """Raises `StorageError` if the path cannot be written."""
        write_json(path, {"kind": KIND, **asdict(self)}, "folder")


def read_config(folder: Any) -> Config:
    """Raises `StorageError` for what is no such folder, and for one of another version."""
    path = as_path(folder) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content.pop("kind")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            f"this is no folder of save_folder: {type(error).__name__}: {error}",
            where=str(path),
            remedy=f"give a folder that has a {CONFIG} and a {NETWORK}",
        ) from error
    if kind != KIND:
        raise StorageError(
            f"the folder is of the kind {kind!r}, which this version of fxcat ({__version__}) does not know",
            where=str(path),
            remedy="use the version of fxcat that wrote it, or a newer one",
        )
    try:
        _CONTENT(content, CONFIG)
        architecture, shape = content.pop("architecture"), content.pop("input_shape")
        made = None if architecture is None else Architecture(**architecture)
        return Config(made, None if shape is None else tuple(shape), **content)
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"this is no description that save_folder wrote: {error}",
            where=str(path),
            remedy="get the folder again from where it was published",
        ) from error
