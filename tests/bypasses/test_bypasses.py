"""Bypasses round the sections of plain networks: where they go, what they compute, that layers go exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from differences import difference
from exactness import check, counted_macs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_nets import CLASSES, LARGE, PLAIN, FunctionalLeNet, SmallVGG
from small_task import loader
from torch import nn

import fxcat
from fxcat.passes.bypasses.windows import Window

IMAGE = torch.zeros(1, 3, 16, 16)
SECTIONS = (0, 3, 7, 10, 14)
"""The convolutions of `SmallVGG(True)` that get a bypass."""


def bypassed(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """In double precision, with random parameters."""
    model = fxcat.add_bypasses(model.double(), torch.zeros(shape, dtype=torch.float64), verbose=False)
    randomise(model, 0)
    return model


def by_hand(net: nn.Module, x: torch.Tensor, closed: Collection[int] = ()) -> torch.Tensor:
    """What a `SmallVGG(True)` with bypasses computes in inference, without the sections that begin at `closed`."""
    at, added = net.get_submodule, net.get_submodule("bypasses")
    for i in SECTIONS:
        if i in (7, 14):
            x = F.max_pool2d(x, 2)
        shortcut = x
        if i in (0, 7):
            shortcut = at(f"bypasses.{i}.norm")(F.conv2d(x, at(f"bypasses.{i}.project").weight))
        x = shortcut if i in closed else F.relu(at(f"{i + 1}")(at(f"{i}")(x))) + shortcut
    assert [name for name, _ in added.named_children()] == ["0", "7"]
    return at("18")(x).mean((2, 3))


def holds(build: Callable[[], nn.Module], shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    model = bypassed(build(), shape)
    found = fxcat.find_bypasses(build(), torch.zeros(shape)).found
    report = check(model, type(model).__name__, shape, other)
    assert not report.failures
    assert (report.sections, report.coverage) == (len(found), 1.0)


@pytest.mark.parametrize("name", PLAIN)
def test_invariants(name: str) -> None:
    holds(*PLAIN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_invariants(name: str) -> None:
    holds(*LARGE[name])


def test_sums_are_those_that_one_writes_by_hand() -> None:
    net, x = bypassed(SmallVGG(True), (1, 3, 16, 16)).eval(), torch.randn(2, 3, 24, 16).double()
    assert difference(net(x), by_hand(net, x)) < 1e-14


@pytest.mark.parametrize("closed", [(0,), (3, 10), (7,), (14,), (0, 7, 14), SECTIONS])
def test_what_is_closed_leaves_its_bypass(closed: tuple[int, ...]) -> None:
    model, x = bypassed(SmallVGG(True), (1, 3, 16, 16)).eval(), torch.randn(2, 3, 24, 16).double()
    net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16).double(), gates="layers", verbose=False)
    for i in closed:
        net.gates[f"{i}.section"].set(0.0)
    small = fxcat.finalize(net)
    assert difference(small(x), by_hand(model, x, closed)) < 1e-14
    gone = {f"{i + j}" for i in closed for j in range(3)}
    assert set(dict(small.named_children())) == set(dict(model.named_children())) - gone


@pytest.mark.parametrize("shrunk", [False, True])
def test_a_chain_whose_bypass_has_gone_is_a_chain_again(shrunk: bool) -> None:
    chain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), chain)
    x = torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(fxcat.add_bypasses(model, x, verbose=False), x, verbose=False).eval()
    next(g for n, g in net.gates.items() if g.kind == "section" and n.startswith("3")).set(0.0)
    expected = net(x)
    if shrunk:
        net.shrink()
        assert difference(net(x), expected) <= 1e-5
    assert difference(fxcat.finalize(net)(x), expected) <= 1e-5


def test_written_out_activations_pooling_and_the_mode() -> None:
    """In training, too: with the same random numbers, dropout drops the same."""
    model = FunctionalLeNet()
    net = fxcat.add_bypasses(model, torch.zeros(1, 1, 28, 28), verbose=False)
    first, second = (net.get_submodule(f"bypasses.{name}") for name in ("conv1", "conv2"))
    x = torch.randn(3, 1, 28, 28)
    for training in (True, False):
        net.train(training)
        torch.manual_seed(3)
        found = net(x)
        torch.manual_seed(3)
        average = F.avg_pool2d(F.avg_pool2d(x, 5, 1), 2)
        h = F.relu(F.max_pool2d(model.conv1(x), 2)) + F.conv2d(average, first.project.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue, reportCallIssue]
        h = torch.tanh(model.conv2(h)) + F.conv2d(h, second.project.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue, reportCallIssue]
        h = F.dropout(F.relu(model.fc1(F.max_pool2d(h, 2).flatten(1))), 0.3, training)
        h = model.fc3(F.dropout(F.elu(model.fc2(h)) + h, 0.3, training))
        torch.testing.assert_close(found, F.log_softmax(h, 1))


def test_what_goes_where() -> None:
    found = fxcat.find_bypasses(FunctionalLeNet(), torch.zeros(1, 1, 28, 28))
    assert [(b.name, b.kind, b.entering, b.leaving, b.macs, b.params, b.section_macs) for b in found.found] == [
        ("conv1", "projection", (1, 28, 28), (6, 12, 12), 6 * 144, 6, 6 * 25 * 576),
        ("conv2", "projection", (6, 12, 12), (8, 12, 12), 48 * 144, 48, 48 * 9 * 144),
        ("fc2", "identity", (24,), (24,), 0, 0, 576),
    ]
    assert found.found[0].modules == ("conv1", "max_pool2d", "relu")
    assert [(u.name, u.reason.split(" (")[0]) for u in found.left] == [
        ("fc1", "a projection would cost as much as it does"),
        ("fc3", "it gives the network's output"),
    ]
    assert "fc2: identity, 24 to 24" in str(found)


class Normalized(nn.Module):
    """Convolution and linear layers to other widths; the former calls the function of its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.wide, self.back, self.back_norm = nn.Linear(24, 64), nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        x = self.conv(x)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training).relu()
        x = self.back_norm(self.back(self.wide(x.flatten(1)))).relu()
        return self.last(self.inner(x).relu())


