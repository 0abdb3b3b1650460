"""Models as others call them: arguments by name, results of their own types, labels that may be left out, losses of
whole batches, attributes; and Python between captured parts that decides by values."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from differences import DOUBLE_TOLERANCE, fixed_seed
from exactness import randomise
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn import functional

import fxcat
from fxcat.gated import GatedModule


@dataclass
class Output(OrderedDict):  # pyright: ignore[reportMissingTypeArgument]
    """As transformers' `ModelOutput`: a dataclass that is an OrderedDict, and knows positions."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for key in ("loss", "logits"):
            if getattr(self, key) is not None:
                OrderedDict.__setitem__(self, key, getattr(self, key))

    def __getitem__(self, key: Any) -> Any:
        return OrderedDict.__getitem__(self, key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass(frozen=True)
class Plain:
    logits: torch.Tensor
    kind: str = "plain"


class Named(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor | None


class Own(UserDict):  # pyright: ignore[reportMissingTypeArgument]
    pass


RESULTS: dict[str, Any] = {
    "ModelOutput": lambda y: Output(None, y),
    "dataclass": lambda y: Plain(y),
    "namedtuple": lambda y: Named(y, None),
    "OrderedDict": lambda y: OrderedDict(logits=y, again=[y + 1]),
    "mapping": lambda y: Own(logits=y),
    "nested": lambda y: {"logits": y, "inner": (Output(None, y * 2), [Plain(y)])},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(self.norm(x)).relu())


class Classifier(nn.Module):
    """As Hugging Face writes them."""

    def __init__(self, result: str = "ModelOutput") -> None:
        super().__init__()
        self.result = result
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = Block()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)

    def forward(
        self,
        pixel_values: Any = None,
        labels: Any = None,
        weight: Any = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        y = self.head(self.drop(self.block(self.stem(pixel_values)).mean((2, 3))))
        loss = None
        if labels is not None:
            loss = nn.CrossEntropyLoss(reduction="none")(y.view(-1, 4), labels.view(-1))
            loss = loss.mean() if weight is None else (loss * weight).mean()
        if return_dict is False:
            return (y,) if loss is None else (loss, y)
        return Output(loss, y) if self.result == "ModelOutput" else RESULTS[self.result](y)


X, Y, W = torch.rand(3, 3, 8, 8).double(), torch.tensor([1, 3, 0]), torch.rand(3).double()


def made(model: nn.Module) -> Any:
    randomise(model, 0)
    return model.double().eval()


def prepared(model: nn.Module, example: Any) -> Any:
    return fxcat.prepare(model, example, verbose=False).eval()


def half_closed(net: GatedModule, *, sections: bool = True) -> Any:
    for gate in net.gates.values():
        if gate.kind == "units":
            gate.set((torch.arange(gate.count) % 3 > 0).double())
        elif sections:
            gate.set(0.0)
    return fxcat.finalize(net)


def assert_same(found: Any, expected: Any) -> None:
    """The same types, keys, fields, attributes and values."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        found, expected = found.detach(), expected.detach()
        assert (found - expected).abs().max() <= DOUBLE_TOLERANCE * max(1, expected.abs().max().item())
    elif isinstance(expected, dict | UserDict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert isinstance(expected, Plain) or found == expected
    if isinstance(expected, Output | Plain):
        assert vars(found).keys() == vars(expected).keys()
        for key, value in vars(expected).items():
            assert_same(getattr(found, key), value)


@pytest.mark.parametrize("result", RESULTS)
def test_results_have_the_types_of_the_models(result: str, tmp_path: Path) -> None:
    model = made(Classifier(result))
    net = prepared(model, {"pixel_values": X})
    with torch.no_grad():
        for mode in (True, False):
            with fixed_seed(1):
                expected = model.train(mode)(X)
            with fixed_seed(1):
                assert_same(net.train(mode)(pixel_values=X), expected)
        net.block.norm.load_state_dict(model.block.norm.state_dict())
        small = half_closed(net)
        assert_same(small(X), net(X))
        fxcat.save(small, tmp_path / "small.safetensors")
        assert_same(fxcat.load(tmp_path / "small.safetensors", Classifier(result).double()).eval()(X), small(X))


def test_what_makes_itself_from_other_things_is_refused_or_left_to_python() -> None:
    class Odd(dict):  # pyright: ignore[reportMissingTypeArgument]
        def __init__(self, y: torch.Tensor) -> None:
            super().__init__(y=y)

    class Net(Classifier):
        def forward(self, x: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return Odd(self.head(self.block(self.stem(x)).mean((2, 3))))

    model = made(Net())
    net = prepared(model, X)
    assert_same(net(X), model(X))


def test_labels_in_the_example_may_be_left_out_later() -> None:
    model = made(Classifier())
    net = prepared(model, {"pixel_values": X, "labels": Y, "weight": W})
    calls: list[dict[str, Any]] = [
        {"pixel_values": X, "labels": Y, "weight": W},
        {"pixel_values": X, "labels": Y},
        {"pixel_values": X},
        {"pixel_values": X, "labels": Y, "weight": None, "return_dict": None},
    ]
    for mode in (True, False):
        for call in calls:
            with fixed_seed(2), torch.no_grad():
                expected = model.train(mode)(**call)
            net.network.block.norm.load_state_dict(model.block.norm.state_dict())
            with fixed_seed(2), torch.no_grad():
                found = net.train(mode)(**call)
            net.network.block.norm.load_state_dict(model.block.norm.state_dict())
            assert (found.loss is None) == ("labels" not in call)
            assert_same(found, expected)
    small = half_closed(net)
    for call in calls:
        assert_same(small(**call), net(**call))
    small.train()(**calls[0]).loss.backward()
    net.shrink()
    for call in calls:
        assert_same(fxcat.finalize(net)(**call), net.eval()(**call))


def test_what_no_example_showed_is_refused() -> None:
    model = made(Classifier())
    net = prepared(model, X)
    for network in (net, half_closed(net)):
        for call in ({"labels": Y}, {"return_dict": False}, {"more": 1}):
            with pytest.raises(fxcat.InputError, match="captured with pixel_values"):
                network(X, **call)
    with pytest.raises((fxcat.InputError, TraceError)):
        torch.fx.symbolic_trace(fxcat.finalize(net))
    traced = torch.fx.symbolic_trace(fxcat.finalize(net), {"labels": None, "weight": None, "return_dict": None})
    assert_same(traced(X)["logits"], net(X).logits)  # torch.fx makes plain dicts of mappings


def test_a_dict_is_an_argument_where_forward_says_so() -> None:
    class Batches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

        def forward(self, x: Any) -> torch.Tensor:
            return self.layers(x["x"]) + x.get("y", 0)

    model = made(Batches())
    for batch in ({"x": X}, {"x": X, "y": X[:, :1]}):
        net = prepared(model, batch)
        assert_same(net(batch), model(batch))
        assert_same(half_closed(net)(batch), net(batch))


def test_mappings_that_are_no_dicts_hold_arguments_too() -> None:
    net = prepared(made(Classifier()), UserDict(pixel_values=X, labels=Y))
    assert net(X, Y).loss is not None


class Detector(nn.Module):
    """As ultralytics' models: images, or a batch of which it computes the loss; with things that others read."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.names = {0: "cat"}
        self.criterion: Any = None
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)])

    @property
    def width(self) -> int:
        return len(self.layers)

    def forward(self, x: Any) -> torch.Tensor:
        return self.loss(x) if isinstance(x, dict) else self.predict(x)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.criterion = self.criterion or functional.mse_loss
        return self.criterion(self(batch["img"]).mean((2, 3)), batch["cls"])


