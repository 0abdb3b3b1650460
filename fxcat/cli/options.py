"""The options of the commands, made from the settings; and the settings that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import click
from click.shell_completion import CompletionItem

from fxcat.cli.settings import Settings, kind_of_values
from fxcat.cli.toml_file import read_settings, with_settings
from fxcat.errors import InputError
from fxcat.named_models import known_names

MODEL = "MODEL"


class ModelName(click.types.StringParamType):
    """The name of a model, with completion."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in known_names() if name.startswith(incomplete)]


def settings_options(*tables: str, model: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for all settings of these tables, and `--config`; `model`: the model is named by an argument."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for table in reversed(tables):
            kind = {f.name: f for f in fields(Settings)}[table].default_factory
            hints = get_type_hints(kind)
            for setting in reversed(fields(kind)):  # pyright: ignore[reportArgumentType]
                if setting.metadata["flag"] != MODEL:
                    function = _option(table, setting, hints[setting.name])(function)
        path = click.Path(exists=True, dir_okay=False, path_type=Path)
        function = click.option("--config", type=path, help="A TOML file with settings; options override it.")(function)
        return click.argument("model", type=ModelName(), required=False)(function) if model else function

    return decorate


def asked_for(options: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """The settings that options, taken by `settings_options`, ask for; those that are not given are as in the file, as
    in `base`, or as usual. Raises `InputError` and `StorageError`."""
    path = options.get("config")
    settings = read_settings(path) if path is not None else base or Settings()
    given: dict[str, dict[str, Any]] = {}
    if options.get("model") is not None:
        given["model"] = {"name": options["model"]}
    for key, value in options.items():
        table, found, name = key.partition("__")
        if found and value not in (None, ()):
            if isinstance(value, tuple):
                items: list[str] = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                value = _pairs(items) if isinstance(getattr(getattr(settings, table), name), dict) else items
            given.setdefault(table, {})[name] = value
    return with_settings(settings, given)


def _option(table: str, setting: Field[Any], hint: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What is not given is None, or empty: it is not asked for."""
    flag = setting.metadata["flag"] or "--" + setting.name.replace("_", "-")
    dest, usual = f"{table}__{setting.name}", setting.default
    kind = kind_of_values(hint)
    help_text = setting.metadata["help"][0].upper() + setting.metadata["help"][1:]
    if kind is bool:
        return click.option(
            f"{flag}/--no-{flag[2:]}", dest, default=None, help=f"{help_text}. [usual: {'yes' if usual else 'no'}]"
        )
    if kind in (list, dict):
        metavar = "NAME=VALUE" if kind is dict else "NAME"
        return click.option(flag, dest, multiple=True, metavar=metavar, help=f"{help_text}; may be repeated.")
    shown = "." if usual is None else f". [usual: {usual}]"
    return click.option(flag, dest, type=kind, default=None, help=help_text + shown)


def _pairs(items: list[str]) -> dict[str, Any]:
    """name=value; what reads as a number, true or false is one."""
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--arg {item} is no NAME=VALUE", remedy="write --arg image_size=32")
        found[name] = _plain(text)
    return found


def _plain(text: str) -> Any:
    if text in ("true", "false", "True", "False"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