def test_projections_are_normalized_where_their_sections_are() -> None:
    x = torch.randn(5, 3, 4)
    found = fxcat.find_bypasses(Normalized(), x).found
    assert [(b.name, b.kind, b.is_normalized, b.params) for b in found] == [
        ("conv", "projection", True, 3 * 6 + 2 * 6),
        ("wide", "projection", True, 24 * 8 + 2 * 8),
        ("inner", "identity", False, 0),
    ]
    net = fxcat.add_bypasses(Normalized(), x, verbose=False)
    assert [type(m) for m in net.get_submodule("bypasses.conv").children()] == [nn.Conv1d, nn.BatchNorm1d]
    assert [type(m) for m in net.get_submodule("bypasses.wide").children()] == [nn.Linear, nn.BatchNorm1d]
    assert net(x).shape == (5, 4)


@pytest.mark.parametrize("name", PLAIN)
def test_costs_of_bypasses_are_true(name: str) -> None:
    build, shape, _ = PLAIN[name]
    model, x = build().eval(), torch.randn(shape)
    found = fxcat.find_bypasses(model, x).found
    net = fxcat.add_bypasses(model, x, verbose=False)
    more = counted_macs(net, (x,)) - counted_macs(model, (x,))
    assert more == sum(b.macs for b in found)
    params = [sum(p.numel() for p in m.parameters()) for m in (model, net)]
    assert params[1] - params[0] == sum(b.params for b in found)


sizes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(14, 25))


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_poolings_see_what_convolutions_see(numbers: tuple[int, ...]) -> None:
    """Where no window reaches over the border, the pooling is a convolution whose weights are all the same."""
    kernel, stride, padding, dilation, size = numbers
    conv = nn.Conv1d(1, 1, kernel, stride, padding, dilation, bias=False)
    span = dilation * (kernel - 1) + 1
    window = Window((span,), (stride,), (padding,))
    x = torch.randn(1, 1, size)
    assert window.keeps_size <= (conv(x).shape == x.shape)
    if window.has_pooling:
        pooled = window.pooling()(x)
        assert pooled.shape == conv(x).shape
        mean = F.conv1d(F.pad(x, (padding, padding)), torch.full((1, 1, span), 1 / span), stride=stride)
        inside = F.conv1d(F.pad(torch.ones_like(x), (padding, padding)), torch.ones(1, 1, span), stride=stride) == span
        torch.testing.assert_close(pooled[inside], mean[inside])


