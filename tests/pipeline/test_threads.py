"""Several threads that use one network: each gets what it would get alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Net
from torch import nn

import fxcat
from fxcat.network.gates import SAMPLES

pytestmark = pytest.mark.usefixtures("one_thread", "switching")

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Predicting(Net):
    """Has methods that run it."""

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return F.softmax(self(x), 1)

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict(x) + self.predict(x)


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Predicting(), X, verbose=False)


def in_threads(*works: Callable[[], object]) -> None:
    """Run them at once; raises what the first of them raises."""
    errors: list[BaseException] = []

    def caught(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=caught, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_methods_of_the_model_in_several_threads() -> None:
    net = prepared().eval()
    net.gates["block.0"].theta[::2] = 0.0
    expected = net(X)
    wanted = {"predict": F.softmax(expected, 1), "twice": 2 * F.softmax(expected, 1)}

    def by_method(name: str) -> None:
        for _ in range(40):
            assert torch.equal(getattr(net, name)(X), wanted[name])

    def by_call() -> None:
        for _ in range(40):
            assert torch.equal(net(X), expected)

    in_threads(by_call, lambda: by_method("predict"), lambda: by_method("twice"), by_call)
    assert "forward" not in vars(net.network)
    assert torch.equal(copy.deepcopy(net).predict(X), wanted["predict"])


def test_training_passes_have_the_gates_that_they_drew() -> None:
    net = prepared().train()
    weight: Any = net.network.get_parameter("head.weight")
    samples = [torch.ones_like(net.gate_vector.theta.detach()) for _ in range(3)]
    samples[1][::2] = 0.0
    samples[2][1::2] = 0.0
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for sample in samples:
        with net.gate_vector.fixed(sample):
            output = net(X)
        found.append((output.detach(), torch.autograd.grad(output.square().sum(), weight)[0]))
    own: dict[int, torch.Tensor] = {}
    net.gate_vector._sample = lambda: own[threading.get_ident()]

    def work(number: int) -> None:
        own[threading.get_ident()] = samples[number]
        for _ in range(15):
            output = net(X)
            assert torch.equal(output, found[number][0])
            assert torch.equal(torch.autograd.grad(output.square().sum(), weight)[0], found[number][1])

    in_threads(*(lambda n=n: work(n) for n in range(3)))


def test_a_thread_that_changes_the_mode_leaves_no_gates_behind() -> None:
    net = prepared()
    expected = net.eval()(X)
    net.gate_vector.theta.data.fill_(0.5)
    done = threading.Event()

    def train() -> None:
        try:
            net.train()
            for _ in range(40):
                net(X).sum().backward()
        finally:
            done.set()

    def validate() -> None:
        while not done.is_set():
            net.eval()
            net.train()

    in_threads(train, validate)
    assert not [name for name in vars(net.network.get_submodule(SAMPLES)) if name.startswith("gate")]
    net.gate_vector.theta.data.fill_(1.0)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
    torch.testing.assert_close(net.eval()(X), expected)


def test_replicas_for_several_devices_are_refused() -> None:
    replica: Any = prepared()._replicate_for_data_parallel()
    with pytest.raises(fxcat.InputError, match=r"DataParallel(?s:.*)DistributedDataParallel"):
        replica(X)
