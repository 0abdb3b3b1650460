"""`export`, `bench` and `report`: what is done with a run that has ended."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fxcat.cli.run_folder import RunFolder
from fxcat.errors import ExportError
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.report import ExportReport
from fxcat.hub.config import Architecture
from fxcat.hub.folder import save_folder
from fxcat.report.record import Report

_run = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.command()
@_run
@click.option("--onnx", type=click.Path(dir_okay=False, path_type=Path), help="The file. [usual: RUN/model.onnx]")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="A folder that can be published, with all of it."
)
@click.option("--license", help="Of the folder, as the Hugging Face Hub calls it.")
@click.option("--opset", type=int, help="Of ONNX.")
@click.option("--dynamic-size", is_flag=True, help="Images may have other heights and widths.")
@click.option("--fixed-batch", is_flag=True, help="One image at a time.")
@click.option("--half", is_flag=True, help="Weights and arithmetic in float16.")
@click.option("--no-verify", is_flag=True, help="Do not run the file beside the network.")
def export(
    run: Path,
    onnx: Path | None,
    folder: Path | None,
    license: str | None,
    opset: int | None,
    dynamic_size: bool,
    fixed_batch: bool,
    half: bool,
    no_verify: bool,
) -> None:
    """Export the small network of RUN as an ONNX file, verified in ONNX Runtime, or as a folder with that file."""
    found = RunFolder(run)
    if folder is not None:
        _publish(found, folder, license)
        return
    report = export_onnx(
        found.small(),
        onnx or run / "model.onnx",
        torch.empty(found.shape(), device="meta"),
        verify=not no_verify,
        opset=opset,
        dynamic_size=dynamic_size,
        dynamic_batch=not fixed_batch,
        half=half,
    )
    click.echo(_said(report))


def _publish(run: RunFolder, folder: Path, license: str | None) -> None:
    settings, about = run.settings.model, _with_bench(run)
    architecture = Architecture(settings.name, settings.classes, settings.arguments, settings.bypasses)
    save_folder(
        run.small(),
        folder,
        architecture=architecture,
        input_shape=run.shape(),
        report=about,
        results=about.results,
        onnx=True,
        license=license,
    )
    click.echo(f"folder: {folder}")


def _said(report: ExportReport) -> str:
    text = f"{report.path}: {report.bytes / 1e6:.2f} MB, opset {report.opset}"
    if report.max_error is None:
        return f"{text}, not verified"
    return f"{text}, largest error {report.max_error:.1e} at batches {', '.join(map(str, report.batches))}"


@click.command()
@_run
@click.option("--batch", default=1, show_default=True, help="Images at once.")
@click.option("--repeats", default=50, show_default=True, help="Runs of each, of which the median counts.")
def bench(run: Path, batch: int, repeats: int) -> None:
    """Measure the ONNX file of the small network of RUN beside that of the model it was made from."""
    try:
        from fxcat.exporters.latency import compare_latency
    except ModuleNotFoundError as error:
        raise ExportError(f"ONNX files need the package {error.name}", remedy='pip install "fxcat[onnx]"') from error
    folder = RunFolder(run)
    example = torch.empty(folder.shape(), device="meta")
    networks: dict[str, nn.Module] = {"dense": folder.dense(folder.settings).eval(), "small": folder.small()}
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: export_onnx(n, Path(scratch, f"{name}.onnx"), example) for name, n in networks.items()}
        times = compare_latency(files["dense"].path, files["small"].path, example, batch=batch, repeats=repeats)
    table = Table(title=f"ONNX Runtime, CPU, batch {batch}, median of {repeats} runs in turn")
    for name in ("network", "milliseconds", "MB"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for (name, file), milliseconds in zip(files.items(), times, strict=True):
        table.add_row(name, f"{milliseconds:.2f}", f"{file.bytes / 1e6:.2f}")
    table.caption = f"{times[0] / times[1]:.2f} times as fast"
    Console().print(table)
    measured: dict[str, Any] = {
        f"ONNX Runtime, CPU, batch {batch}: the start network": f"{times[0]:.2f} ms",
        f"ONNX Runtime, CPU, batch {batch}: what is left": f"{times[1]:.2f} ms",
        "ONNX file": f"{files['small'].bytes / 1e6:.2f} MB of {files['dense'].bytes / 1e6:.2f} MB",
    }
    folder.write("bench.json", {**(folder.read("bench.json") or {}), **measured})
    folder.put(_with_bench(folder))


@click.command()
@_run
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="The page. [usual: RUN/report.html]")
def report(run: Path, html: Path | None) -> None:
    """Write the page about RUN again, with what has been measured since."""
    folder = RunFolder(run)
    found = _with_bench(folder)
    page = folder.put(found)
    if html is not None:
        found.html(html)
    click.echo(f"report: {html or page}")


def _with_bench(folder: RunFolder) -> Report:
    found = Report.load(folder.report_file)
    measured = {str(name): str(text) for name, text in (folder.read("bench.json") or {}).items()}
    return replace(found, results={**found.results, **measured})
