"""What `fit` and its like are given wrongly, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches, loader
from torch import nn

import fxcat

HALF = fxcat.Target(flops=0.5)
X, Y = batches(64).tensors


def prepared(**options: Any) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), X[:1], verbose=False, **options).train()


def fitted(net: fxcat.GatedModule, data: Any = None, **options: Any) -> fxcat.History:
    settings: dict[str, Any] = {"epochs": 1, "target": HALF, "progress": False}
    return fxcat.fit(net, loader(64) if data is None else data, **settings | options)


def sgd(net: fxcat.GatedModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.weight_parameters(), lr=0.05)


def other_scheduler(net: fxcat.GatedModule) -> Any:
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return fitted(net, optimizer=sgd(net), scheduler=torch.optim.lr_scheduler.StepLR(other, 1))


def wrapped_scheduler(net: fxcat.GatedModule) -> Any:
    optimizer = sgd(net)
    parts: list[Any] = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 1)]
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [1])
    return fitted(net, optimizer=optimizer, scheduler=chained)


CASES: list[tuple[Callable[[fxcat.GatedModule], Any], str]] = [
    (other_scheduler, "the scheduler is that of another optimizer"),
    (lambda n: fitted(n, optimizer=[sgd(n)]), r"fit\(\) takes one optimizer"),
    (lambda n: fitted(n, seed=2**70), "seed=.* is no whole number"),
    (lambda n: fitted(n, teacher=nn.Linear(3, 3)), "the teacher does not take what train_loader yields: RuntimeError"),
    (lambda n: fitted(n, [(X.double(), Y)]), "the network does not take what train_loader yields: RuntimeError"),
    (lambda n: fitted(n, val_loader=loader(64), metrics={"m": lambda o, t: "x"}), "the metric 'm' gives a str, not a"),
    (lambda n: fitted(n, held_out=loader(64)), "held_out= would do nothing"),
    (lambda n: fxcat.GateController(n, sgd(n), target=HALF, total_steps=9, loss=F.mse_loss), "loss= would do nothing"),
    (lambda n: fxcat.GateController(n, sgd(n), target=HALF, total_steps=9, held_out=[]), "held_out= would do nothing"),
    (lambda n: fxcat.recalibrate(n, X[:8]), "is a Tensor, not batches"),  # pyright: ignore[reportArgumentType]
    (lambda n: fxcat.recalibrate(Net(), [X]), r"recalibrate\(\) got a Net, not a GatedModule"),  # pyright: ignore[reportArgumentType]
    (lambda n: fxcat.recalibrate(n, []), "there are no batches"),
    (lambda n: fxcat.EarlyStopping("a"), "patience='a' is no"),  # pyright: ignore[reportArgumentType]
    (lambda n: fxcat.EarlyStopping(0), "patience=0"),
]


@pytest.mark.parametrize(("wrong", "message"), CASES)
def test_it_is_said(wrong: Callable[[fxcat.GatedModule], Any], message: str) -> None:
    net = prepared()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(fxcat.InputError, match=message):
        wrong(net)
    if "metric" not in message:  # that is known when an epoch has been trained
        assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_what_is_right_goes_on() -> None:
    wrapped_scheduler(prepared())
    fitted(prepared(), epochs=np.int64(1), steps_per_epoch=np.int32(2), accumulate=np.int64(1))
    fitted(prepared(gates="units", policy="ratio"), held_out=loader(64))
    fxcat.recalibrate(prepared(), [X[:8]])


def test_a_history_with_metrics_is_read_again(tmp_path: Path) -> None:
    history = fitted(prepared(), val_loader=loader(64), metrics={"mean": lambda o, _: float(o.mean())})
    history.save(tmp_path / "history.json")
    assert fxcat.History.load(tmp_path / "history.json") == history


def test_gradients_by_autograd_grad_to_the_end() -> None:
    """As the error about gradients that say nothing of the gates advises."""
    net = prepared()
    optimizer = sgd(net)
    controller = fxcat.GateController(net, optimizer, target=HALF, total_steps=20)
    for _ in range(20):
        loss = F.cross_entropy(net(X), Y)
        weights = list(net.weight_parameters())
        slopes = torch.autograd.grad(loss, [*weights, *net.gate_parameters()])
        for weight, slope in zip(weights, slopes, strict=False):
            weight.grad = slope
        optimizer.step()
        controller.step()
    assert controller.phase == "plain"
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


def test_numbers_of_numpy_are_stored(tmp_path: Path) -> None:
    """They come from `np.linspace`."""
    half: Any = np.float32(0.5)
    options: dict[str, Any] = {"lr": half, "until": half, "warmup": np.float32(0.1), "clip_norm": half}
    options |= {"distillation_weight": half, "teacher": True, "target": fxcat.Target(flops=half)}
    options |= {"epochs": np.int64(1), "checkpoint_dir": tmp_path, "resume": True}
    fitted(prepared(), **options)
    assert len(fitted(prepared(), **options).epochs) == 1


def test_callbacks_return_whether_to_end() -> None:
    """What their last line happens to give is no word of it."""
    others: tuple[Any, ...] = (lambda _, net: net.eval(), lambda r, _: r.train_loss, lambda *_: torch.ones(2))
    for callback in others:
        with pytest.raises(fxcat.InputError, match="one of callbacks= returned a"):
            fitted(prepared(), callbacks=[callback])
    for said, epochs in ((None, 2), (False, 2), (np.True_, 1)):
        assert len(fitted(prepared(), epochs=2, callbacks=[lambda *_, said=said: said]).epochs) == epochs


def test_a_last_batch_that_cannot_be_trained_with() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    net = fxcat.prepare(model, X[:2], verbose=False)
    with pytest.raises(fxcat.InputError, match=r"Expected more than 1 value per channel(?s:.*)drop_last=True"):
        fitted(net, [(X[:8], Y[:8]), (X[:8], Y[:8]), (X[:1], Y[:1])])


def test_values_that_there_are_not() -> None:
    with pytest.raises(fxcat.InputError, match="a tensor on the meta device"):
        fitted(prepared(), [(X.to("meta"), Y)])
    with pytest.raises(fxcat.InputError, match="returned a complex number"):
        fitted(prepared(), loss=lambda o, t: F.cross_entropy(o, t) * 1j)
    with pytest.raises(fxcat.InputError, match=r"val_loader yields nothing(?s:.*)no generator"):
        fitted(prepared(), epochs=2, val_loader=(pair for pair in [(X, Y)]))


def test_a_loss_of_something_else() -> None:
    other = nn.Parameter(torch.ones(()))
    with pytest.raises(fxcat.InputError, match="no weight depends on"):
        fitted(prepared(), loss=lambda *_: other * 2)
