"""Images by a name: digits that come with scikit-learn, folders, data sets of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate
from torchvision.datasets.folder import ImageFolder, default_loader
from torchvision.transforms import v2

from fxcat.cli.settings import DataSettings
from fxcat.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which pretrained models expect."""
LARGE = 64
"""From this size on images are cropped as those of ImageNet are, below it shifted as those of CIFAR."""
HELD_OUT = 5
"""Of images that are not divided every fifth is for validation."""
DIGITS = "digits"
_SIZES = {"digits": 32, "folder": 224, "torchvision": 32}
_VALIDATION = ("val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class Images:
    """Loaders of `(images, labels)`. `classes`: how many labels there are. `plain`: the training images as they are
    seen in validation."""

    train: DataLoader[Any]
    validation: DataLoader[Any]
    classes: int
    plain: DataLoader[Any]

    def some(self, batches: int) -> list[Any]:
        """The first batches of the training images as they are, in random order: for scores and sensitivity."""
        return [batch for batch, _ in zip(self.plain, range(batches), strict=False)]


@dataclass(frozen=True, slots=True)
class _Sets:
    """Data sets: for training, the same without random crops, and for validation."""

    train: Any
    plain: Any
    validation: Any
    classes: int


def kind_of(name: str) -> str:
    """Where data come from: digits, folder or torchvision. Raises `InputError` for an unknown name."""
    if name == DIGITS:
        return DIGITS
    if Path(name).is_dir():
        return "folder"
    if _class_named(name) is not None:
        return "torchvision"
    raise InputError(
        f"there is no folder and no data set {name!r}",
        remedy="give digits, a folder of images, or a data set of torchvision such as CIFAR10",
    )


def image_size(settings: DataSettings) -> int:
    """Height and width: as asked for, else as usual for the data."""
    return settings.size or _SIZES[kind_of(settings.name or DIGITS)]


def load_images(settings: DataSettings, channels: int, seed: int) -> Images:
    """Loaders for images with so many channels. Raises `InputError` if there are no such data."""
    name = settings.name or DIGITS
    load = {DIGITS: _digits, "folder": _folder, "torchvision": _of_torchvision}[kind_of(name)]
    found = load(settings, channels)
    if len(found.train) < settings.batch_size:
        raise InputError(
            f"{name} has {len(found.train)} images to train with, less than a batch of {settings.batch_size}",
            remedy="give a smaller batch_size",
        )

    def loader(images: Any, **options: Any) -> DataLoader[Any]:
        given: dict[str, Any] = {"batch_size": settings.batch_size, "num_workers": settings.workers, **options}
        return _Readable(_Images(images), collate_fn=_collated, **given)

    return Images(
        loader(found.train, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed)),
        loader(found.validation),
        found.classes,
        loader(found.plain, shuffle=True, generator=torch.Generator().manual_seed(seed)),
    )


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """In place of an image, or of a batch with such a one: what a process that loads images can hand on."""

    what: str
    where: str | None


class _Images(Dataset[Any]):
    """A data set, with `_Unreadable` where an image cannot be read."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> Any:
        try:
            return self._images[number]
        except InputError as error:
            return _Unreadable(error.what, error.where)
        except Exception as error:  # of the many that libraries raise for damaged files
            return _Unreadable(f"image {number} of the data cannot be read: {type(error).__name__}: {error}", None)


def _collated(found: list[Any]) -> Any:
    return next((x for x in found if isinstance(x, _Unreadable)), None) or default_collate(found)


class _Readable(DataLoader[Any]):
    """Iterating raises `InputError` for an image that cannot be read."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, _Unreadable):
                raise InputError(batch.what, where=batch.where, remedy="remove it, or replace it by a whole one")
            yield batch


def _opened(path: str) -> Any:
    """An image of a folder. Raises `InputError` for a file that is none."""
    try:
        return default_loader(path)
    except Exception as error:  # of the many that libraries raise for damaged files
        raise InputError(f"an image cannot be read: {type(error).__name__}: {error}", where=path) from error


