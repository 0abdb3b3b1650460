"""`bench`: what a pruned network takes beside the model it came from, or what the ops of a model take at any width."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fxcat.cli.options import ModelName, asked_for, settings_options
from fxcat.cli.results import with_bench
from fxcat.cli.run_folder import RunFolder, file_name_of
from fxcat.cli.settings import Settings
from fxcat.cli.tasks import prepared, settled, with_images
from fxcat.errors import ExportError, InputError
from fxcat.exporters.inputs import example_arguments
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.timing.latency_table import LatencyTable
from fxcat.exporters.timing.runtimes import RUNTIMES
from fxcat.gated import GatedModule
from fxcat.network.latency import LatencyModel

COMPARED, TIMED = 50, 15
"""Runs of whole files, and of single ops, unless something else is asked for."""
SLOWEST = 8
"""Ops that are shown."""


@click.command()
@click.argument("what", metavar="RUN|MODEL", type=ModelName(), required=False)
@settings_options("model", "data", model=False)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images at once.")
@click.option(
    "--repeats", type=click.IntRange(1), help=f"Runs of each. [usual: {COMPARED} of networks, {TIMED} of ops]"
)
@click.option("--table", type=click.Path(dir_okay=False, path_type=Path), help="The file. [usual: latency-MODEL.json]")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="What will run it. [usual: onnxruntime]")
@click.option("--threads", type=click.IntRange(1), help="That it may use. [usual: 1]")
def bench(
    what: str | None,
    batch: int,
    repeats: int | None,
    table: Path | None,
    runtime: Any,
    threads: int | None,
    **options: Any,
) -> None:
    """Measure on this machine, which should do nothing else meanwhile.

    Of a RUN: the ONNX file of its small network beside that of the model it was made from. Of a MODEL: what its ops
    take at any width, as a file for fxcat train --latency-table; name the images (--data, or --size and --classes) as
    they will be in training.
    """
    if what is None or not Path(what).is_dir():
        options = {**options, "model": what}
        _measure(asked_for(options), table, runtime or "onnxruntime", batch, threads or 1, repeats or TIMED)
        return
    given = [n for n, v in {**options, "table": table, "runtime": runtime, "threads": threads}.items() if v]
    if given:
        name = given[0].rpartition("__")[2].replace("_", "-")
        raise InputError(
            f"--{name} is for a model, and {what} is the folder of a run", remedy=f"leave it out, or rename {what}"
        )
    _compare(RunFolder(Path(what)), batch, repeats or COMPARED)


def _compare(folder: RunFolder, batch: int, repeats: int) -> None:
    try:
        from fxcat.exporters.latency import compare_latency
    except ModuleNotFoundError as error:
        raise ExportError(f"ONNX files need the package {error.name}", remedy='pip install "fxcat[onnx]"') from error
    small = folder.small()
    with_bench(folder)  # it can be read, before minutes are spent for what is to be added
    example = example_arguments(small, None)  # what it was prepared with
    networks: dict[str, nn.Module] = {"dense": folder.dense(folder.settings).eval(), "small": small}
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: export_onnx(n, Path(scratch, f"{name}.onnx"), example) for name, n in networks.items()}
        times = compare_latency(files["dense"].path, files["small"].path, example, batch=batch, repeats=repeats)
    click.echo(f"ONNX Runtime, CPU, batch {batch}, median of {repeats} runs in turn")
    shown = _table("network", "MB")
    for (name, file), milliseconds in zip(files.items(), times, strict=True):
        shown.add_row(name, f"{milliseconds:.2f}", f"{file.bytes / 1e6:.2f}")
    Console().print(shown)
    click.echo(f"{times[0] / times[1]:.2f} times as fast")
    measured: dict[str, Any] = {
        f"ONNX Runtime, CPU, batch {batch}: the start network": f"{times[0]:.2f} ms",
        f"ONNX Runtime, CPU, batch {batch}: what is left": f"{times[1]:.2f} ms",
        "ONNX file": f"{files['small'].bytes / 1e6:.2f} MB of {files['dense'].bytes / 1e6:.2f} MB",
    }
    folder.write("bench.json", {**(folder.read("bench.json") or {}), **measured})
    folder.put(with_bench(folder))


def _measure(settings: Settings, path: Path | None, runtime: Any, batch: int, threads: int, repeats: int) -> None:
    settings = settled(settings)
    if settings.data.name is not None:
        settings, _ = with_images(settings)
    net = prepared(settings, sized=settings.data.name is not None or settings.data.size is not None, verbose=False)
    table = LatencyTable.measure(net, runtime, batch=batch, threads=threads, repeats=repeats)
    net.use_latency(table)
    assert net.latency is not None
    file = path or Path(f"latency-{file_name_of(settings.model.name)}.json")
    table.save(file)
    _print_slowest(net, net.latency, table)
    click.echo(f"table: {file}; fxcat train … --latency-table {file} --latency 0.5 halves the time")


def _print_slowest(net: GatedModule, model: LatencyModel, table: LatencyTable) -> None:
    """What takes the time."""
    ops = net.timed_ops(table.batch)
    times = model.per_op(*(torch.ones(count) for count in net.gate_vector.counts_at_start))
    click.echo(f"{table.label}: {model.start:.3g} ms, of which")
    shown = _table("op", "share")
    order = times.argsort(descending=True).tolist()
    for i in order[:SLOWEST]:
        shown.add_row(ops[i].name, f"{float(times[i]):.3g}", f"{float(times[i]) / model.start:.1%}")
    Console().print(shown)
    rest = f"{len(order) - SLOWEST} ops more" if len(order) > SLOWEST else "no op more"
    unmeasured = f", {len(table.unmeasured)} could not be measured and count as nothing" if table.unmeasured else ""
    click.echo(f"{rest}; {len(table.as_they_are)} ops cannot be had at other widths{unmeasured}")
    if table.held_out:
        least, most = min(table.held_out), max(table.held_out)
        click.echo(f"networks that did not calibrate it: predicted ÷ measured {least:.2f} to {most:.2f}")


def _table(first: str, last: str) -> Table:
    table = Table()
    for name in (first, "milliseconds", last):
        table.add_column(name, justify="left" if name == first else "right")
    return table
