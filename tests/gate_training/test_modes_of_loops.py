"""A loop may run in modes of PyTorch, as a whole or where the controller is called: nothing breaks on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halved import STEPS, batch, check, controlled, descend, prepared, sgd

pytestmark = pytest.mark.usefixtures("one_thread")

Mode = Callable[[], AbstractContextManager[Any]]

MODES: dict[str, tuple[Mode, Mode]] = {
    "inference mode, of the controller": (nullcontext, torch.inference_mode),
    "no gradients, of the controller": (nullcontext, torch.no_grad),
    "another device by default, of the controller": (nullcontext, lambda: torch.device("meta")),
    "another device by default": (lambda: torch.device("meta"), nullcontext),
    "one autocast round all": (lambda: torch.autocast("cpu", torch.bfloat16), nullcontext),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_a_loop(mode: str) -> None:
    whole, step = MODES[mode]
    net = prepared()
    with whole():
        optimizer = sgd(net)
        controller = controlled(net, optimizer)
        for i in range(STEPS):
            x, y = batch(i)
            descend(optimizer, F.cross_entropy(net(x), y))
            with step():
                controller.step()
        assert sum(net.live_gates().tolist()) < len(net.live_gates())
    check(net)


def test_a_run_is_finished_and_looked_at_in_any_mode() -> None:
    for mode in (torch.inference_mode, lambda: torch.device("meta")):
        net = prepared()
        optimizer = sgd(net)
        controller = controlled(net, optimizer)
        descend(optimizer, F.cross_entropy(net(batch(0)[0]), batch(0)[1]))
        with mode():
            controller.step()
            state = controller.state_dict()
            controller.load_state_dict(state)
            controller.finish()
            net.kept_indices()
        descend(optimizer, F.cross_entropy(net(batch(1)[0]), batch(1)[1]))
        check(net)