def test_projections_keep_the_second_moment() -> None:
    torch.manual_seed(0)
    net = fxcat.add_bypasses(SmallVGG(False, width=64), IMAGE, verbose=False)
    x = torch.randn(4, 64, 8, 8).relu()
    assert 0.8 < net.get_submodule("bypasses.5")(x).square().mean() / x.square().mean() < 1.25


def test_parameters_keep_their_names_and_the_model_is_not_touched() -> None:
    model = SmallVGG(True).eval()
    before = copy.deepcopy(model.state_dict())
    net = fxcat.add_bypasses(model, IMAGE, verbose=False)
    assert type(net).__name__ == "SmallVGG"
    assert isinstance(net, SmallVGG)
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if k in before)
    other = SmallVGG(True).state_dict()
    added = {f"bypasses.{i}.{layer}" for i in (0, 7) for layer in ("project", "norm")}
    missing, unexpected = net.load_state_dict(other, strict=False)
    assert ({name.rpartition(".")[0] for name in missing}, unexpected) == (added, [])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), net(x))


def test_units_of_a_projection_go_with_those_of_its_section() -> None:
    model = bypassed(SmallVGG(False), (1, 3, 16, 16))
    net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16).double(), verbose=False)
    assert {name: len(g.theta) for name, g in net.gates.items() if g.kind == "units"} == {"0": 8, "5": 16}
    net.gates["0"].theta[3:] = 0.0
    net.gates["5"].theta[7:] = 0.0
    small = fxcat.finalize(net)
    shapes = {name: tuple(p.shape[:2]) for name, p in small.named_parameters() if p.dim() > 1}
    assert shapes["bypasses.0.project.weight"] == (3, 3)
    assert shapes["bypasses.5.project.weight"] == shapes["5.weight"] == (7, 3)


@pytest.mark.parametrize("policy", ["bernoulli", "ratio"])
def test_training_saving_and_exporting(tmp_path: Path, policy: str) -> None:
    model = fxcat.add_bypasses(SmallVGG(True), torch.zeros(1, 3, 8, 8), verbose=False)
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), policy=policy, verbose=False)  # pyright: ignore[reportArgumentType]
    history = fxcat.fit(net, loader(128), epochs=6, target=fxcat.Target(flops=0.4), lr=0.05, progress=False)
    assert history.epochs[-1].train_loss < 0.8 * history.epochs[0].train_loss
    assert net.hard_cost().macs <= 0.4 * net.start_cost.macs
    small = fxcat.finalize(net).eval()
    x = torch.randn(2, 3, 8, 8)
    assert difference(small(x), net.eval()(x)) < 1e-4
    fxcat.save(small, tmp_path / "small.safetensors")
    fresh = fxcat.add_bypasses(SmallVGG(True), torch.zeros(1, 3, 8, 8), verbose=False).eval()
    assert torch.equal(fxcat.load(tmp_path / "small.safetensors", fresh)(x), small(x))
    with pytest.raises(fxcat.InputError, match="another model"):
        fxcat.load(tmp_path / "small.safetensors", SmallVGG(True))
    fxcat.export_onnx(small, tmp_path / "small.onnx", x)


@pytest.mark.parametrize("name", ["functional lenet", "ceil", "signal"])
def test_exported_with_sections_closed(tmp_path: Path, name: str) -> None:
    """Average poolings with padding, and with windows that are not full; `export_onnx` compares what is computed."""
    build, shape, _ = PLAIN[name]
    model = fxcat.add_bypasses(build(), torch.zeros(shape), verbose=False)
    net = fxcat.prepare(model, torch.zeros(shape), verbose=False)
    net.gates[net.structure.sections[0].name].set(0.0)
    fxcat.export_onnx(fxcat.finalize(net).eval(), tmp_path / "net.onnx", torch.randn(shape))


