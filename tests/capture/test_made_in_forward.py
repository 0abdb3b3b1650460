"""What `forward` makes, keeps and computes with in Python: constants, containers of layers, numbers of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from forms import IMAGES, Between, Form, failures, run
from torch import nn

import fxcat


def changed(value: torch.Tensor, *changes: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    for change in changes:
        change(value)
    return value


ROWS = slice(None)

CONSTANTS: dict[str, Form] = {
    "one_hot": lambda m, y, x: torch.einsum(
        "bchw,cd->bdhw", y, F.one_hot(torch.tensor([3, 1, 0, 2, 4, 6, 7, 5]), 8).to(y.dtype)
    ),
    "written": lambda m, y, x: (
        y * changed(torch.zeros(8, 8), lambda c: c.__setitem__((ROWS, slice(0, 3)), 1.0), lambda c: c[1].fill_(2))
    ),
    "computed in place": lambda m, y, x: y + torch.arange(8, dtype=y.dtype).div_(8).sub_(0.5),
    "scattered": lambda m, y, x: y * torch.zeros(8).scatter_(0, torch.tensor([1, 2]), 1.0),
    "written, of a size": lambda m, y, x: (
        y * changed(torch.ones(y.shape[-2:]), lambda c: c.__setitem__((ROWS, slice(0, y.shape[-1] // 2)), 0.5))
    ),
}


@pytest.mark.parametrize("form", CONSTANTS)
def test_constants(form: str) -> None:
    """What changes them before they are used is a part of making them."""
    failed, units, _ = failures(Between(CONSTANTS[form]), *IMAGES)
    assert not failed
    assert units >= 8


def test_constants_that_are_used_and_then_changed_are_refused() -> None:
    def form(m: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(8, 8)
        y = y * ones
        ones.add_(1)
        return y * ones

    with pytest.raises(fxcat.CaptureError, match="is changed"):
        fxcat.prepare(Between(form), torch.randn(*IMAGES[0]), verbose=False)


class Halves(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def test_named_tuples_as_arguments() -> None:
    form: Form = lambda m, y, x: torch.cat(Halves(*y.chunk(2, 1)), 1) + sum(torch.stack(Halves(y, y.relu())))  # noqa: E731
    failed, units, _ = failures(Between(form), *IMAGES)
    assert (failed, units) == ([], 8)


SELECTED: dict[str, Form] = {
    "a mask of numbers": lambda m, y, x: y[:, [True, False] * 4],
    "a constant mask": lambda m, y, x: y[:, torch.tensor([True] * 3 + [False] * 5)],
    "a buffer": lambda m, y, x: y[:, m.chosen] * 2,
    "rows": lambda m, y, x: F.pad(y[..., m.chosen, :], (0, 0, 0, 5)),
    "written": lambda m, y, x: (lambda z: run(z.__setitem__((ROWS, m.chosen), 0.5), z))(y * 1.0),
    "split_with_sizes": lambda m, y, x: torch.cat([y.split_with_sizes([3, 5], 1)[1], y[:, :3].relu()], 1),
}


@pytest.mark.parametrize("form", SELECTED)
def test_selections(form: str) -> None:
    """Masks of one axis that no input changes are lists of places."""
    model = Between(SELECTED[form])
    model.register_buffer("chosen", torch.tensor([True, False, False, True, False, True, False, False]))
    model.last = nn.LazyConv2d(4, 1)
    model.eval()(torch.randn(*IMAGES[0]))
    failed, units, _ = failures(model, *IMAGES)
    assert not failed
    assert units >= 3


CONTAINERS: dict[str, Form] = {
    "made": lambda m, y, x: nn.Sequential(m.inner, nn.ReLU(), m.norm)(y),
    "a part": lambda m, y, x: m.several_layers[1:](y) + m.several_layers[:1](y),
    "a list": lambda m, y, x: nn.ModuleList([m.inner, m.norm])[-1](y),
}


@pytest.mark.parametrize("form", CONTAINERS)
def test_containers_of_layers(form: str) -> None:
    model = Between(CONTAINERS[form])
    model.several_layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    failed, units, _ = failures(model, *IMAGES)
    assert not failed
    assert units >= 8


NUMBERS: dict[str, Form] = {
    "at least, of an input": lambda m, y, x: y / max(x.abs().max().item(), 1.0),
    "at most, of a value": lambda m, y, x: y * min(3.0, y.detach().abs().mean().item(), float(x.std())),
    "of a list": lambda m, y, x: y / max([1e-3, *x.abs().amax((1, 2, 3)).max()[None].tolist()]),
    "of a parameter": lambda m, y, x: y * max(float(m.rows[0]), 0.1) + min(m.rows[1].item(), 1),
    "and a size": lambda m, y, x: y / max(x.abs().max().item(), y.shape[2]),
    "functions": lambda m, y, x: (
        y * math.sqrt(abs(m.rows[0].item())) + math.exp(-x.abs().mean().item()) * math.log(x.square().sum().item())
    ),
    "powers": lambda m, y, x: (
        y * math.pow(x.std().item(), 2) + math.tanh(m.rows[1].item()) + math.floor(x.max().item())
    ),
    "rounded": lambda m, y, x: y * round(x.abs().max().item(), 1) + round(float(m.rows[2]) * 4),
    "of a buffer": lambda m, y, x: [y := (y + m.inner(y).relu()) for _ in range(int(m.steps))][-1],
}


@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_of_tensors(form: str) -> None:
    model = Between(NUMBERS[form])
    model.register_buffer("steps", torch.tensor(2))
    failed, units, _ = failures(model, *IMAGES)
    assert not failed
    assert units == 8


def test_a_buffer_that_counts_must_stay_what_it_was() -> None:
    model = Between(NUMBERS["of a buffer"])
    model.register_buffer("steps", torch.tensor(2))
    net = fxcat.prepare(model, torch.randn(*IMAGES[0]), verbose=False)
    net.network.get_buffer("steps").add_(1)
    with pytest.raises((AssertionError, RuntimeError), match="another number"):
        net(torch.randn(*IMAGES[0]))


class Storing(nn.Module):
    """Keeps a value of the pass, and perhaps reads it."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.first, self.last, self.reads = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), reads
        self.seen = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        if self.reads == "before" and self.seen is not None:
            y = y + self.seen
        self.seen = y
        return self.last(self.seen * 2 if self.reads == "afterwards" else y)


@pytest.mark.parametrize("was_run", [False, True])
@pytest.mark.parametrize("reads", ["never", "afterwards", "before"])
def test_values_that_a_pass_keeps(reads: str, was_run: bool) -> None:
    """They are those of the same pass, whether there was one before."""
    model = Storing(reads).double()
    randomise(model, 0)
    if was_run:
        with torch.no_grad():
            model(torch.randn(3, 3, 8, 8).double())
    if reads == "before" and was_run:
        with pytest.raises(fxcat.CaptureError, match="from one forward pass to the next"):
            fxcat.prepare(model, torch.randn(3, 3, 8, 8).double(), verbose=False)
    elif reads != "before":
        report = check(model, reads, *IMAGES)
        assert (report.failures, report.units) == ([], 8)
