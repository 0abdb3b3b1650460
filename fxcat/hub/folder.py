"""`save_folder` and `load_folder`: a small network with all that one needs to use it, ready to be published."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcat.api import add_bypasses
from fxcat.checks import (
    as_path,
    check_flag,
    check_instance,
    check_integer,
    check_module,
    check_text,
    check_texts,
    shown,
)
from fxcat.errors import ExportError, FxcatError, InputError, StorageError, located
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.source.export import SourceReport, export_source
from fxcat.exporters.source.running import load_function
from fxcat.gated import GatedModule
from fxcat.hub.card import model_card
from fxcat.hub.config import (
    CARD,
    CONFIG,
    NETWORK,
    ONNX,
    REPORT,
    SOURCE,
    SOURCE_WEIGHTS,
    Architecture,
    Config,
    read_config,
)
from fxcat.loading import load
from fxcat.named_models import is_code, named_model
from fxcat.network.recipe import attached_recipe, make_example, parse
from fxcat.report.record import Report
from fxcat.storage import save
from fxcat.utils.safetensors_file import FORMAT, read_tensors


def save_folder(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | str | None = None,
    input_shape: Sequence[int] | None = None,
    report: Report | None = None,
    results: Mapping[str, str] | None = None,
    onnx: bool = False,
    source: bool = True,
    title: str | None = None,
    license: str | None = None,
) -> None:
    """Write what `finalize` returned into a folder: `model.safetensors`, `config.json`, `README.md` (a model card), the
    network as source (`network.py`, `network.safetensors`), and if they are asked for `model.onnx` and `report.html`.
    The folder can be uploaded as it is.

    `architecture`: what made the model that was prepared, as `named_model` is told: then the folder can be loaded
    without it. `source`: write what `export_source` writes, with which the folder is loaded where the model's class is
    not installed; say False for a network that has no source form. `input_shape`: of an example, (N, C, H, W); by
    default the one that the network was prepared with. `report`: of the run, whose costs the card names. `results`:
    what you have measured, as text by its name: `{"accuracy": "76.1 %"}`. The card holds these figures and those that
    are counted or measured here, no others. `license`: as the Hub calls it.

    Files of an earlier call are replaced. Raises as `save`, `export_source` and `export_onnx` do, and `InputError`,
    also where the network was not made from `architecture`. Then the folder holds what it held.
    """
    check_module(module, "save_folder()")
    check_instance(architecture, (Architecture, str), "architecture", optional=True)
    _check_told(report, results, title=title, license=license)
    check_flag(onnx, "onnx")
    check_flag(source, "source")
    made = Architecture(architecture) if isinstance(architecture, str) else architecture
    folder = as_path(path)
    small = module.finalized() if isinstance(module, GatedModule) else module
    example = None if input_shape is None else _example(input_shape)
    input_shape = input_shape or _prepared_shape(small)
    if input_shape is None and made is not None and made.bypasses:
        raise InputError("save_folder() needs the shape of an example", remedy="give input_shape=(1, 3, 224, 224)")
    config = _described(small, made, input_shape, report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = Path(scratch)
            save(small, files / NETWORK)
            if made is not None:
                _check_made(config, files)
            written = _written(small, files / SOURCE, example) if source else None
            exported = export_onnx(small, files / ONNX, example) if onnx else None
            if report is not None:
                report.html(files / REPORT)
            name = title or (made.name.rpartition(":")[2] if made else type(small).__name__)
            about: Any = {"license": license, "results": results or {}, "report": report}
            card = model_card(config, title=name, **about, onnx=exported, source=written)
            (files / CARD).write_text(card, encoding="utf-8")
            config.write(files / CONFIG)
            _replace(folder, files)
    except OSError as error:
        raise StorageError(f"the folder cannot be written: {error}", where=str(folder)) from error


def _check_told(report: Report | None, results: Mapping[str, str] | None, **texts: str | None) -> None:
    """Raise `InputError` for what a card cannot tell."""
    check_instance(report, Report, "report", optional=True)
    check_texts(results, "results", optional=True)
    for name, text in texts.items():
        check_text(text, name, optional=True)


def _example(shape: Any) -> torch.Tensor:
    """Of a shape, without values. Raises `InputError` for what is none."""
    remedy = "give input_shape=(1, 3, 224, 224)"
    check_instance(shape, Sequence, "input_shape", remedy=remedy)
    for size in shape:
        check_integer(size, "input_shape", least=1, most=2**20, kind="size", remedy=remedy)
    if not 1 <= len(shape) <= 8:
        raise InputError(f"input_shape={shown(shape)} has {len(shape)} axes", remedy=remedy)
    return torch.empty(tuple(shape), device="meta")


def _prepared_shape(small: nn.Module) -> tuple[int, ...] | None:
    """Of the one tensor that a small network was prepared with; None if it was something else."""
    recipe = attached_recipe(small)
    example = None if recipe is None else parse(recipe)[0][-1].example
    found = None if example is None else make_example(example)
    if isinstance(found, tuple) and len(found) == 1:  # pyright: ignore[reportUnknownArgumentType]
        found = found[0]  # pyright: ignore[reportUnknownVariableType]
    return tuple(found.shape) if isinstance(found, torch.Tensor) else None


def _check_made(config: Config, files: Path) -> None:
    """The network can be loaded from what the folder will say of it. Raises `InputError` and `StorageError`."""
    try:
        load(files / NETWORK, _made(config, files, trust_source=True))
    except FxcatError as error:
        assert config.architecture is not None
        raise InputError(
            f"the network was not made from architecture={config.architecture.name!r} with these arguments: "
            f"{error.what}",
            remedy="name what made the model that was prepared, with its classes and arguments, or leave it out",
        ) from error


def _written(small: nn.Module, file: Path, example: torch.Tensor | None) -> SourceReport:
    """The network as source. Raises `ExportError`, which says how to do without."""
    try:
        return export_source(small, file, example)
    except ExportError as error:
        remedy = "save_folder(…, source=False), or fxcat export --no-source, writes the folder without network.py"
        raise ExportError(error.what, where=error.where, remedy=remedy) from error


def _replace(folder: Path, files: Path) -> None:
    """Put files into the folder instead of those of an earlier call; its description goes first, and comes last."""
    for name in (CONFIG, ONNX, REPORT, SOURCE, SOURCE_WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    for file in sorted(files.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(folder / file.name)


def load_folder(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, trust_source: bool = False
) -> nn.Module:
    """The small network of a folder, in `eval()`, on the CPU.

    Without `model` (the architecture, as for `load`) it is made from the folder's description, by torchvision or timm,
    and nothing in the folder is executed. Where these do not have it, only Python can make it: that of the folder's
    `network.py`, which needs torch alone, or of a module that the description names. Python can do anything that you
    can do on this machine, whoever published the folder; so it is run with `trust_source=True` only: look at
    `network.py` before. With that it is what is always run, if there is one: the network then consists of plain layers,
    and is not of the model's class. Nothing is downloaded.

    Raises `StorageError` for what is no such folder, for one of an unknown version and for damaged or forged files, and
    `InputError` where the architecture is not known, or not trusted.
    """
    check_flag(trust_source, "trust_source")
    folder = as_path(path)
    config = read_config(folder)
    with located(str(folder)):
        if model is None and trust_source and (folder / SOURCE).is_file():
            network = _run(folder)
        else:
            made = _made(config, folder, trust_source=trust_source) if model is None else model
            network = load(folder / NETWORK, made)
        params = sum(p.numel() for p in network.parameters())
        if params != config.params:
            raise StorageError(
                f"{CONFIG} describes a network with {config.params:,} parameters, and the folder's has {params:,}",
                remedy="get the folder again from where it was published",
            )
    return network.eval()


def _run(folder: Path) -> nn.Module:
    """What the folder's own source makes, with its weights. Executes it."""
    read_tensors(folder / SOURCE_WEIGHTS, FORMAT)  # which are not damaged
    try:
        network = load_function(folder / SOURCE)(folder / SOURCE_WEIGHTS)
    except Exception as error:  # of somebody's code
        raise StorageError(
            f"{SOURCE} does not run: {type(error).__name__}: {error}", remedy="load_folder(path, model) does without it"
        ) from error
    if not isinstance(network, nn.Module):
        raise StorageError(f"{SOURCE} makes a {type(network).__name__}, not a network")
    return network


