"""`inspect`, `prune` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from fxcat.api import finalize
from fxcat.cli.data import Images
from fxcat.cli.latency import expected_times, keep_table, needed_target, target_of, use_latency
from fxcat.cli.models import has_random_weights, make_model
from fxcat.cli.options import asked_for, settings_options
from fxcat.cli.run_folder import RunFolder, command
from fxcat.cli.settings import ModelSettings, Settings, TrainSettings, with_target
from fxcat.cli.tasks import (
    accuracy,
    measured_sensitivity,
    prepared,
    settled,
    with_images,
    with_size,
)
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.report.record import Report
from fxcat.scores import importance
from fxcat.scores.one_shot import one_shot
from fxcat.storage import save
from fxcat.summary import print_summary
from fxcat.training.fit import fit
from fxcat.training.history import History

BATCHES = 4
"""Of the training images, for scores and sensitivity."""

_quiet = click.option("--quiet", "-q", is_flag=True, help="Print the result alone.")
_out = click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The folder of the run.")


@click.command()
@settings_options("model", "data", "prune")
@click.option("--sensitivity", "sensitive", is_flag=True, help="Measure what the loss does when parts go (needs data).")
@click.option("--batches", type=click.IntRange(1), default=BATCHES, show_default=True, help="Batches to measure on.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with all of it.")
@_quiet
def inspect(sensitive: bool, batches: int, report: Path | None, quiet: bool, **options: Any) -> None:
    """What can go from MODEL, what cannot and why, and how small it can become."""
    settings, images = settled(asked_for(options)), None
    if sensitive or settings.data.name is not None:
        settings, images = with_images(settings)
    net = prepared(settings, sized=images is not None or settings.data.size is not None, verbose=False)
    use_latency(net, settings.prune, quiet=quiet)
    target = target_of(settings.prune, net)
    if not quiet:
        print_summary(net, target, Console())
    found = None
    if sensitive and images is not None:
        found = measured_sensitivity(net, images.some(batches), quiet=quiet)
        found.show()
    if report is not None:
        Report.of(net, title=settings.model.name, sensitivity=found, command=command()).html(report)
        click.echo(f"report: {report}")


@click.command()
@settings_options("model", "data", "prune")
@click.option("--compensate", is_flag=True, help="Put what the removed units gave on average into biases (needs data).")
@click.option(
    "--batches",
    type=click.IntRange(1),
    default=BATCHES,
    show_default=True,
    help="Batches to score, and compensate, with.",
)
@_out
@_quiet
def prune(compensate: bool, batches: int, out: Path | None, quiet: bool, **options: Any) -> None:
    """Prune MODEL at once, by scores, without training; with --data by the loss on some images and with accuracies.

    By default to half of the FLOPs. Fine-tune what is left.
    """
    settings = settled(asked_for(options))
    images = None
    if settings.data.name is not None:
        settings, images = with_images(settings)
    if compensate and images is None:
        raise InputError("--compensate needs images", remedy="give --data")
    net = prepared(settings, sized=images is not None or settings.data.size is not None, verbose=not quiet)
    if not quiet and has_random_weights(settings.model):
        click.echo("the weights are random: --weights FILE gives others, --pretrained those of the package", err=True)
    settings = with_target(with_size(settings, net))
    with RunFolder.begun(out, settings) as folder:
        keep_table(use_latency(net, settings.prune, quiet=quiet), settings, folder)
        some = None if images is None else images.some(batches)
        before = None if images is None else accuracy(net, images.validation)
        scores = importance.norm_scale(net) if some is None else importance.taylor(net, some)
        one_shot(net, scores, target=needed_target(settings.prune, net), compensate=some if compensate else None)
        small = finalize(net)
        results = expected_times(net)
        if images is not None and before is not None:
            results["validation accuracy before"] = f"{before:.2%}"
            results["validation accuracy after"] = f"{accuracy(small, images.validation):.2%}"
        save(small, folder.network_file)
        _end(folder, net, Report.of(net, **_of(settings, folder), results=results))


@click.command()
@settings_options("model", "data", "prune", "train")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --epochs may be more than before.")
@click.option("--sensitivity", "sensitive", is_flag=True, help="Measure, before training, what the loss does.")
@_out
@_quiet
def train(resume: bool, sensitive: bool, out: Path | None, quiet: bool, **options: Any) -> None:
    """Train MODEL and make it smaller meanwhile; by default on the digits, to half of the FLOPs."""
    base = None
    if resume:
        if out is None:
            raise InputError("--resume does not know which run", remedy="give --out")
        base = RunFolder(out).settings
    settings, images = with_images(settled(asked_for(options, base)))
    teacher = _teacher(settings.train, settings)
    net = prepared(settings, sized=True, verbose=not quiet)
    settings = with_target(with_size(settings, net))
    with RunFolder.begun(out, settings, again=resume) as folder:
        if not quiet:
            click.echo(f"run: {folder.path}")
        keep_table(use_latency(net, settings.prune, quiet=quiet), settings, folder)
        found = measured_sensitivity(net, images.some(BATCHES), quiet=quiet) if sensitive else None
        history = _trained(net, images, settings, folder, teacher, resume=resume, quiet=quiet)
        small = finalize(net).cpu()
        save(small, folder.network_file)
        history.save(folder.path / "history.json")
        results = {"validation accuracy": f"{accuracy(small, images.validation):.2%}", **expected_times(net)}
        _end(folder, net, Report.of(net, **_of(settings, folder), history=history, sensitivity=found, results=results))


def _trained(
    net: GatedModule,
    images: Images,
    settings: Settings,
    folder: RunFolder,
    teacher: torch.nn.Module | bool | None,
    *,
    resume: bool,
    quiet: bool,
) -> History:
    """What `fit` makes of it."""
    asked = settings.train
    return fit(
        net,
        images.train,
        images.validation,
        epochs=asked.epochs,
        target=needed_target(settings.prune, net),
        lr=asked.lr,
        clip_norm=asked.clip_norm,
        teacher=teacher,
        autocast=torch.bfloat16 if asked.bfloat16 else None,
        device=asked.device,
        checkpoint_dir=folder.checkpoints,
        resume=resume,
        progress=not quiet,
        seed=asked.seed,
    )


def _teacher(asked: TrainSettings, settings: Settings) -> torch.nn.Module | bool | None:
    """What `fit` takes as teacher."""
    if asked.teacher is None or asked.teacher == "self":
        return True if asked.teacher else None
    if asked.teacher_weights is None:
        raise InputError("a teacher that is another model needs its weights", remedy="give --teacher-weights")
    return make_model(ModelSettings(name=asked.teacher, classes=settings.model.classes, weights=asked.teacher_weights))


def _of(settings: Settings, folder: RunFolder) -> dict[str, Any]:
    """What a report says of the run."""
    text = folder.settings_file.read_text(encoding="utf-8")
    return {"title": settings.model.name, "command": command(), "settings": text}


def _end(folder: RunFolder, net: GatedModule, report: Report) -> None:
    """Write the report, and say what came of the run."""
    page = folder.put(report)
    start, left = net.start_cost, net.hard_cost()
    click.echo(
        f"{left.macs / max(1, start.macs):.1%} of the MACs ({left.macs:,}), "
        f"{left.params / max(1, start.params):.1%} of the parameters ({left.params:,})"
    )
    for name, text in report.results.items():
        click.echo(f"{name}: {text}")
    click.echo(f"network: {folder.network_file}")
    click.echo(f"report: {page}")
