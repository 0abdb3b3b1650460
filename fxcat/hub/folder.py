"""`save_folder` and `load_folder`: a small network with all that one needs to use it, ready to be published."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from fxcat.api import add_bypasses
from fxcat.checks import as_path, check_flag, check_instance, check_module
from fxcat.errors import InputError, StorageError, located
from fxcat.exporters.onnx_export import export_onnx
from fxcat.gated import GatedModule
from fxcat.hub.card import model_card
from fxcat.hub.config import CARD, CONFIG, NETWORK, ONNX, REPORT, Architecture, Config, read_config
from fxcat.loading import load
from fxcat.named_models import named_model
from fxcat.report.record import Report
from fxcat.storage import save


def save_folder(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | str | None = None,
    input_shape: Sequence[int] | None = None,
    report: Report | None = None,
    results: Mapping[str, str] | None = None,
    onnx: bool = False,
    title: str | None = None,
    license: str | None = None,
) -> None:
    """Write what `finalize` returned into a folder: `model.safetensors`, `config.json`, `README.md` (a model card), and
    if they are asked for `model.onnx` and `report.html`. The folder can be uploaded as it is.

    `architecture`: what made the model that was prepared, as `named_model` is told: then the folder can be loaded
    without it. `input_shape`: of an example, (N, C, H, W); needed for `onnx` and bypasses. `report`: of the run, whose
    costs the card names. `results`: what you have measured, as text by its name: `{"accuracy": "76.1 %"}`. The card
    holds these figures and those that are counted or measured here, no others. `license`: as the Hub calls it.

    Files of an earlier call are replaced. Raises as `save` and `export_onnx` do, and `InputError`.
    """
    check_module(module, "save_folder()")
    check_instance(architecture, (Architecture, str), "architecture", optional=True)
    check_instance(report, Report, "report", optional=True)
    check_instance(results, Mapping, "results", optional=True)
    check_flag(onnx, "onnx")
    made = Architecture(architecture) if isinstance(architecture, str) else architecture
    if input_shape is None and (onnx or (made is not None and made.bypasses)):
        raise InputError("save_folder() needs the shape of an example", remedy="give input_shape=(1, 3, 224, 224)")
    folder = as_path(path)
    small = module.finalized() if isinstance(module, GatedModule) else module
    config = _described(small, made, input_shape, report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = Path(scratch)
            save(small, files / NETWORK)
            exported = None
            if onnx:
                exported = export_onnx(small, files / ONNX, torch.empty(config.input_shape or (), device="meta"))
            if report is not None:
                report.html(files / REPORT)
            name = title or (made.name.rpartition(":")[2] if made else type(small).__name__)
            card = model_card(config, title=name, license=license, results=results or {}, report=report, onnx=exported)
            (files / CARD).write_text(card, encoding="utf-8")
            config.write(files / CONFIG)
            _replace(folder, files)
    except OSError as error:
        raise StorageError(f"the folder cannot be written: {error}", where=str(folder)) from error


def _replace(folder: Path, files: Path) -> None:
    """Put files into the folder instead of those of an earlier call; its description goes first, and comes last."""
    for name in (CONFIG, ONNX, REPORT):
        (folder / name).unlink(missing_ok=True)
    for file in sorted(files.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(folder / file.name)


def load_folder(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, trust_source: bool = False
) -> nn.Module:
    """The small network of a folder, in `eval()`, on the CPU.

    Without `model` (the architecture, as for `load`) it is made from the folder's description, by torchvision or timm.
    Where that names a function of another module, importing it executes it: that is done with `trust_source=True` only,
    and nothing else in a folder is ever executed. Nothing is downloaded.

    Raises `StorageError` for what is no such folder, for one of an unknown version and for damaged files, and
    `InputError` where the architecture is not known, or not trusted.
    """
    check_flag(trust_source, "trust_source")
    folder = as_path(path)
    config = read_config(folder)
    with located(str(folder)):
        if model is None:
            model = _made(config, trust_source=trust_source)
        return load(folder / NETWORK, model).eval()


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


def _made(config: Config, *, trust_source: bool) -> nn.Module:
    """The architecture that a folder names."""
    made = config.architecture
    if made is None:
        raise InputError(
            "the folder does not say what its network was made from", remedy="call load_folder(path, model)"
        )
    if made.is_code and not trust_source:
        raise InputError(
            f"to load this folder {made.name} has to be imported, which executes it",
            remedy="look at it, and call load_folder(path, trust_source=True), or load_folder(path, model)",
        )
    model = named_model(made.name, classes=made.classes, arguments=made.arguments)
    if made.bypasses:
        model = add_bypasses(model, torch.empty(config.input_shape or (), device="meta"), verbose=False)
    return model