def _described(
    small: nn.Module, made: Architecture | None, input_shape: Sequence[int] | None, report: Report | None
) -> Config:
    params = sum(p.numel() for p in small.parameters())
    shape = None if input_shape is None else tuple(input_shape)
    if report is None:
        return Config(made, shape, params)
    if report.left.params != params:
        raise InputError(
            f"the report is of a network with {report.left.params:,} parameters, and this one has {params:,}",
            remedy="give the Report of the network that was finalized",
        )
    return Config(made, shape, params, report.left.macs, report.start.params, report.start.macs)


def _made(config: Config, folder: Path, *, trust_source: bool) -> nn.Module:
    """The architecture that a folder names."""
    made, has_source = config.architecture, (folder / SOURCE).is_file()
    trusting = f"look at its {SOURCE}, and call load_folder(path, trust_source=True), which executes it"
    if made is None:
        raise InputError(
            "the folder does not say what its network was made from",
            remedy=f"{trusting}; or call load_folder(path, model)" if has_source else "call load_folder(path, model)",
        )
    if is_code(made.name) and not trust_source:
        raise InputError(
            f"this folder's network was made by {made.name}, and importing that executes it",
            remedy=trusting if has_source else "look at it, and call load_folder(path, trust_source=True)",
        )
    try:
        model = named_model(made.name, classes=made.classes, arguments=made.arguments)
    except InputError as error:
        more = f"; or {trusting}" if has_source else ""
        raise InputError(error.what, where=error.where, remedy=f"{error.remedy}{more}") from error
    if made.bypasses:
        model = add_bypasses(model, torch.empty(config.input_shape or (), device="meta"), verbose=False)
    return model
