"""What models of transformers do in their Python, in plain torch: checks, kept results, hooks of their own, tables of
queries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import check, randomise
from torch import nn
from transformers_forms import X, assert_exact, prepared

import fxcat


class Checking(nn.Module):
    """Two layers, and between them a check."""

    def __init__(self, checks: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self.checks = checks
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        self.checks(x, y)
        return self.b(y)


def _sizes_agree(y: torch.Tensor) -> Any:
    sizes = torch.as_tensor([y.shape[2:]])
    return sizes.prod(1).sum() == y.flatten(2).shape[2]


def _raise_for_sizes(x: torch.Tensor, y: torch.Tensor) -> None:
    if not _sizes_agree(y):
        raise ValueError("sizes")


def _raise_for_values(x: torch.Tensor, y: torch.Tensor) -> None:
    if (x > 100).any():
        raise ValueError("large")


def _assert_of_values(x: torch.Tensor, y: torch.Tensor) -> None:
    assert (x < 100).all(), "large"


CHECKS: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "of a number": lambda x, y: torch._check(y.shape[1] == 8, lambda: f"{y.shape}"),
    "of sizes in a tensor": lambda x, y: torch._check_tensor_all_with(ValueError, _sizes_agree(y), lambda: f"{y}"),
    "of sizes, raised": _raise_for_sizes,
    "of values": lambda x, y: torch._check_tensor_all(x < 100, lambda: "large"),
    "of values, raised": _raise_for_values,
    "of values, asserted": _assert_of_values,
    "of values, asserted by torch": lambda x, y: torch._assert((x < 100).all(), "large"),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_checks_are_assertions(kind: str) -> None:
    assert_exact(Checking(CHECKS[kind]))
    net = prepared(Checking(CHECKS[kind]))
    if "values" in kind:
        for network in (net, fxcat.finalize(net)):
            with pytest.raises(RuntimeError):
                network(X * 1000)


class Clamping(nn.Module):
    """What is done in training about values that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.training and not torch.isfinite(y).all():
            y = y.clamp(-1000, 1000)
        if self.training and (torch.isinf(y).any() or torch.isnan(y).any()):
            y = y.clamp(-100, 100)
        return self.b(y.relu())


def test_values_are_finite_or_it_is_said() -> None:
    assert_exact(Clamping())
    net = prepared(Clamping()).train()
    with pytest.raises(RuntimeError, match="captured"):
        net(X / 0)


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    kept = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return kept(*args, **kwargs)

    return call


@_keeping
def scale(height: int, width: int) -> torch.Tensor:
    return torch.ones(height, width).double() / width


class Positions(nn.Module):
    """Tables of positions that methods keep, one of them in a decorator's closure; and a function does."""

    @_keeping
    def rows(self, height: int, width: int) -> torch.Tensor:
        return torch.arange(height).double()[:, None].expand(height, width) / height

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def columns(self, height: int, width: int) -> torch.Tensor:
        return torch.arange(width).double().expand(height, width) / width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2], x.shape[3]
        return x + (self.rows(*size) if self.training else self.rows(*size) * 2) + self.columns(*size) * scale(*size)


def test_methods_keep_no_results_of_a_capture() -> None:
    assert_exact(nn.Sequential(nn.Conv2d(3, 8, 1), Positions(), nn.ReLU(), nn.Conv2d(8, 4, 1)))


