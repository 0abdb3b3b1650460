"""Data loaders of a resumed run give what they would have given."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import (
    EXAMPLE,
    Interrupted,
    InterruptingLoss,
)
from small_task import Net, batches
from torch.utils.data import DataLoader, TensorDataset

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")


def check_resume(loader: Callable[[int], Any], folder: Path) -> None:
    """Three epochs, interrupted in the second; a new process has another seed."""

    def trained(stop: int | None, seed: int, name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
        given: dict[str, Any] = {"loss": InterruptingLoss(stop), "checkpoint_dir": folder / name, "resume": True}
        fxcat.fit(net, loader(seed), epochs=3, target=fxcat.Target(flops=0.5), progress=False, **given)
        return net.state_dict()

    whole = trained(None, 0, "whole")
    with pytest.raises(Interrupted):
        trained(len(loader(0)) + 2, 0, "parts")
    ended = trained(None, 5, "parts")
    assert all(torch.equal(v, whole[k]) for k, v in ended.items())


def test_data_loaders_with_a_state_of_their_own(tmp_path: Path) -> None:
    class Own:
        """Batches in an order that it draws itself."""

        def __init__(self, seed: int) -> None:
            self.random = random.Random(seed)

        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Any:
            images, labels = batches(256).tensors
            order = self.random.sample(range(256), 256)
            return iter([(images[order[i : i + 32]], labels[order[i : i + 32]]) for i in range(0, 256, 32)])

        def state_dict(self) -> dict[str, Any]:
            return {"random": self.random.getstate()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.random.setstate(state["random"])

    check_resume(Own, tmp_path)


class Noisy(TensorDataset):
    """Draws from the worker's random state."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.rand(()), label


FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@FORKS
@pytest.mark.parametrize("seeded", (False, True))
def test_workers(seeded: bool, tmp_path: Path) -> None:
    def noisy(seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed) if seeded else None
        return DataLoader(Noisy(*batches(128).tensors), 32, shuffle=True, num_workers=1, generator=generator)

    check_resume(noisy, tmp_path)


@FORKS
def test_persistent_workers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    train = DataLoader(batches(64), 32, num_workers=1, persistent_workers=True)
    given: dict[str, Any] = {"loss": InterruptingLoss(0), "checkpoint_dir": tmp_path, "progress": False}
    with pytest.raises(Interrupted):
        fxcat.fit(net, train, epochs=1, target=fxcat.Target(flops=0.5), **given)
    assert "train_loader= has persistent workers" in caplog.text
