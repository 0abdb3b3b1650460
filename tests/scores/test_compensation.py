"""`one_shot(compensate=)`: what units gave on average goes into the biases of the layers that read them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import batches, loader, trained_net
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import fxcat
from fxcat.gated import GatedModule
from fxcat.scores import importance

pytestmark = pytest.mark.usefixtures("one_thread")


class Branches(nn.Module):
    """A value that two layers read, sums without a normalisation, a grouped and a depthwise convolution."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.left, self.right = (nn.Conv2d(8, 6, 1, bias=bias) for _ in range(2))
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=bias)
        self.grouped = nn.Conv2d(6, 8, 1, groups=2, bias=bias)
        self.up = nn.ConvTranspose2d(8, 4, 1, bias=bias)
        self.head = nn.Linear(4 * 6 * 6, 5, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.stem(x))
        x = torch.sigmoid(self.left(x) + self.right(x))
        x = F.softplus(self.grouped(F.relu(self.depthwise(x)) + 1))
        return self.head(torch.sigmoid(self.up(x)).flatten(1))


def normalised(bias: bool) -> nn.Sequential:
    """Convolutions before batch normalisations."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 6, 3, bias=bias),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Conv2d(6, 6, 1, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 6 * 6, 4),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "branches": lambda: Branches(True),
    "branches without biases": lambda: Branches(False),
    "normalised": lambda: normalised(True),
    "normalised without biases": lambda: normalised(False),
}


def prepared(model: nn.Module, size: int = 10) -> GatedModule:
    return fxcat.prepare(model, torch.zeros(1, 3, size, size), verbose=False)


def with_constants(model: nn.Module, dead: GatedModule) -> tuple[nn.Module, torch.Tensor]:
    """The model in double precision, a third of the units of every group constant over the data, and scores that close
    these: 0 for them, 1 for the others."""
    generator = torch.Generator().manual_seed(1)
    model = model.double().eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data.copy_(values + 0.5 if name.endswith("var") else values - 0.3)
    scores = torch.ones_like(dead.gate_vector.theta, dtype=torch.float64)
    for gate in dead.gates.values():
        scores[gate.start : gate.start + gate.count // 3] = 0.0
    tensors = dict(model.named_parameters())
    for name, axes in dead.program.unit_axes(dead.network).items():
        if name.endswith("weight") and tensors[name].dim() > 1:
            axis = 1 if name.startswith("up") else 0
            numbers = axes.get(axis)
            if numbers is not None:
                constant = (numbers >= 0) & (scores[numbers.clamp(min=0)] == 0)
                tensors[name].data.index_fill_(axis, constant.nonzero().reshape(-1), 0.0)
    return model, scores


def closing(net: GatedModule, scores: torch.Tensor) -> fxcat.Target:
    """A target that takes all gates that score 0, and no other."""
    keep = (scores > 0).double()
    units = net.gate_vector.unit_count
    cost = net.cost_model.cost(keep[:units], keep[units:])
    return fxcat.Target(flops=(cost.macs.item() + 0.5) / net.start_cost.macs)


@pytest.mark.parametrize("name", NETS)
def test_what_is_constant_goes_without_a_change(name: str, tmp_path: Path) -> None:
    model, scores = with_constants(NETS[name](), prepared(NETS[name]()))
    net = prepared(model)
    data = [(torch.randn(4, 3, 10, 10, dtype=torch.float64), None) for _ in range(2)]
    x = torch.randn(5, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        fxcat.one_shot(prepared(model), scores, target=closing(net, scores))
        fxcat.one_shot(net, scores, target=closing(net, scores), compensate=data)
        assert bool(((net.gate_vector.theta > 0.5) == (scores > 0)).all())
        torch.testing.assert_close(net.eval()(x), before, rtol=1e-10, atol=1e-10)
        small = fxcat.finalize(net)
        torch.testing.assert_close(small(x), before, rtol=1e-10, atol=1e-10)
        plain = prepared(model)
        fxcat.one_shot(plain, scores, target=closing(net, scores))
        assert float((plain.eval()(x) - before).abs().max()) > 1e-3, "there was something to make up for"
        assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
        fxcat.save(net, tmp_path / "small.safetensors")
        again = fxcat.load(tmp_path / "small.safetensors", NETS[name]().double().eval())
        assert torch.equal(again(x), small(x))


def test_layers_get_biases_only_where_nothing_else_takes_the_shift() -> None:
    found: dict[str, set[str]] = {}
    for name, make in NETS.items():
        model, scores = with_constants(make(), prepared(make()))
        net = prepared(model)
        known = {n for n, _ in net.network.named_parameters()}
        data = [(torch.randn(4, 3, 10, 10, dtype=torch.float64), None)]
        fxcat.one_shot(net, scores, target=closing(net, scores), compensate=data)
        found[name] = {n for n, _ in net.network.named_parameters()} - known
    assert not found["branches"] and not found["normalised"] and not found["normalised without biases"]
    layers = ("left", "right", "grouped", "up", "head")  # a depthwise one only passes on what closes
    assert found["branches without biases"] == {f"{layer}.bias" for layer in layers}


def test_what_comes_later_knows_the_new_biases() -> None:
    """Gates, training, shrinking and another round of the same."""
    model, scores = with_constants(Branches(False), prepared(Branches(False)))
    net = prepared(model.float())
    summary = net.structure
    data = [(torch.randn(8, 3, 10, 10), torch.randint(5, (8,))) for _ in range(4)]
    fxcat.one_shot(net, scores, target=closing(net, scores), compensate=data)
    assert [(g.name, g.units) for g in net.structure.groups] == [(g.name, g.units) for g in summary.groups]
    assert net.structure.pinned == summary.pinned
    net.shrink()
    biases = {n: p for n, p in net.network.named_parameters() if n.endswith("bias")}
    assert biases["left.bias"].shape == (4,), "a third of what it gives has gone"
    history = fxcat.fit(net, data, epochs=2, target=fxcat.Target(flops=0.3), progress=False)  # pyright: ignore[reportArgumentType]
    assert net.hard_cost().macs <= 0.3 * net.start_cost.macs and len(history.epochs) == 2
    small = fxcat.finalize(net).eval()
    x = torch.randn(2, 3, 10, 10)
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params


def test_added_biases_count_for_a_target_of_parameters() -> None:
    model, _ = with_constants(Branches(False), prepared(Branches(False)))
    data = [(torch.randn(4, 3, 10, 10, dtype=torch.float64), None)]
    for share in (0.9, 0.7, 0.5):
        net = prepared(model)
        fxcat.one_shot(net, importance.norm_scale(net), target=fxcat.Target(params=share), compensate=data)
        small = fxcat.finalize(net)
        assert sum(p.numel() for p in small.parameters()) <= share * net.start_cost.params


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """The small net, trained for a few epochs; in `eval()`."""
    return trained_net(lr=0.02, epochs=8).eval()


@pytest.mark.parametrize("share", (0.8, 0.6, 0.4))
def test_less_is_lost(trained: nn.Module, share: float) -> None:
    """How far the logits of other data are from those of the whole network."""
    inputs, _ = batches(256, seed=5).tensors
    lost: dict[bool, float] = {}
    for compensated in (False, True):
        net = fxcat.prepare(trained, torch.zeros(1, 3, 8, 8), gates="units", verbose=False)
        data = loader() if compensated else None
        fxcat.one_shot(net, importance.norm_scale(net), target=fxcat.Target(flops=share), compensate=data)
        with torch.no_grad():
            lost[compensated] = F.mse_loss(fxcat.finalize(net).eval()(inputs), trained(inputs)).item()
    assert lost[True] < lost[False]


def test_the_mean_of_every_reader_is_what_it_was(trained: nn.Module) -> None:
    """Also with padding, where no single position is exact: the head's input is pooled after one pruned layer."""
    net = fxcat.prepare(trained, torch.zeros(1, 3, 8, 8), gates="units", verbose=False)
    for gate in net.gates.values():
        gate.set(1.0)
    scores = torch.ones_like(net.gate_vector.theta, dtype=torch.float64)
    block = net.gates["block.0"]
    scores[block.start : block.start + 12] = 0.0
    outputs: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            outputs[name] = output.mean((0, 2, 3))

        return hook

    images, labels = batches(64).tensors
    fxcat.one_shot(net, scores, target=closing(net, scores), compensate=[(images, labels)])
    with torch.no_grad():
        for name, model in (("before", trained), ("after", fxcat.finalize(net).eval())):
            handle = dict(model.named_modules())["block.4"].register_forward_hook(note(name))
            model(images)
            handle.remove()
    torch.testing.assert_close(outputs["after"], outputs["before"], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_made_up_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The embedding of a transformer: layer normalisations count what is left. The hidden neurons go quietly."""
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=4
    ).eval()
    data = [(torch.randn(4, 3, 16, 16), None)]
    for hidden in (True, False):
        net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16), gates="units", verbose=False)
        scores = torch.ones_like(net.gate_vector.theta, dtype=torch.float64)
        gates = {n: g for n, g in net.gates.items() if ("mlp" in n) is hidden and "attention" not in n}
        assert gates
        for gate in gates.values():
            scores[gate.start : gate.start + gate.count // 4] = 0.0
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fxcat"):
            fxcat.one_shot(net, scores, target=closing(net, scores), compensate=data)
        assert ("ln_1: its statistics count the units that stay (4 units)" in caplog.text) is not hidden


def test_nothing_changes_where_it_cannot_be_done(trained: nn.Module) -> None:
    net = fxcat.prepare(trained.train(), torch.zeros(1, 3, 8, 8), verbose=False)
    dict(net.network.named_modules())["block.1"].eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    scores, half = importance.norm_scale(net), fxcat.Target(flops=0.5)
    with pytest.raises(fxcat.InputError, match="compensate= has no batch"):
        fxcat.one_shot(net, scores, target=half, compensate=[])
    bad = torch.full((2, 3, 8, 8), torch.inf)
    with pytest.raises(fxcat.TrainingError, match=r"not finite(?s:.*)where: "):
        fxcat.one_shot(net, scores, target=half, compensate=[(bad, None)])
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_pre_hooks for m in net.modules())
    trained.eval()
