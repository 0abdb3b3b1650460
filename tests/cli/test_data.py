"""Images by a name: folders, data sets of torchvision, digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

import fxcat
from fxcat.cli.data import load_images
from fxcat.cli.settings import DataSettings


def folder(root: Path, *parts: str, images: int = 10, classes: str = "ab") -> Path:
    """Grey images, each brighter than the one before, by more than what converting them rounds away."""
    for part in parts:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(images):
                Image.new("L", (20, 16), 100 * number + 8 * i).save(root / part / name / f"{i}.png")
    return root


def settings(name: Path | str, **options: Any) -> DataSettings:
    return DataSettings(name=str(name), **{"batch_size": 4, "size": 8, **options})


@pytest.mark.parametrize("validation", ["val", "test"])
def test_a_folder_that_is_divided(tmp_path: Path, validation: str) -> None:
    found = load_images(settings(folder(tmp_path, "train", validation)), 3, 0)
    assert found.classes == 2 and len(found.train) == 5
    images, labels = next(iter(found.train))
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32
    assert sum(len(labels) for _, labels in found.validation) == 20
    assert labels.dtype == torch.int64


def test_a_folder_that_is_not_divided_keeps_every_fifth_image(tmp_path: Path) -> None:
    found = load_images(settings(folder(tmp_path, "")), 1, 0)
    brightness = [images.mean((1, 2, 3)) for images, _ in found.validation]
    assert len(torch.cat(brightness)) == 4 and sum(len(labels) for _, labels in found.plain) == 16
    seen = {round(float(b), 4) for images, _ in found.plain for b in images.mean((1, 2, 3))}
    assert not seen & {round(float(b), 4) for b in torch.cat(brightness)}
    assert len(found.some(2)) == 2


def test_the_same_seed_gives_the_same_order(tmp_path: Path) -> None:
    root = folder(tmp_path, "train", "val")
    orders = [torch.cat([y for _, y in load_images(settings(root), 3, seed).train]).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_images_of_imagenet_size_are_cropped_and_normalised(tmp_path: Path) -> None:
    found = load_images(settings(folder(tmp_path, "train", "val"), size=64), 3, 0)
    (images, labels), *_ = list(found.validation)
    assert images.shape == (4, 3, 64, 64)
    value = (0.0 / 255 - 0.485) / 0.229
    assert float(images[0, 0].max()) == pytest.approx(value, abs=1e-3) and int(labels[0]) == 0


def test_a_data_set_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, bool]] = []

    class Numbers(torchvision.datasets.FakeData):
        """With the parts, and the argument, that data sets of torchvision have."""

        classes = ("zero", "one", "two")

        def __init__(self, root: str, train: bool = True, transform: Any = None, download: bool = False) -> None:
            asked.append((root, download))
            super().__init__(size=12 if train else 6, image_size=(3, 10, 10), num_classes=3, transform=transform)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Numbers)
    found = load_images(settings("cifar10", root="here", download=True), 1, 0)
    assert asked == [("here", True)] * 3 and found.classes == 3
    assert next(iter(found.train))[0].shape == (4, 1, 8, 8) and sum(len(y) for _, y in found.validation) == 6


def test_digits() -> None:
    found = load_images(DataSettings(), 3, 0)
    images, _ = next(iter(found.train))
    assert images.shape == (64, 3, 32, 32) and found.classes == 10
    assert sum(len(y) for _, y in found.validation) == 359


@pytest.mark.parametrize("kind", ["empty", "other classes", "no data set", "not there"])
def test_mistakes(kind: str, tmp_path: Path) -> None:
    if kind == "other classes":
        folder(folder(tmp_path, "train"), "val", classes="abc")
    name = {"no data set": "nothing", "not there": "mnist"}.get(kind, tmp_path)
    said = {
        "empty": "no images are found",
        "other classes": "folders of other names",
        "no data set": "no folder and no data set 'nothing'",
        "not there": "mnist cannot be read",
    }
    with pytest.raises(fxcat.InputError, match=said[kind]):
        load_images(settings(name, root=str(tmp_path)), 3, 0)
