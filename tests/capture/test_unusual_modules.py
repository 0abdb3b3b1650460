"""Modules that do more than their class says: hooks, methods that were assigned, generated code, compiled functions."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from differences import DOUBLE_TOLERANCE, difference
from exactness import check, randomise
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import fxcat


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.last = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.inner(self.norm(self.first(x)))))


def units_left(model: nn.Module, *hooked: str) -> int:
    """How many units there are, where every gate setting is exact."""
    report = check(model.double(), "unusual", (1, 3, 8, 8), (3, 3, 8, 8))
    assert not report.failures
    assert {p.where for p in report.pinned if "hooks" in p.reason} == {*hooked}
    return report.units


def with_hook(path: str, hook: Callable[..., Any], *, before: bool = False) -> nn.Module:
    model = Net()
    randomise(model, 0)
    module = model.get_submodule(path)
    (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
    return model


def test_a_layer_with_hooks_is_kept() -> None:
    """They may do anything with its units."""
    assert units_left(with_hook("inner", lambda m, given, result: result.flip(1)), "inner") == 6
    assert units_left(with_hook("inner", lambda m, given: (given[0].cumsum(1),), before=True), "inner") == 6
    assert units_left(with_hook("relu", lambda m, given, result: result.cumsum(1)), "relu") == 14


def test_hooks_are_called_by_the_network() -> None:
    seen: list[torch.Size] = []
    net = fxcat.prepare(with_hook("relu", lambda m, given, result: seen.append(result.shape)), torch.randn(1, 3, 8, 8))
    seen.clear()
    net(torch.randn(2, 3, 8, 8))
    fxcat.finalize(net)(torch.randn(3, 3, 8, 8))
    assert seen == [torch.Size([n, 8, 8, 8]) for n in (2, 3)]


def test_hooks_that_come_later_change_nothing() -> None:
    net = fxcat.prepare(Net(), torch.randn(1, 3, 8, 8), verbose=False)
    net.network.get_submodule("inner").register_forward_hook(lambda m, given, result: None)
    net.gates["first"].theta[2:] = 0.0
    small: Any = fxcat.finalize(net)
    assert (small.inner.in_channels, small.inner.weight.shape[1]) == (2, 2)


def test_a_hook_that_changes_a_shape_is_left_to_python() -> None:
    model, x = with_hook("inner", lambda m, given, result: result[..., :4]).eval().double(), torch.randn(2, 3, 8, 8)
    x = x.double()
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert any("hook changes the shape" in p.reason for p in net.structure.pinned)
    net.gates["last.0"].theta[2:] = 0.0
    assert difference(fxcat.finalize(net)(x), net(x)) <= DOUBLE_TOLERANCE
    net.gates["last.0"].theta[:] = 1.0
    assert torch.equal(net(x), model(x))


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_weights_that_hooks_compute() -> None:
    model = Net().double()
    nn.utils.spectral_norm(model.inner)
    x = torch.randn(2, 3, 8, 8).double()
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert difference(net(x), model.eval()(x)) <= DOUBLE_TOLERANCE
    assert "inner" not in {p.where for p in net.structure.pinned}


def test_assigned_methods_are_captured() -> None:
    def double(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.last(2 * self.inner(self.first(x)))

    model = Net()
    randomise(model, 0)
    model.inner.forward = types.MethodType(lambda self, x: self._conv_forward(x, self.weight, None), model.inner)
    assert units_left(model) == 22
    model.forward = types.MethodType(double, model)
    assert units_left(model) == 22
    model.inner.forward = lambda x: x  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(fxcat.InputError, match="no method of it"):
        fxcat.prepare(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_what_has_no_python_is_refused() -> None:
    lazy, compiled = Net(), Net()
    lazy.inner = nn.LazyConv2d(8, 3)
    compiled.inner = torch.compile(compiled.inner)  # pyright: ignore[reportAttributeAccessIssue]
    refused = {"compiled": compiled, "no shape yet": lazy, "scripted": torch.jit.script(Net())}
    for reason, model in refused.items():
        with pytest.raises(fxcat.InputError, match=reason):
            fxcat.prepare(model, torch.randn(1, 3, 8, 8))


def test_a_module_that_was_compiled_in_place() -> None:
    model = Net()
    randomise(model, 0)
    model.compile()
    assert fxcat.prepare(model, torch.randn(1, 3, 8, 8), verbose=False).network is not model
    model._compiled_call_impl = None
    assert units_left(model) == 22


class Scaled(Net):
    """Asks for what its first parameter is like."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        like = next(self.parameters())
        x = super().forward(x.to(like.dtype))
        return x + torch.ones(1, dtype=like.dtype, device=like.device) + like.new_zeros(1) + 0 * like.sum()


