"""`fit` with batches, losses, schedules and additions of all the kinds that people have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches, loader
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

import fxcat
from fxcat.data.batches import HeldOut, Repeated

EXAMPLE = torch.zeros(2, 3, 8, 8)
HALF = fxcat.Target(flops=0.5)
X, Y = batches(128).tensors
QUIET: dict[str, Any] = {"progress": False, "epochs": 3, "target": HALF}


def prepared(model: nn.Module | None = None, example: Any = EXAMPLE) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(model or Net(), example, verbose=False)


class WithLoss(Net):
    """As the models of Transformers: keywords, and a result with a loss."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        logits = super().forward(pixel_values)
        found = {"logits": logits}
        return found if labels is None else {"loss": F.cross_entropy(logits, labels), **found}


def dicts() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": x, "labels": y, "id": y} for x, y in zip(X.split(32), Y.split(32), strict=True)]


def test_dicts_of_arguments_and_the_models_own_loss() -> None:
    net = prepared(WithLoss(), {"pixel_values": EXAMPLE, "labels": Y[:2]})
    history = fxcat.fit(net, dicts(), dicts(), loss=None, **QUIET)
    last = history.epochs[-1]
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert last.val_accuracy is not None and 0 <= last.val_accuracy <= 1
    with pytest.raises(fxcat.InputError, match=r"loss=None"):
        fxcat.fit(prepared(WithLoss(), {"pixel_values": EXAMPLE, "labels": Y[:2]}), dicts(), **QUIET)


class Two(Net):
    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return super().forward(x + z)


@pytest.mark.parametrize("form", [tuple, list, lambda pair: dict(zip("xz", pair, strict=True))])
def test_several_inputs(form: Any) -> None:
    net = prepared(Two(), (EXAMPLE, EXAMPLE))
    data = [(form((x, x)), y) for x, y in zip(X.split(32), Y.split(32), strict=True)]
    history = fxcat.fit(net, data, data, **QUIET)
    assert history.epochs[-1].val_accuracy is not None
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


class Auto(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))


def test_data_without_labels() -> None:
    history = fxcat.fit(prepared(Auto()), list(X.split(32)), list(X.split(32)), loss=F.mse_loss, **QUIET)
    assert history.epochs[-1].train_accuracy is None


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def test_loaders_without_a_length() -> None:
    stream = DataLoader(Stream(), batch_size=32)
    history = fxcat.fit(prepared(), stream, stream, steps_per_epoch=7, **QUIET)
    assert len(history.epochs) == 3
    with pytest.raises(fxcat.InputError, match="steps_per_epoch"):
        fxcat.fit(prepared(), Stream(), **QUIET)
    with pytest.raises(fxcat.InputError, match="yields nothing"):
        fxcat.fit(prepared(), iter(()), steps_per_epoch=7, **QUIET)


@pytest.mark.parametrize(
    "cut", [lambda batches: iter(Repeated(batches, 5)), lambda batches: iter(HeldOut(batches).next, None)]
)
def test_loaders_are_begun_again_only_when_they_have_ended(cut: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
    """A data loader starts its workers, and draws a seed, whenever it is begun."""
    begun: list[int] = []

    class Batches:
        def __iter__(self) -> Iterator[int]:
            begun.append(1)
            return iter(range(3))

    assert list(itertools.islice(cut(Batches()), 5)) == [0, 1, 2, 0, 1]
    assert len(begun) == 2


def test_batches_of_another_form_are_unpacked() -> None:
    data = [(x, y, "name") for x, y in zip(X.split(32), Y.split(32), strict=True)]
    with pytest.raises(fxcat.InputError, match="unpack="):
        fxcat.fit(prepared(), data, **QUIET)
    fxcat.fit(prepared(), data, unpack=lambda batch: batch[:2], **QUIET)


@pytest.mark.parametrize("loss", [lambda o, t: 1.0, lambda o, t: (o.sum(), 1), lambda o, t: o, lambda o, t: {"l": o}])
def test_losses_that_are_no_number(loss: Any) -> None:
    with pytest.raises(fxcat.InputError, match="loss= returned"):
        fxcat.fit(prepared(), loader(), loss=loss, **QUIET)


def test_a_loss_that_was_detached() -> None:
    with pytest.raises(fxcat.InputError, match="no weight depends"):
        fxcat.fit(prepared(), loader(), loss=lambda o, t: F.cross_entropy(o, t).detach(), **QUIET)


def test_one_column_is_no_classification() -> None:
    class One(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :1]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(output[:, 0], target.float())

    history = fxcat.fit(prepared(One()), loader(64), loss=loss, **QUIET)
    assert history.epochs[-1].train_accuracy is None


def test_schedules_per_step_and_by_plateau() -> None:
    net = prepared()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=3 * 8 + 1)
    fxcat.fit(net, loader(), optimizer=optimizer, scheduler=schedule, schedule_per="step", **QUIET)
    assert schedule.last_epoch == 24
    net = prepared()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
    fxcat.fit(net, loader(), loader(64), optimizer=optimizer, scheduler=plateau, **QUIET)
    assert optimizer.param_groups[0]["lr"] < 0.05