def _digits(settings: DataSettings, channels: int) -> _Sets:
    """1,797 real images of 8×8 pixels, enlarged."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn", remedy="pip install scikit-learn, or give --data"
        ) from error
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=image_size(settings), mode="bilinear").repeat(1, channels, 1, 1)
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    train = TensorDataset(images[rest], labels[rest])
    return _Sets(train, train, TensorDataset(images[held_out], labels[held_out]), 10)


def _folder(settings: DataSettings, channels: int) -> _Sets:
    """A folder per class, below `train` and `val` (or `test`), or every fifth image is for validation."""
    root = Path(settings.name or "")
    random, plain = _transforms(settings, channels, augment=settings.augment), _transforms(settings, channels)
    train = root / "train" if (root / "train").is_dir() else root
    validation = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    try:
        cropped, whole = (ImageFolder(str(train), t, loader=_opened) for t in (random, plain))
        if validation is not None and train != root:
            held_out: Any = ImageFolder(str(validation), plain, loader=_opened)
            if held_out.classes != whole.classes:
                raise InputError(
                    f"{train} and {validation} have folders of other names", remedy="give each class a folder in both"
                )
            return _Sets(cropped, whole, held_out, len(whole.classes))
    except FileNotFoundError as error:
        raise InputError(
            f"no images are found: {error}", where=str(root), remedy="give a folder with a folder of images per class"
        ) from error
    chosen, rest = _divided(len(whole))
    return _Sets(Subset(cropped, rest), Subset(whole, rest), Subset(whole, chosen), len(whole.classes))


def _divided(count: int) -> tuple[list[int], list[int]]:
    chosen = [i for i in range(count) if i % HELD_OUT == 0]
    return chosen, [i for i in range(count) if i % HELD_OUT]


def _class_named(name: str) -> Any:
    """A data set of torchvision that has a part for training and one to test with."""
    for found in torchvision.datasets.__all__:
        if found.lower() == name.lower():
            made: Any = getattr(torchvision.datasets, found)
            return made if _dividing(made) else None
    return None


def _dividing(made: Any) -> str | None:
    """The argument that says which part is wanted."""
    parameters = inspect.signature(made).parameters
    return next((name for name in ("train", "split") if name in parameters), None)


def _of_torchvision(settings: DataSettings, channels: int) -> _Sets:
    made = _class_named(settings.name or "")
    options: dict[str, Any] = {"root": settings.root}
    if "download" in inspect.signature(made.__init__).parameters:
        options["download"] = settings.download
    parts = (True, False) if _dividing(made) == "train" else ("train", "test")
    random, plain = _transforms(settings, channels, augment=settings.augment), _transforms(settings, channels)
    made_with = ((parts[0], random), (parts[0], plain), (parts[1], plain))
    try:
        train, whole, test = (made(**options, **{str(_dividing(made)): part}, transform=t) for part, t in made_with)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        remedy = f"say where they are (--data-root), or --download: torchvision then loads them into {settings.root}"
        if isinstance(error, ValueError | TypeError):  # it wants to be told more than which part
            remedy = "put its images into a folder per class, and give --data FOLDER"
        raise InputError(f"{settings.name} cannot be read: {str(error).splitlines()[0]}", remedy=remedy) from error
    classes: Any = getattr(whole, "classes", None)
    if classes is None:
        classes = sorted({int(label) for label in getattr(whole, "labels", [])})
    return _Sets(train, whole, test, len(classes))


def _transforms(settings: DataSettings, channels: int, *, augment: bool = False) -> Callable[[Any], Any]:
    """From an image to a tensor (C, H, W) with the mean and spread of ImageNet's."""
    size = image_size(settings)
    if channels not in (1, 3):
        raise InputError(
            f"the model takes images of {channels} channels, and those of {settings.name} are grey or in colour",
            remedy="give a model for 1 or 3 channels, or train it by fxcat.fit in a script of your own",
        )
    steps: list[Any] = [v2.ToImage(), v2.Grayscale() if channels == 1 else v2.RGB()]
    if augment and size >= LARGE:
        steps += [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    elif augment:
        steps += [v2.Resize((size, size), antialias=True), v2.RandomCrop(size, padding=size // 8)]
    else:
        steps += [v2.Resize(size * 8 // 7 if size >= LARGE else (size, size), antialias=True), v2.CenterCrop(size)]
    mean, std = (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