class Phases(nn.Module):
    """Takes a dictionary, and returns one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.features = SmallVGG(True)

    def forward(self, batch: dict[str, torch.Tensor], scale: float = 2.0) -> torch.Tensor | dict[str, torch.Tensor]:
        result = self.features(batch["image"]) * scale
        return {"logits": result, "other": batch["other"]} if self.training else result


def test_nested_arguments_and_results() -> None:
    batch = {"image": torch.randn(2, 3, 16, 16), "other": torch.ones(2)}
    net = fxcat.add_bypasses(Phases(), (batch,), verbose=False)
    inner = fxcat.add_bypasses(SmallVGG(True), IMAGE, verbose=False)
    inner.load_state_dict(
        {k.removeprefix("features.").replace("bypasses.features_", "bypasses."): v for k, v in net.state_dict().items()}
    )
    assert torch.equal(net.eval()(batch), 2 * inner.eval()(batch["image"]))
    assert set(net.train()(batch)) == {"logits", "other"}
    assert len(fxcat.prepare(net, (batch,), verbose=False).structure.sections) == len(SECTIONS)


def test_residual_networks_keep_their_own() -> None:
    """Of a ResNet only the stem has none."""
    found = fxcat.find_bypasses(torchvision.models.resnet18(num_classes=CLASSES), torch.zeros(1, 3, 64, 64))
    assert [b.name for b in found.found] == ["conv1"]


def test_poolings_over_the_features_of_linear_layers_end_a_section() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.MaxPool1d(2), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    found = fxcat.find_bypasses(layers, torch.zeros(2, 3, 8))
    assert [(b.name, b.kind) for b in found.found] == [("3", "identity")]


def test_nothing_is_bypassed_twice() -> None:
    net = fxcat.add_bypasses(SmallVGG(True), IMAGE, verbose=False)
    with pytest.raises(fxcat.NothingToPruneError, match="no section to bypass"):
        fxcat.add_bypasses(net, IMAGE)


def test_a_finalized_network_gets_bypasses(tmp_path: Path) -> None:
    net = fxcat.prepare(SmallVGG(True), IMAGE, verbose=False)
    net.gates["0"].theta[3:] = 0.0
    small = fxcat.finalize(net)
    more = fxcat.prepare(fxcat.add_bypasses(small, IMAGE, verbose=False), IMAGE, verbose=False)
    more.gates["3.section"].set(0.0)
    result = fxcat.finalize(more).eval()
    fxcat.save(result, tmp_path / "small.safetensors")
    loaded = fxcat.load(tmp_path / "small.safetensors", fxcat.add_bypasses(small, IMAGE, verbose=False)).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), result(x))


def test_example_inputs_are_found_and_what_is_ignored_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    net = fxcat.add_bypasses(SmallVGG(True), ignore=["0", "10"])
    assert {name for name, _ in net.get_submodule("bypasses").named_children()} == {"7"}
    text = capsys.readouterr().out
    assert "3 bypasses" in text
    assert "none: 10: listed in ignore=" in text


class Unplain(nn.Module):
    """Cannot be traced as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Module = SmallVGG(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x) if bool(x.sum() > 0) else self.features(-x)


def test_part_of_a_model_that_cannot_be_traced() -> None:
    model = Unplain()
    with pytest.raises(fxcat.CaptureError, match="to the part of the model that is plain"):
        fxcat.add_bypasses(model, IMAGE)
    model.features = fxcat.add_bypasses(model.features, IMAGE, verbose=False)
    assert len(fxcat.prepare(model, torch.randn(1, 3, 16, 16), verbose=False).structure.sections) == len(SECTIONS)


class FrozenStart(nn.Module):
    """Its first layers are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.rest = nn.Conv2d(3, 3, 3, padding=1), SmallVGG(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = torch.relu(self.start(x))
        return self.rest(x)


def test_what_is_not_trained_gets_none() -> None:
    found = fxcat.find_bypasses(FrozenStart(), IMAGE)
    assert [u.reason for u in found.left if u.name == "start"] == ["it is computed under torch.no_grad()"]
    net = fxcat.prepare(fxcat.add_bypasses(FrozenStart(), IMAGE, verbose=False), IMAGE, verbose=False)
    assert len(net.structure.sections) == len(found.found) == len(SECTIONS)


def test_errors() -> None:
    mlp = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(fxcat.NothingToPruneError, match="0: a projection would cost as much as it does"):
        fxcat.add_bypasses(mlp)
    with pytest.raises(fxcat.InputError, match=r"got a str, not a torch\.nn\.Module"):
        fxcat.add_bypasses("model")  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match="has gates already"):
        fxcat.find_bypasses(fxcat.prepare(mlp, verbose=False))
    with pytest.raises(fxcat.InputError, match="no module"):
        fxcat.find_bypasses(mlp, ignore=["nowhere"])
    with pytest.raises(fxcat.FxcatError):
        fxcat.find_bypasses(SmallVGG(True), torch.zeros(1, 5, 16, 16))