@pytest.mark.parametrize(
    "make", [lambda o: OneCycleLR(o, 0.05, total_steps=3 * 8), lambda o: CosineAnnealingLR(o, T_max=3 * 8)]
)
def test_a_schedule_of_steps_that_follows_epochs_is_told_of(make: Any) -> None:
    net = prepared()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    with pytest.warns(UserWarning, match='schedule_per="step"'):
        fxcat.fit(net, loader(), optimizer=optimizer, scheduler=make(optimizer), **QUIET)


def test_a_schedule_of_as_many_epochs_as_steps_is_not() -> None:
    net = prepared()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    schedule = CosineAnnealingLR(optimizer, T_max=3)
    fxcat.fit(net, loader(), optimizer=optimizer, scheduler=schedule, steps_per_epoch=1, **QUIET)
    assert schedule.last_epoch == 3


def test_clipping_and_accumulation() -> None:
    net = prepared()
    history = fxcat.fit(net, loader(), accumulate=3, clip_norm=0.5, **QUIET)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert len(history.epochs) == 3


def test_parts_of_a_batch_train_as_the_whole() -> None:
    """Without batch statistics, and with all gates open."""
    weights: list[torch.Tensor] = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).double()
        net = fxcat.prepare(model, EXAMPLE.double(), verbose=False)
        sizes = 32 // parts
        data = list(zip(X.double().split(sizes), Y.split(sizes), strict=True))
        fxcat.fit(net, data, epochs=2, target=fxcat.Target(flops=1.0), accumulate=parts, progress=False)
        weights.append(torch.cat([p.flatten() for p in net.weight_parameters()]))
    torch.testing.assert_close(*weights)


def test_averages_metrics_and_callbacks() -> None:
    net = prepared()
    average, seen = AveragedModel(net), list[int]()

    def stop_after_two(record: fxcat.history.EpochRecord, network: fxcat.GatedModule) -> bool:  # pyright: ignore[reportAttributeAccessIssue]
        assert network is net
        seen.append(record.epoch)
        return record.epoch == 1

    history = fxcat.fit(
        net,
        loader(),
        loader(64),
        averages=[average],
        metrics={"error": lambda o, t: (o.argmax(1) != t).float().mean()},
        callbacks=[stop_after_two],
        **{**QUIET, "epochs": 20},
    )
    assert seen == [0, 1] and len(history.epochs) == 2
    record = history.epochs[-1]
    assert record.val_accuracy is not None
    assert record.metrics["error"] == pytest.approx(1 - record.val_accuracy)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs  # it ended early, and was finished
    assert int(average.n_averaged) == 16
    shapes = [p.shape for p in average.module.network.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    assert shapes == [p.shape for p in net.network.parameters()]


def test_early_stopping_waits_for_the_final_structure() -> None:
    stop = fxcat.EarlyStopping(patience=2)
    phases = ["gated", "gated", "gated", "plain", "plain", "plain", "plain"]
    losses = [1.0, 2.0, 3.0, 2.0, 1.5, 1.6, 1.7]
    net: Any = None
    records: Any = [SimpleNamespace(phase=p, loss=v) for p, v in zip(phases, losses, strict=True)]
    assert [stop(r, net) for r in records] == [False] * 6 + [True]


def test_frozen_norms_stay_frozen() -> None:
    net = prepared(Net().train())
    norm = net.network.get_submodule("stem.1")
    norm.eval()
    before = norm.get_buffer("running_mean").clone()
    fxcat.fit(net, loader(), loader(64), **QUIET)
    kept = norm.get_buffer("running_mean")
    assert all(bool((before == value).any()) for value in kept) and not bool(norm.get_buffer("num_batches_tracked"))


def test_an_empty_validation_loader_is_said() -> None:
    with pytest.raises(fxcat.InputError, match="val_loader yields nothing"):
        fxcat.fit(prepared(), loader(64), [], **QUIET)


def test_a_second_fit_says_what_to_do() -> None:
    net = prepared()
    fxcat.fit(net, loader(64), **QUIET)
    with pytest.raises(fxcat.InputError, match="decided"):
        fxcat.fit(net, loader(64), **QUIET)


def test_statistics_can_be_estimated_again_in_a_loop_of_ones_own() -> None:
    net = prepared().train()
    for gate in net.gates.values():
        gate.theta[::2] = 0.0 if gate.kind == "units" else 1.0
    fxcat.recalibrate(net, X.split(32))
    output = net.eval()(X)
    assert net.gate_vector.values == "sampled"
    small = fxcat.finalize(net).train()
    torch.testing.assert_close(output.mean(0), small(X).mean(0), rtol=0.2, atol=0.1)


def test_a_loader_that_yields_more_than_it_says() -> None:
    class Longer(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return itertools.chain(super().__iter__(), super().__iter__())

    data = Longer(zip(X.split(32), Y.split(32), strict=True))
    assert len(fxcat.fit(prepared(), data, **QUIET).epochs) == 3
