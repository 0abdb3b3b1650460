"""A run may be longer than it was begun: its gates keep their phases, and plain training goes on."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interrupted import EXAMPLE, Interrupted, Setup, losses_per_epoch, run
from small_task import Net, batches
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y = batches(512).tensors


def loop(total: int, stop: int | None = None, state: bytes | None = None, policy: Any = "bernoulli") -> Any:
    """A loop of one's own up to `stop`; returns the network, the controller, and their state."""
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False, policy=policy)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    held_out = [(X[:32], Y[:32])] if policy == "ratio" else None
    target = fxcat.Target(flops=0.4)
    controller = fxcat.GateController(net, optimizer, target=target, total_steps=total, held_out=held_out)
    parts: tuple[Any, ...] = (net, optimizer, controller)
    if state is not None:
        for part, stored in zip(parts, torch.load(io.BytesIO(state), weights_only=True), strict=True):
            part.load_state_dict(stored)
    for step in range(controller.steps, total if stop is None else stop):
        x, y = X[step * 16 % 512 :][:16], Y[step * 16 % 512 :][:16]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        controller.step()
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    return net, controller, file.getvalue()


def same(one: fxcat.GatedModule, other: fxcat.GatedModule) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.mark.parametrize(
    ("stop", "policy"), ((3, "bernoulli"), (30, "bernoulli"), (30, "ratio"), (44, "ratio"), (80, "bernoulli"))
)
def test_a_loop_of_ones_own_is_prolonged_exactly(stop: int, policy: str) -> None:
    """In the warm-up, while gates are trained, after them, and when it had ended: as far as it would have gone before
    it becomes what it would have become, and then trains on."""
    whole, before, _ = loop(80, policy=policy)
    _, _, state = loop(80, stop, policy=policy)
    net, controller, longer = loop(120, 80, state, policy)
    assert same(net, whole)
    assert controller.schedule == before.schedule and controller.total_steps == 120
    net, controller, _ = loop(130, None, longer, policy)
    assert controller.steps == 130 and controller.phase == "plain"
    assert net.live_units() == whole.live_units() and not same(net, whole)
    fxcat.finalize(net)  # does not warn


def test_a_loop_of_ones_own_does_not_become_shorter() -> None:
    _, _, state = loop(60, 60)
    with pytest.raises(fxcat.InputError, match=r"total_steps=60, this one has 50(?s:.*)may be more"):
        loop(50, 50, state)


def cosine(epochs: int) -> Setup:
    return Setup(
        lambda p: torch.optim.SGD(p, lr=0.04, momentum=0.9), lambda o: CosineAnnealingLR(o, epochs), epochs=epochs
    )


def test_a_finished_run_is_prolonged(tmp_path: Path) -> None:
    first = run(tmp_path, cosine(3))
    assert first.net.gate_vector.theta.requires_grad is False
    longer = run(tmp_path, cosine(5), resume=True)
    assert longer.steps == 2 * losses_per_epoch(cosine(5))
    assert longer.history.epochs[:3] == first.history.epochs
    assert longer.net.live_units() == first.net.live_units()
    rates = [0.5 * 0.04 * (1 + torch.tensor(torch.pi * e / 5).cos().item()) for e in range(5)]
    assert [e.learning_rate for e in longer.history.epochs[3:]] == pytest.approx(rates[3:], rel=1e-5)
    again = run(tmp_path, cosine(5), resume=True)
    assert again.steps == 0 and again.same_as(longer)


def test_a_run_is_prolonged_while_gates_are_trained(tmp_path: Path) -> None:
    """The gates' phases are those that it was begun with; it may be interrupted again."""
    with pytest.raises(Interrupted):
        run(tmp_path, Setup(epochs=4), stop=losses_per_epoch(Setup()) + 3)
    with pytest.raises(Interrupted):
        run(tmp_path, Setup(epochs=6), resume=True, stop=3 * losses_per_epoch(Setup()) + 1)
    done = run(tmp_path, Setup(epochs=6), resume=True)
    phases = [e.phase for e in done.history.epochs]
    assert phases == ["gated", "gated", "plain", "plain", "plain", "plain"]
    rates = [e.learning_rate for e in done.history.epochs]
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 1e-3 < rates[-2]


@pytest.mark.parametrize("options", ({"schedule_per": "step"}, {}))
def test_schedules_are_those_of_the_longer_run(options: dict[str, Any], tmp_path: Path) -> None:
    """Also one that refuses to be stepped beyond its end, and one that goes by losses."""

    def setup(epochs: int) -> Setup:
        def scheduler(optimizer: torch.optim.Optimizer) -> Any:
            if options:
                return OneCycleLR(optimizer, 0.1, total_steps=epochs * 8)
            return ReduceLROnPlateau(optimizer, patience=0, factor=0.1, threshold=1.0)

        return replace(cosine(epochs), scheduler=scheduler, batch=32)

    run(tmp_path, setup(2), **options)
    longer = run(tmp_path, setup(3), resume=True, **options)
    whole = run(None, setup(3), **options)
    assert len(longer.history.epochs) == 3
    if options:
        rates = [[e.learning_rate for e in r.history.epochs] for r in (longer, whole)]
        assert rates[0][2] == pytest.approx(rates[1][2])
    else:
        assert longer.history.epochs[2].learning_rate == pytest.approx(0.04 * 0.1**2)