def test_parameters_however_they_are_found() -> None:
    model = Scaled()
    randomise(model, 0)
    assert units_left(model) == 14  # the others are read as values


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def halved(x: torch.Tensor) -> torch.Tensor:
    while bool(x.abs().max() > 1):
        x = x / 2
    return x


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and in use
    compiled_swish = torch.compile(swish, backend="eager")
    scripted_swish, scripted_halved = torch.jit.script(swish), torch.jit.script(halved)


class Activated(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.kind == "compiled":
            x = compiled_swish(x)
        else:
            x = scripted_swish(x) if self.kind == "scripted" else scripted_halved(x)
        return self.last(self.inner(x))


def test_compiled_and_scripted_functions_are_captured() -> None:
    x = torch.randn(2, 3, 8, 8)
    whole = ["first", "inner", "last.0"]
    for kind, groups in {"compiled": whole, "scripted": whole, "scripted with a loop": whole[2:]}.items():
        model = Activated(kind)
        net = fxcat.prepare(model, x, verbose=False).eval()
        assert [g.name for g in net.structure.groups] == groups
        if kind != "compiled":  # which need not be compiled here
            assert difference(net(x), model.eval()(x)) < 1e-6


class Keeping(Net):
    """Its head reads what hooks have kept of a layer: what it gave, or what it got."""

    def __init__(self, *, before: bool = False, mean: bool = False) -> None:
        super().__init__()
        self.head, self.mean, self.kept = nn.Conv2d(8, 2, 1), mean, dict[str, torch.Tensor]()
        if before:
            self.relu.register_forward_pre_hook(self._keep)
        else:
            self.relu.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: tuple[torch.Tensor], result: torch.Tensor | None = None) -> None:
        value = given[0] if result is None else result
        self.kept["value"] = value.mean((2, 3), keepdim=True) if self.mean else value

    def forward(self, x: torch.Tensor) -> Any:
        result = super().forward(x)
        return result, self.head(self.kept["value"] * 2)


@pytest.mark.parametrize("before", [False, True])
def test_what_a_hook_keeps_can_be_read(before: bool) -> None:
    model = Keeping(before=before)
    randomise(model, 0)
    assert units_left(model, "relu") == 14


def test_what_a_hook_computes_cannot() -> None:
    with pytest.raises(fxcat.CaptureError, match="reads what a hook has computed"):
        fxcat.prepare(Keeping(mean=True), torch.randn(1, 3, 8, 8), verbose=False)


def test_modules_made_from_graphs() -> None:
    model = Net()
    randomise(model, 0)
    assert units_left(fx.symbolic_trace(model)) == 22
    body = torchvision.models.squeezenet1_1(num_classes=5)
    features = create_feature_extractor(body, {"features.5": "a", "classifier.3": "b"})
    x = torch.randn(2, 3, 48, 48)
    net = fxcat.prepare(features, x, verbose=False)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = features.train(mode)(x)
        torch.manual_seed(0)
        assert difference(list(net.train(mode)(x).values()), list(expected.values())) < 1e-5
    net.gates["features.0"].theta[::2] = 0.0
    small = fxcat.finalize(net.eval())
    assert difference(list(small(x).values()), list(net(x).values())) < 1e-5
