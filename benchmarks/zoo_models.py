"""Models of other people's packages that build without downloads, for `zoo.py`.

Per package the names, and for a name a model with random weights, example inputs, and others of another batch size.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo_transformers
from torch import nn
from zoo_configurations import DIFFUSERS, MONAI, VIT_PYTORCH, VIT_SIZES

Built = tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]
LIMIT = 4_000_000_000
"""Bytes of weights above which a model is left out."""


class TooLarge(Exception):
    """Its weights exceed the limit."""


def images(size: int | tuple[int, ...], channels: int = 3) -> tuple[tuple[torch.Tensor], tuple[torch.Tensor]]:
    """An image, and three."""
    sizes = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    one, three = (torch.randn(batch, channels, *sizes, generator=generator) for batch in (1, 3))
    return (one,), (three,)


def takes(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a model runs in inference."""
    try:
        with torch.no_grad():
            model.eval()(*args)
    except Exception:
        return False
    return True


# -- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    from zoo import trainable  # that of the tests

    return trainable()


def _torchvision(name: str) -> Built:
    from detectors import build as build_detector
    from detectors import inputs
    from zoo import DETECTION, build, shapes

    if name in DETECTION:
        example, others, _ = inputs(torch.float32)
        return build_detector(name), example, others
    example, others = (tuple(torch.randn(s) for s in several) for several in shapes(name))
    return build(name), example, others


# -- timm -------------------------------------------------------------------------------------------------------------


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _timm_parameters(name: str) -> int:
    """Without weights; 0 where a model computes with them when it is made."""
    import timm

    with torch.device("meta"):
        try:
            return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:
            return 0


def _timm(name: str) -> Built:
    import timm_families

    size = 4 * _timm_parameters(name)
    if size > LIMIT:
        raise TooLarge(f"weights of {size / 1e9:.1f} GB")
    model, one, three = timm_families.build(name)
    return model, (torch.randn(one),), (torch.randn(three),)


# -- transformers -----------------------------------------------------------------------------------------------------


def _transformers(name: str) -> Built:
    model, (example, others) = zoo_transformers.build(name)
    return model, example, others


# -- ultralytics ------------------------------------------------------------------------------------------------------


def _ultralytics_names() -> list[str]:
    import ultralytics

    folder = Path(str(ultralytics.__file__)).parent / "cfg" / "models"
    return sorted(path.stem for path in folder.rglob("*.yaml"))


def _ultralytics(name: str) -> Built:
    """The smallest scale."""
    ultralytics: Any = importlib.import_module("ultralytics")
    model: nn.Module = (ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO)(f"{name}.yaml").model
    return model, *images(64 if "cls" in name else 128)


# -- segmentation-models-pytorch --------------------------------------------------------------------------------------

_SMP_SIZES = {"pan": 128, "dpt": 224}
_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0")


def _smp_names() -> list[str]:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    pairs = [(arch, encoder) for arch in sorted(smp.MODEL_ARCHITECTURES_MAPPING) for encoder in _ENCODERS]
    return [f"{arch}/{encoder}" for arch, encoder in pairs if arch != "dpt"] + ["dpt/tu-vit_tiny_patch16_224"]


def _smp(name: str) -> Built:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    arch, encoder = name.split("/")
    return smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=3), *images(
        _SMP_SIZES.get(arch, 64)
    )


# -- MONAI, diffusers, vit-pytorch: classes with arguments ----------------------------------------


def _monai(name: str) -> Built:
    arguments, (channels, *size) = MONAI[name]
    cls = getattr(importlib.import_module("monai.networks.nets"), name)
    return cls(**arguments), *images(tuple(size), channels)


def _vit_pytorch(name: str) -> Built:
    module, cls = name.split(".")
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), cls)(**VIT_PYTORCH[name]), *images(
        VIT_SIZES.get(name, 64)
    )


def _diffusers(name: str) -> Built:
    arguments, kind = DIFFUSERS[name]
    model: nn.Module = getattr(importlib.import_module("diffusers"), name)(**arguments)
    parameters = inspect.signature(model.forward).parameters
    channels = getattr(model, "config").get("in_channels", 3)  # noqa: B009

    def inputs(batch: int) -> tuple[Any, ...]:
        given: dict[str, Any] = {
            "timestep": torch.full((batch,), 5),
            "class_labels": torch.zeros(batch, dtype=torch.long),
        }
        text = {"encoder_hidden_states": torch.randn(batch, 6, 24)}
        given |= {"text": text, "caption": text}.get(kind, {})
        first = torch.randn(batch, channels, *((32, 32) if kind in ("image", "timestep", "text") else (16, 16)))
        names = [n for n in list(parameters)[1:] if n in given and (kind != "image")]
        wanted = {"timestep": ["timestep"], "text": ["timestep", "encoder_hidden_states"], "image": []}
        names = wanted.get(kind, names)
        values: list[Any] = []
        for n in list(parameters)[1:]:
            if not names:
                break
            values.append(given[n] if n in names else parameters[n].default)
            names = [m for m in names if m != n]
        return (first, *values)

    return model, inputs(1), inputs(3)


PACKAGES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Built]]] = {
    "torchvision": (_torchvision_names, _torchvision),
    "timm": (_timm_names, _timm),
    "transformers": (zoo_transformers.names, _transformers),
    "ultralytics": (_ultralytics_names, _ultralytics),
    "segmentation-models-pytorch": (_smp_names, _smp),
    "MONAI": (partial(list, MONAI), _monai),
    "diffusers": (partial(list, DIFFUSERS), _diffusers),
    "vit-pytorch": (partial(list, VIT_PYTORCH), _vit_pytorch),
}

PARAMETERS: dict[str, Callable[[str], int]] = {"timm": _timm_parameters}
"""How many a name has, where that is quickly told."""


def sample(names: list[str], count: int) -> Iterator[str]:
    """So many names at even distances: the same every time."""
    yield from names[:: max(1, len(names) // count)][:count]
