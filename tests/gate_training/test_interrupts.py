"""Ctrl-C in a notebook, whose loop is gone on with: nothing is left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from halved import STEPS, batch, check, controlled, descend, prepared, sgd
from torch import nn

from fxcat.gate_training import shrinking
from fxcat.utils.uninterrupted import uninterrupted


def interrupting(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """A function in whose call number `at` Ctrl-C comes."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("place", ("sliced", "check_state", "_forget"))
def test_a_shrink_is_made_as_a_whole(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, place, interrupting(getattr(shrinking, place), 1))
    net = prepared()
    optimizer = sgd(net)
    controller, interrupts, number = controlled(net, optimizer), 0, 0
    while controller.steps < STEPS:
        x, y = batch(number)
        number += 1
        try:
            descend(optimizer, nn.functional.cross_entropy(net(x), y))
            controller.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert (interrupts, number) == (1, STEPS)
    check(net)


def test_it_takes_effect_at_the_end() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = threading.Thread(target=uninterrupted()(lambda: done.append(3)))
    other.start()
    other.join()
    assert done == [1, 2, 3]
