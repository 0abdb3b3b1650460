"""What several commands do: images for a model, a network with gates, how right it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from fxcat.api import prepare
from fxcat.checks import check_device
from fxcat.cli.data import Images, load_images
from fxcat.cli.models import channels_of, example_of, make_model
from fxcat.cli.settings import Settings
from fxcat.data.losses import count_correct
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.named_models import is_code, with_package
from fxcat.scores.sensitivity import sensitivity
from fxcat.scores.sensitivity_result import Sensitivity


def settled(settings: Settings) -> Settings:
    """The settings with the package of the model in its name. Raises `InputError`."""
    name = settings.model.name
    if not name:
        raise InputError("no model is named", remedy="give MODEL, or name = … in the table [model] of the settings")
    return replace(settings, model=replace(settings.model, name=with_package(name)))


def with_images(settings: Settings) -> tuple[Settings, Images]:
    """Images for the model, and the settings with the classes that they have. Raises `InputError`."""
    images = load_images(settings.data, channels_of(settings.model), settings.train.seed)
    if settings.model.classes is None and _takes_classes(settings):
        settings = replace(settings, model=replace(settings.model, classes=images.classes))
    return settings, images


def _takes_classes(settings: Settings) -> bool:
    """Whether what makes the model is told the number of classes: functions of somebody's own decide for themselves,
    and so does who gives arguments that say it."""
    return not is_code(settings.model.name) and "num_classes" not in settings.model.arguments


def prepared(settings: Settings, *, sized: bool, verbose: bool) -> GatedModule:
    """The model with gates, on the device that was asked for; `sized`: for images as the data have them, else as the
    model takes them."""
    check_device(settings.train.device, "--device", remedy="give --device cpu, or none", optional=True)
    torch.manual_seed(settings.train.seed)
    example = example_of(settings.data, channels_of(settings.model)) if sized else None
    model, prune = make_model(settings.model, example), settings.prune
    chosen: Any = {"gates": prune.gates, "policy": prune.policy}
    net = prepare(model, example, **chosen, ignore=prune.ignore, round_to=prune.round_to, verbose=verbose)
    return net if settings.train.device is None else net.to(settings.train.device)


def with_size(settings: Settings, net: GatedModule) -> Settings:
    """The settings with the size of the images that a network was prepared for."""
    described = net.recipe[0].example
    shapes = [] if described is None else [shape for shape, *_ in described["tensors"].values()]
    size = shapes[0][-1] if shapes and len(shapes[0]) == 4 else None
    return replace(settings, data=replace(settings.data, size=size))


def measured_sensitivity(net: GatedModule, batches: list[Any], *, quiet: bool) -> Sensitivity:
    """With a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("sensitivity")
        return sensitivity(net, batches, progress=lambda done, total: bar.update(task, completed=done, total=total))


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Share of the images that are classified right, in `eval()`. Raises `InputError` for what is no classifier."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    right = seen = 0
    with torch.no_grad():
        for images, labels in batches:
            found = count_correct(model(images.to(device)), labels.to(device))
            if found is None:
                raise InputError("the model is no classifier", remedy="prune or train it in a script of your own")
            right, seen = right + found, seen + len(labels)
    return right / max(1, seen)
