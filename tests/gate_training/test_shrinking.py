"""Removal during training: nothing changes but the size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from exactness import random_gates, randomise
from small_task import EXAMPLE, Deep, Net, batches, loader
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision_nets import shufflenet

import fxcat
from fxcat.gate_training.shrinking import shrink_all

Optimizers = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def two_nets(*, sampled: bool) -> tuple[list[fxcat.GatedModule], torch.Tensor]:
    """Twice the same network with gates, some of them dead; the others are sampled, or open."""
    model = Deep().double()
    randomise(model, 0)
    nets = [fxcat.prepare(model, EXAMPLE, verbose=False) for _ in range(2)]
    random_gates(nets[0], 4)
    alive = nets[0].gate_vector.hard()
    theta = alive * (0.8 if sampled else 1.0)
    for net in nets:
        net.gate_vector.theta.data.copy_(theta)
        net.gate_vector.values = "sampled" if sampled else "hard"
    return nets, alive


def train(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    images, labels = batches(32, seed).tensors
    loss = F.cross_entropy(net(images.double()), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("sampled", (False, True))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shrinking_changes_nothing_but_size(optimizer: str, sampled: bool) -> None:
    """With dead gates held at zero, 20 steps of training with and without physical removal are the same."""
    nets, alive = two_nets(sampled=sampled)
    optimizers = [OPTIMIZERS[optimizer](n.weight_parameters()) for n in nets]
    averages = [AveragedModel(n, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for n in nets]
    held = {id(p) for g in optimizers[1].param_groups for p in g["params"]}
    losses: list[list[float]] = [[], []]
    for step in range(20):
        if step == 5:
            shrink_all(nets[1], alive, [optimizers[1]], [averages[1]])
        for i, net in enumerate(nets):
            losses[i].append(train(net, optimizers[i]))
            averages[i].update_parameters(net)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    large, small = (sum(p.numel() for p in n.network.parameters()) for n in nets)
    assert small < 0.7 * large
    assert small == sum(p.numel() for p in nets[0].finalized().parameters())
    images = batches(32, 1).tensors[0].double()
    with torch.no_grad():
        for pair in (nets, averages):
            torch.testing.assert_close(pair[1].eval()(images), pair[0].eval()(images), rtol=1e-8, atol=1e-12)
    left = [p for g in optimizers[1].param_groups for p in g["params"]]
    assert {id(p) for p in left} <= held
    assert {id(p) for p in left} == {id(p) for p in nets[1].weight_parameters()}


def test_factored_optimizer_state_follows() -> None:
    nets, alive = two_nets(sampled=False)
    optimizer = torch.optim.Adafactor(nets[0].weight_parameters(), lr=0.01)
    train(nets[0], optimizer)
    shrink_all(nets[0], alive, [optimizer])
    train(nets[0], optimizer)
    weight = nets[0].network.get_parameter("stem.0.weight")
    assert optimizer.state[weight]["row_var"].shape == (*weight.shape[:-1], 1)


def test_state_that_cannot_follow_is_refused_before_anything_changes() -> None:
    nets, alive = two_nets(sampled=False)
    net = nets[0]
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.01, momentum=0.9)
    train(net, optimizer)
    weight = net.network.get_parameter("head.weight")
    optimizer.state[weight]["preconditioner"] = torch.eye(weight.shape[0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(fxcat.InputError, match="'preconditioner'"):
        shrink_all(net, alive, [optimizer])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    train(net, optimizer)


def test_the_network_becomes_smaller_step_by_step() -> None:
    """Several removals in one run; the schedule of the target is followed, and no parameter object is replaced."""
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    average = AveragedModel(net)
    controller = fxcat.GateController(
        net, optimizer, target=fxcat.Target(flops=0.3), total_steps=160, averages=[average]
    )
    known = {id(p) for p in net.weight_parameters()}
    macs = [net.start_cost.macs]
    for _ in range(20):
        for x, y in loader():
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(net)
            if controller.step():
                macs.append(net.structure.cost.macs)
                assert {id(p) for p in net.weight_parameters()} <= known
            scheduler.step()
    assert len(macs) >= 4
    assert macs == sorted(macs, reverse=True)
    assert 0.29 < net.hard_cost().macs / net.start_cost.macs <= 0.3
    images = batches(64, 1).tensors[0]
    assert average.eval()(images).shape == net.eval()(images).shape
    assert isinstance(average.module, fxcat.GatedModule)
    assert fxcat.finalize(average.module)(images).shape == (64, 4)


def test_shuffles_that_break_one_after_the_other() -> None:
    """Each leaves a buffer with its surviving permutation: a later one must not replace an earlier one. Where nothing
    goes later, none is left."""
    model = shufflenet().double().eval()
    randomise(model, 0)
    images = torch.randn(1, 3, 64, 64).double()
    net = fxcat.prepare(model, images, verbose=False)
    net.gates["stage3.2.branch2.5"].theta[:2] = 0.0
    net.shrink()
    before = sum("channel_order" in name for name, _ in net.network.named_buffers())
    random_gates(net, 3)
    small = fxcat.finalize(net)
    assert not any("channel_order" in name for name, _ in small.named_buffers())
    expected = net(images)
    net.shrink()
    assert 0 < before < sum("channel_order" in name for name, _ in net.network.named_buffers())
    torch.testing.assert_close(net(images), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(small(images), net(images), rtol=1e-9, atol=1e-9)


def test_an_average_of_something_else_is_refused() -> None:
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    with pytest.raises(fxcat.InputError, match="averages="):
        fxcat.GateController(
            net, optimizer, target=fxcat.Target(flops=0.5), total_steps=9, averages=[AveragedModel(Net())]
        )


def losses_of(forward: Callable[[fxcat.GatedModule], Any], *, autocast: bool) -> list[float]:
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    call = forward(net)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=24)
    losses: list[float] = []
    for _ in range(3):
        for x, y in loader():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            controller.step()
            losses.append(loss.item())
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    return losses


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile hides it, if it is no error
@pytest.mark.parametrize("autocast", (False, True))
def test_compiled_training_is_the_same(autocast: bool) -> None:
    """torch.compile sees the network in one graph, and compiles it anew after a shrink."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    plain = losses_of(lambda net: net, autocast=autocast)
    compiled = losses_of(lambda net: torch.compile(net, backend=backend), autocast=autocast)
    assert compiled == plain
    convolutions = [sum("conv2d" in str(n.target) for n in g.graph.nodes) for g in graphs]
    assert all(c >= 1 for c in convolutions)
    assert 2 <= len(graphs) <= 10
    assert plain[-1] < 0.5 * plain[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_all_structures_of_all_networks_are_compiled() -> None:
    """torch compiles no code more often than its limit says."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(2):
            net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
            compiled = torch.compile(net, backend=backend)
            for structure in range(2):
                for mode in (True, False):
                    net.train(mode)
                    compiled(torch.ones(2, 3, 8, 8))
                    assert len(graphs) == 4 * number + 2 * structure + 1 + (not mode)
                keep = torch.ones_like(net.gate_vector.theta)
                keep[0] = 0
                net.shrink(keep)


def test_what_cannot_be_compiled_whole_says_so() -> None:
    torch._dynamo.reset()
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    with pytest.raises(Unsupported, match="without fullgraph=True"):
        torch.compile(net, backend="eager", fullgraph=True)(torch.zeros(2, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("gradients", (False, True))
def test_compiled_transformers_are_the_same(training: bool, gradients: bool) -> None:
    """None of their parameters is scaled by a gate, so in inference nothing of the gates is differentiated."""
    torch._dynamo.reset()
    model = torchvision.models.VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=4)
    net = fxcat.prepare(model, EXAMPLE, verbose=False).train(training)
    outputs: list[torch.Tensor] = []
    with torch.set_grad_enabled(gradients):
        for network in (net, torch.compile(net, backend="eager")):
            net.gate_vector.seed(0)
            outputs.append(network(torch.ones(2, 3, 8, 8)))
    assert torch.equal(*outputs)


def test_shuffles_stay_free_in_repeated_shrinks() -> None:
    """A shuffle that has become an index_select is still no obstacle, and no two of them share their indices."""
    model = shufflenet().double().eval()
    randomise(model, 0)
    net = fxcat.prepare(model, torch.zeros(1, 3, 64, 64), verbose=False).eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    names = [n for n, g in net.gates.items() if g.kind == "units"]
    with torch.no_grad():
        for first in range(3):
            for name in names[first::3]:
                net.gates[name].theta[1::3] = 0.0
            expected = net(images)
            net.shrink()
            torch.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-10)
            assert [n for n, g in net.gates.items() if g.kind == "units"] == names


def test_what_has_gone_costs_nothing() -> None:
    net = fxcat.prepare(Deep(), EXAMPLE, verbose=False)
    net.gates["first.section"].set(0.0)
    net.gates["second.0"].theta[3:] = 0.0
    wanted = net.hard_cost()
    net.shrink()
    assert net.hard_cost() == wanted
    assert sum(p.numel() for p in fxcat.finalize(net).parameters()) == wanted.params
