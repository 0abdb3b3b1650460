"""Small networks can be scripted, as their models can: `torch.jit.script` compiles the generated code."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pruned import pruned
from torch import nn
from torchvision_nets import convnext, densenet, efficientnet, resnet, shufflenet, swin


@pytest.fixture(autouse=True)
def _said_to_be_old() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        yield


class Attending(nn.Module):
    """Layers with flags, None and arguments that are the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embedding(x)).mean(1))


class Results(NamedTuple):
    main: torch.Tensor
    aside: torch.Tensor


class Aside(nn.Module):
    """Returns something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.main, self.aside = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor | Results:
        x = F.relu(self.first(x))
        return Results(self.main(x), self.aside(x)) if self.training else self.main(x)


class Flagged(nn.Module):
    """A flag and a number that the code was captured with, a dropout that only training has, and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 5)
        self.scaled = Scaled()

    def forward(self, x: torch.Tensor, log: bool = False, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = F.dropout(F.relu(self.first(x)), 0.5, self.training)
        if mask is not None:
            x = x * mask
        x = self.scaled([x, x * x], 3)
        x = self.second(x)
        return x.log_softmax(1) if log else x


class Scaled(nn.Module):
    def forward(self, xs: list[torch.Tensor], by: int) -> torch.Tensor:
        return torch.stack(xs).sum(0) * by


def small_of(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return pruned(model, x).eval()


@pytest.mark.parametrize("build", [resnet, densenet, shufflenet, efficientnet, convnext, swin])
def test_what_torchscript_compiles_computes_the_same(build: Callable[[], nn.Module]) -> None:
    x = torch.randn(2, 3, 64, 64)
    small = small_of(build(), x)
    scripted = torch.jit.script(small)
    torch.testing.assert_close(scripted(x), small(x), rtol=1e-5, atol=1e-6)


def test_flags_and_none_keep_their_types() -> None:
    x = torch.randn(2, 7, 6)
    small = small_of(Attending(), x)
    torch.testing.assert_close(torch.jit.script(small)(x), small(x))


def test_both_modes_are_compiled_where_they_return_the_same_kind() -> None:
    x = torch.randn(2, 6)
    small = small_of(Flagged(), x)
    scripted = torch.jit.script(small)
    assert torch.equal(scripted(x), small(x))
    for module in (scripted, small):
        module.train()
    results: list[torch.Tensor] = []
    for module in (scripted, small):
        torch.manual_seed(0)
        results.append(module(x))
    assert torch.equal(*results) and not torch.equal(results[0], scripted.eval()(x))


@pytest.mark.parametrize("arguments", [{"log": True}, {"mask": torch.ones(16)}])
def test_a_scripted_network_fails_for_other_flags_than_it_was_captured_with(
    arguments: dict[str, torch.Tensor | bool],
) -> None:
    x = torch.randn(2, 6)
    scripted = torch.jit.script(small_of(Flagged(), x))
    with pytest.raises(torch.jit.Error, match="AssertionError"):
        scripted(x, **arguments)


def test_a_network_that_returns_something_else_in_training_is_compiled_for_inference() -> None:
    x = torch.randn(2, 6)
    small = small_of(Aside(), x)
    scripted = torch.jit.script(small)
    assert torch.equal(scripted(x), small(x))
    with pytest.raises(torch.jit.Error, match="in training its results are others"):
        scripted.train()(x)


def test_scripting_leaves_the_network_as_it_is() -> None:
    """It can be stored, copied and called with other kinds of arguments afterwards."""
    x = torch.randn(2, 3, 64, 64)
    small = small_of(resnet(), x)
    before, classes = small(x), [type(m) for m in small.modules()]
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(small), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), before, rtol=1e-5, atol=1e-6)
    assert [type(m) for m in small.modules()] == classes
    assert torch.equal(copy.deepcopy(small)(x), before)
