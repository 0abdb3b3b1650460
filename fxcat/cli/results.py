"""`export` and `report`: what is done with a run that has ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from fxcat.cli.run_folder import RunFolder
from fxcat.errors import InputError
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.report import ExportReport
from fxcat.exporters.source.export import SourceReport, export_source
from fxcat.hub.config import Architecture
from fxcat.hub.folder import save_folder
from fxcat.report.record import Report

_run = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@_run
@click.option("--onnx", type=_file, help="A file of ONNX. [usual, if nothing else is asked for: RUN/model.onnx]")
@click.option("--source", type=_file, help="A Python file of plain layers, NAME.py; its weights lie beside it.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="A folder that can be published, with all of it."
)
@click.option("--license", help="Of the folder, as the Hugging Face Hub calls it.")
@click.option("--no-source", is_flag=True, help="The folder is without source, which not all networks have.")
@click.option("--opset", type=int, help="Of the file of ONNX.")
@click.option("--dynamic-size", is_flag=True, help="It takes images of other heights and widths.")
@click.option("--fixed-batch", is_flag=True, help="It takes one image at a time.")
@click.option("--half", is_flag=True, help="Its weights and arithmetic are in float16.")
@click.option("--no-verify", is_flag=True, help="Do not run the files beside the network.")
def export(
    run: Path,
    onnx: Path | None,
    source: Path | None,
    folder: Path | None,
    license: str | None,
    no_source: bool,
    opset: int | None,
    dynamic_size: bool,
    fixed_batch: bool,
    half: bool,
    no_verify: bool,
) -> None:
    """Export the small network of RUN: as an ONNX file that is verified in ONNX Runtime, as source that needs PyTorch
    alone, as a folder with both; several at once."""
    found = RunFolder(run)
    if onnx is None and source is None and folder is None:
        onnx = run / "model.onnx"
    if onnx is None and (opset is not None or dynamic_size or fixed_batch or half):
        raise InputError(
            "--opset, --dynamic-size, --fixed-batch and --half are of a file of ONNX", remedy="give --onnx FILE"
        )
    if folder is None and (license is not None or no_source):
        raise InputError("--license and --no-source are of a folder", remedy="give --folder")
    small = found.small()  # which knows what it was prepared with
    if onnx is not None:
        options: dict[str, Any] = {"opset": opset, "half": half}
        options |= {"dynamic_size": dynamic_size, "dynamic_batch": not fixed_batch}
        click.echo(_said(export_onnx(small, onnx, verify=not no_verify, **options)))
    if source is not None:
        click.echo(_source_said(export_source(small, source, verify=not no_verify)))
    if folder is not None:
        _publish(found, small, folder, license, source=not no_source)


def _publish(run: RunFolder, small: nn.Module, folder: Path, license: str | None, *, source: bool) -> None:
    settings, about = run.settings.model, with_bench(run)
    architecture = Architecture(settings.name, settings.classes, settings.arguments, settings.bypasses)
    save_folder(
        small,
        folder,
        architecture=architecture,
        report=about,
        results=about.results,
        onnx=True,
        source=source,
        license=license,
    )
    click.echo(f"folder: {folder}")


def _said(report: ExportReport) -> str:
    text = f"{report.path}: {report.bytes / 1e6:.2f} MB, opset {report.opset}"
    if report.max_error is None:
        return f"{text}, not verified"
    return f"{text}, largest error {report.max_error:.1e} at batches {', '.join(map(str, report.batches))}"


def _source_said(report: SourceReport) -> str:
    error = "not verified" if report.max_error is None else f"largest error {report.max_error:.1e}"
    return f"{report.path}: {report.lines} lines, weights in {report.weights}, {error}"


@click.command()
@_run
@click.option("--html", type=_file, help="The page. [usual: RUN/report.html]")
def report(run: Path, html: Path | None) -> None:
    """Write the page about RUN again, with what has been measured since."""
    folder = RunFolder(run)
    _ = folder.settings  # it is one
    found = with_bench(folder)
    page = folder.put(found)
    if html is not None:
        found.html(html)
    click.echo(f"report: {html or page}")


def with_bench(folder: RunFolder) -> Report:
    """The report of a run, with what `bench` has measured since."""
    folder.check_ended(folder.report_file)
    found = Report.load(folder.report_file)
    measured = {str(name): str(text) for name, text in (folder.read("bench.json") or {}).items()}
    return replace(found, results={**found.results, **measured})
