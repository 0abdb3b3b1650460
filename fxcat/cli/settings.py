"""What a run is asked for: one record per part, which is options of the command and a table of a TOML file alike."""

from __future__ import annotations

import types
from dataclasses import dataclass, field, replace
from typing import Any, Union, get_args, get_origin


def _says(text: str, flag: str | None = None, least: int | None = None, *, free: bool = False) -> dict[str, Any]:
    """What `--help` says; `flag`: the option of a setting, if that is not its own name; `least`: of its values; `free`:
    a run that goes on may have another one."""
    return {"help": text, "flag": flag, "least": least, "free": free}


def _setting(default: Any, text: str, *, flag: str | None = None, least: int | None = None, free: bool = False) -> Any:
    return field(default=default, metadata=_says(text, flag, least, free=free))


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model, and its weights."""

    name: str = _setting("", "a torchvision or timm model, or package.module:function", flag="MODEL")
    classes: int | None = _setting(None, "how many classes it tells apart; by default those of the data", least=1)
    pretrained: bool = _setting(False, "with the weights of its package, which may download them")
    weights: str | None = _setting(None, "a file with its state_dict")
    arguments: dict[str, Any] = field(
        default_factory=dict[str, Any],
        metadata=_says("another argument of what makes it, such as image_size=32", "--arg"),
    )
    bypasses: bool = _setting(False, "give a plain network residual bypasses, so that its layers can go")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which images."""

    name: str | None = _setting(
        None, "digits (comes with scikit-learn), a folder of images, or a data set of torchvision", flag="--data"
    )
    root: str = _setting("data", "where data sets of torchvision lie", flag="--data-root", free=True)
    download: bool = _setting(False, "let torchvision download the data set", free=True)
    size: int | None = _setting(None, "height and width of the images", least=1)
    batch_size: int = _setting(64, "images in a batch", least=1)
    augment: bool = _setting(True, "crop and flip training images at random")
    workers: int = _setting(0, "processes that load images", least=0, free=True)


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """How small, and what may go."""

    flops: float | None = _setting(None, "share of the FLOPs to keep")
    params: float | None = _setting(None, "share of the parameters to keep")
    latency: float | None = _setting(None, "share of the milliseconds of a run to keep")
    milliseconds: float | None = _setting(None, "the same in milliseconds")
    latency_table: str | None = _setting(
        None, "a file of fxcat bench MODEL: what a run takes on the machine that was measured; by default this one is"
    )
    layers: float = _setting(0.5, "layers versus units: above 0.5 whole layers go sooner")
    gates: str = _setting("units+layers", "what may go: units+layers, units or layers")
    policy: str = _setting("bernoulli", "how training decides: bernoulli or ratio")
    round_to: int | None = _setting(
        None, "leave multiples of so many channels (1: any width); by default where others would be slower", least=1
    )
    ignore: list[str] = field(default_factory=list[str], metadata=_says("a module that stays as it is"))


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The training loop."""

    epochs: int = _setting(20, "epochs, of which the first 55 % have gates", least=1, free=True)
    lr: float = _setting(0.05, "learning rate of SGD with Nesterov momentum and cosine annealing")
    clip_norm: float | None = _setting(None, "largest norm of the gradients")
    teacher: str | None = _setting(None, "learn from a teacher too: 'self' (the network as it begins) or a model")
    teacher_weights: str | None = _setting(None, "a file with the state_dict of a teacher that is a model")
    bfloat16: bool = _setting(False, "mixed precision")
    device: str | None = _setting(None, "such as cpu or cuda; by default a GPU if there is one", free=True)
    seed: int = _setting(0, "of all random numbers", least=0)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of them."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def kind_of_values(hint: Any) -> Any:
    """The class of a setting's values where they are given, of its type: int of `int | None`, list of `list[str]`."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    kind = next(k for k in get_args(hint) if k is not type(None)) if is_union else hint
    return get_origin(kind) or kind


def with_target(settings: Settings) -> Settings:
    """The settings, with half of the FLOPs where no size is asked for."""
    prune = settings.prune
    if any(x is not None for x in (prune.flops, prune.params, prune.latency, prune.milliseconds)):
        return settings
    return replace(settings, prune=replace(prune, flops=0.5))
