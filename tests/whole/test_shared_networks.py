"""One network in several hands: controllers, threads, copies, gates that were taken before it became smaller."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from wrong_use_nets import HALF, X, prepared

import fxcat


def test_gates_that_were_taken_before_a_shrink_are_refused() -> None:
    net = prepared()
    first, second = net.gates.values()
    first.theta[3:] = 0.0
    net.shrink()
    with pytest.raises(fxcat.InputError, match=r"become smaller since(?s:.*)where: 3"):
        second.set(0.0)
    assert net.gates["3"].theta.shape == (8,)


def steps(net: fxcat.GatedModule, sgd: torch.optim.Optimizer, controller: fxcat.GateController, count: int) -> None:
    for _ in range(count):
        sgd.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        sgd.step()
        controller.step()


def test_two_controllers_of_one_network() -> None:
    net = prepared()
    sgd = torch.optim.SGD(net.weight_parameters(), lr=0.1)

    def controller() -> fxcat.GateController:
        return fxcat.GateController(net, sgd, target=HALF, total_steps=8, warmup=0.25)

    unused, second = controller(), controller()  # the first has done nothing
    with pytest.raises(fxcat.InputError, match="another GateController was made"):
        unused.step()
    steps(net, sgd, second, 1)
    with pytest.raises(fxcat.InputError, match="another GateController trains"):
        controller()
    steps(net, sgd, second, 4)
    assert second.phase == "plain"


@pytest.mark.usefixtures("switching")
def test_threads_share_a_network() -> None:
    """Values, and gradients, are those of one thread alone."""
    net = prepared().eval()
    inputs = torch.randn(2, 3, 8, 8)
    expected = net(inputs)
    wanted = torch.autograd.grad(expected.sum(), net.network[0].weight)[0]  # pyright: ignore[reportIndexIssue]
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(25):
                found = net(inputs)
                gradient = torch.autograd.grad(found.sum(), net.network[0].weight)[0]  # pyright: ignore[reportIndexIssue]
                if not torch.equal(found, expected) or not torch.equal(gradient, wanted):
                    wrong.append(found)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_have_gate_values_of_their_own() -> None:
    net = prepared().eval()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.gates["0"].set(torch.tensor([1.0] * 4 + [0.0] * 4))
        assert torch.equal(fxcat.finalize(other)(X), other(X))