class Checked(nn.Module):
    """Widths that are checked, in a model that does something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        if y.size() != (x.shape[0], 8, *x.shape[2:]):
            raise ValueError(f"{y.size()}")
        if self.training:
            y = y * 2
        return self.b(y)


def test_checks_of_widths_keep_none_where_training_differs() -> None:
    assert_exact(Checked())


class Queries(nn.Module):
    """As DAB-DETR's: sines of the coordinates in a table enter layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, 2))
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 6), nn.Conv2d(3, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        points = self.table.sigmoid().unsqueeze(0).repeat(x.shape[0], 1, 1)
        scale = torch.arange(1, 5, dtype=x.dtype)
        sines = torch.cat([(part[..., None] * scale).sin() for part in points.unbind(-1)], dim=-1)
        return self.b(self.a(sines).relu()) @ self.c(x).flatten(2)


def test_rows_of_a_table_are_no_units() -> None:
    report_of(Queries(), ("a", "b"))


def report_of(model: nn.Module, layers: tuple[str, ...]) -> None:
    """Exact, and these layers have units that can go."""
    randomise(model, 0)
    assert not check(model.double(), "small", (1, 3, 8, 8), (3, 3, 8, 8)).failures
    net = prepared(model)
    for name in layers:
        assert any(name in group.name for group in net.structure.groups), net.structure.groups


class WithoutResult(nn.Module):
    """A head that runs for a loss that nobody asks for; its norm learns all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.a(x).relu()
        found = {"logits": self.b(y)}
        other = self.head(y)
        if labels is not None:
            found["loss"] = (other - labels).square().mean()
        return found


def test_what_has_no_result_runs_in_training() -> None:
    model = WithoutResult()
    net = prepared(model)
    for network in (model, net):
        network.train()(X)
    found, expected = net.network.get_submodule("head.1"), model.head[1]
    assert isinstance(found, nn.BatchNorm2d) and isinstance(expected, nn.BatchNorm2d)
    assert found.running_mean is not None and expected.running_mean is not None
    assert torch.allclose(found.running_mean, expected.running_mean, rtol=0, atol=1e-12)
    assert int(found.num_batches_tracked) == int(expected.num_batches_tracked)  # pyright: ignore[reportArgumentType]


class Flagged(nn.Module):
    """A flag asks for the loss; the head is a layer of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor | None = None, return_loss: bool | None = None, name: str = "y"
    ) -> dict[str, torch.Tensor]:
        y = self.b(self.a(x).relu())
        y = y if scale is None else y * scale
        return {name: y, **({"loss": y.square().mean()} if return_loss else {})}


def test_a_flag_may_be_left_out() -> None:
    model = Flagged()
    net = prepared(model, {"x": X, "scale": X[:, :1], "return_loss": True, "name": "z"})
    for gate in net.gates.values():
        gate.theta[::2] = 0
    small = fxcat.finalize(net)
    for more in ({}, {"scale": X[:, :1]}, {"return_loss": True}, {"scale": X[:, :1], "return_loss": True}):
        found, expected = small(X, name="z", **more), net(X, name="z", **more)
        assert list(found) == list(expected) == list(model(X, name="z", **more))
        assert all(torch.allclose(found[k], expected[k], rtol=0, atol=1e-12) for k in found)
    for other in ({}, {"name": "z", "return_loss": False}):
        with pytest.raises(fxcat.InputError, match="called in another way"):
            small(X, **other)


class Recording(nn.Module):
    """Hooks that the first pass registers collect what the layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(n, 6, 1), nn.ReLU()) for n in (3, 6))
        self.head = nn.Conv2d(12, 4, 1)
        self.is_watched = False
        self.found: list[torch.Tensor] | None = None

    def _record(self, module: nn.Module, args: Any, result: torch.Tensor) -> None:
        if self.found is not None:
            self.found.append(result)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_watched:
            self.is_watched = True
            for layer in self.layers:
                layer.register_forward_hook(self._record)
        self.found = []
        for layer in self.layers:
            x = layer(x)
        found, self.found = self.found, None
        return self.head(torch.cat(found, 1) * (2 if self.training else 1))


@pytest.mark.parametrize("before", [False, True])
def test_hooks_of_a_first_pass_are_registered_once(before: bool) -> None:
    model = Recording()
    if before:
        model(X.float())
    net = prepared(model)
    with torch.no_grad():
        for mode in (True, False):
            assert torch.allclose(net.train(mode)(X), model.train(mode)(X), rtol=0, atol=1e-12)