def test_a_loss_of_a_batch_runs_the_network() -> None:
    model = made(Detector())
    batch = {"img": X, "cls": torch.rand(3, 4).double()}
    net = prepared(model, X)
    assert_same(net(batch), model(batch))
    assert_same(net.loss(batch), model.loss(batch))
    small = half_closed(net)
    expected = functional.mse_loss(net(X).mean((2, 3)), batch["cls"])
    assert (expected - model.loss(batch)).abs().item() > 1e-6
    for found in (net(batch), net.loss(batch), small(batch), small.loss(batch)):
        assert_same(found, expected)
    (draw,) = net.gate_vector.differentiated(net.train()(batch))
    assert draw.batch == 3


def test_layers_of_a_network_are_not_called_one_by_one() -> None:
    net = prepared(made(Detector()), X)
    with pytest.raises(fxcat.InputError, match=r"method predict.*layers\.0"):
        net.predict(X)
    net(X)  # and nothing is left behind
    assert "forward" not in vars(net.network)


def test_attributes_of_the_model_are_those_of_the_network() -> None:
    net = prepared(made(Detector()), X)
    assert (net.stride, net.names, net.width) == (8, {0: "cat"}, 3)
    net.names = {0: "dog"}
    assert net.network.names == {0: "dog"}
    net.new = 1
    assert not hasattr(net.network, "new")
    with pytest.raises(AttributeError):
        net.nothing  # noqa: B018


class Masked(nn.Module):
    """Python between regions decides by a mask that one of them hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = Masks(), Block(), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x, mask = self.stem(x, mask)
        if not mask.all():
            x = self.body(x * mask)
        return self.head(x)


class Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), functional.interpolate(mask[:, None].double(), size=x.shape[-2:]) > 0.5


@pytest.mark.parametrize("masked", [False, True])
def test_python_between_regions_decides_as_in_the_example(masked: bool, tmp_path: Path) -> None:
    model = made(Masked())
    mask = torch.zeros(3, 8, 8) if masked else torch.ones(3, 8, 8)
    net = prepared(model, (X, mask))
    assert_same(net(X, mask), model(X, mask))
    small = half_closed(net)
    assert_same(small(X, mask), net(X, mask))
    fxcat.save(small, tmp_path / "small.safetensors")
    assert_same(fxcat.load(tmp_path / "small.safetensors", Masked().double()).eval()(X, mask), small(X, mask))


class Checked(nn.Module):
    """Regions that are a residual connection and nothing else, under Python that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 1), nn.ModuleList([Block(), Block()]), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if bool((x != x).any()):
            raise ValueError("NaN")
        return self.head(x)


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1)])
def test_a_region_of_which_nothing_is_left_passes_its_input_on(closed: tuple[int, ...]) -> None:
    net = prepared(made(Checked()), X)
    sections = [g for g in net.gates.values() if g.kind == "section"]
    for i in closed:
        sections[i].set(0.0)
    small = fxcat.finalize(net)
    assert_same(small(X), net(X))
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
    expected = net(X)
    net.shrink()
    assert_same(net(X), expected)


class Typed(Checked):
    """Asks a layer inside a branch for its dtype, as open_clip does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype: Any = self.blocks[0].a.weight.dtype  # pyright: ignore[reportAttributeAccessIssue]
        x = self.stem(x.to(dtype))
        for block in self.blocks:
            x = block(x).to(self.blocks[1].a.weight.device)  # pyright: ignore[reportAttributeAccessIssue]
        return self.head(x).to(dtype)


def test_a_layer_that_is_asked_for_its_dtype_may_go() -> None:
    net = prepared(made(Typed()), X)
    small = half_closed(net)
    assert_same(small(X), net(X))
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
    assert small.float()(X).dtype is torch.float32
    expected = net(X)
    net.shrink()
    assert_same(net(X), expected)
