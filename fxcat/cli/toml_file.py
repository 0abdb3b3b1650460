"""Settings as a TOML file, and back."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fxcat.cli.settings import Settings, kind_of_values, with_target
from fxcat.errors import InputError, StorageError
from fxcat.utils.written_files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # of Python 3.10 alone


def read_settings(path: Path) -> Settings:
    """The settings in a file; what it does not say is as usual. Raises `StorageError` and `InputError`."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"no settings can be read: {error}", where=str(path), remedy="write TOML: [model], and below it name = …"
        ) from error
    settings = with_settings(Settings(), content, str(path))
    beside = path.parent / (settings.prune.latency_table or "")
    if beside.is_file():  # that of a run lies in its folder, wherever that has been moved to
        settings = replace(settings, prune=replace(settings.prune, latency_table=str(beside)))
    return settings


def with_settings(settings: Settings, content: Mapping[str, Any], where: str | None = None) -> Settings:
    """The settings with other values, `content`: table → name → value. Raises `InputError` for unknown names, and
    values of another type, or that are too small."""
    parts = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for table, values in content.items():
        _check_known(table, parts, "table", where)
        if not isinstance(values, Mapping):
            raise InputError(f"{table} is no table", where=where, remedy=f"write [{table}] and its settings below")
        kinds = {name: kind_of_values(hint) for name, hint in get_type_hints(type(parts[table])).items()}
        least = {f.name: f.metadata["least"] for f in fields(parts[table])}
        found: dict[str, Any] = {}
        for name, value in values.items():  # pyright: ignore[reportUnknownVariableType]
            _check_known(str(name), kinds, f"setting of [{table}]", where)  # pyright: ignore[reportUnknownArgumentType]
            if not _fits(value, kinds[name]):
                raise InputError(
                    f"{table}.{name} = {value!r} is of another type", where=where, remedy=f"give {_said(kinds[name])}"
                )
            if least[str(name)] is not None and value < least[str(name)]:
                raise InputError(
                    f"{table}.{name} = {value} is too small", where=where, remedy=f"give {least[name]}, or more"
                )
            found[str(name)] = value  # pyright: ignore[reportUnknownArgumentType]
        parts[table] = replace(parts[table], **found)
    return Settings(**parts)


def write_settings(settings: Settings, path: Path) -> None:
    """Write all settings, those that are as usual too: what is usual may change. Raises `StorageError`."""
    lines: list[str] = []
    for part in fields(settings):
        record = getattr(settings, part.name)
        values = {f.name: getattr(record, f.name) for f in fields(record)}
        lines += [f"[{part.name}]", *(f"{n} = {_toml(v)}" for n, v in values.items() if v is not None), ""]
    write_text(path, "\n".join(lines), "settings")


def check_same(stored: Settings, asked: Settings, where: str) -> None:
    """Raise `InputError` if a run that is to go on is asked for something else than before."""
    for part in fields(asked):
        before, now = getattr(with_target(stored), part.name), getattr(asked, part.name)
        for setting in fields(now):
            then, value = getattr(before, setting.name), getattr(now, setting.name)
            if then != value and not setting.metadata["free"]:
                raise InputError(
                    f"the run has {part.name}.{setting.name} = {then!r}, and {value!r} is asked for",
                    where=where,
                    remedy="go on with the settings that it had (--epochs may be more), or give another --out",
                )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"  # pyright: ignore[reportUnknownArgumentType]
    return repr(value)


def _check_known(name: str, known: Mapping[str, Any], kind: str, where: str | None) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"there is no {kind} {name!r}", where=where, remedy=remedy)


def _fits(value: Any, kind: type[Any]) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _said(kind: type[Any]) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
    return names.get(kind, "a table")
