"""What a model keeps from one forward pass to the next: caches by size, counters, tables."""

from __future__ import annotations

import collections
import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from between import Between, X, check
from torch import nn

import fxcat


class Cache(nn.Module):
    """Heads of detectors keep a grid for the last shape that they saw, in several ways."""

    shape: Any = None

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.c, self.kind = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), kind
        self.last, self.grids, self.h = None, [torch.empty(0)], 0
        self.known: dict[Any, torch.Tensor] = {}
        self.made: dict[Any, list[torch.Tensor]] = collections.defaultdict(list)
        self.register_buffer("buffer", torch.zeros(0), persistent=False)

    @functools.cache  # noqa: B019
    def kept(self, h: int, w: int) -> torch.Tensor:
        return torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"))

    def make(self, y: torch.Tensor) -> torch.Tensor:
        h, w = y.shape[-2:]
        rows, columns = torch.arange(h).type_as(y), torch.arange(w).type_as(y)
        return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(self.a(x).relu())
        if self.kind == "class" and self.shape != y.shape:
            self.grid, self.shape = self.make(y), y.shape
        elif self.kind == "instance" and (self.last is None or y.shape[-2:] != self.last):
            self.grid, self.last = self.make(y), y.shape[-2:]
        elif self.kind == "numbers" and y.shape[-2] != self.h:
            self.grid, self.h = self.make(y), y.shape[-2]
        elif self.kind == "list":
            if self.grids[0].shape[-2:] != y.shape[-2:]:
                self.grids[0] = self.make(y)
            self.grid = self.grids[0]
        elif self.kind == "dict":
            key = tuple(y.shape[-2:])
            if key not in self.known:
                self.known[key] = self.make(y)
            self.grid = self.known[key]
        elif self.kind == "dict, found twice":
            for grow in (1, 2, 1):
                found = self.known.get((y.shape[2] * grow, y.device))
                if found is None:
                    found = self.known.setdefault((y.shape[2] * grow, y.device), self.make(y) * grow)
                self.grid = found
        elif self.kind == "text":
            text = f"{y.shape[2]}x{y.size(3)}"
            if text not in self.known:
                self.known[text] = self.make(y)
            self.grid = self.known[text]
        elif self.kind == "text of a shape":
            if self.known.get(str(tuple(y.shape[2:]))) is None:
                self.known[str(tuple(y.shape[2:]))] = self.make(y)
            self.grid = self.known[str(tuple(y.shape[2:]))]
        elif self.kind == "text of another shape":
            name = "grid of {}".format(y.shape[2:])  # noqa: UP032
            if name not in self.known:
                self.known[name] = self.make(y)
            self.grid = self.known[name]
        elif self.kind == "defaultdict":
            key = y.shape[2], y.shape[3]
            if not self.made[key]:
                self.made[key] = [self.make(y)]
            self.grid = self.made[key][0]
        elif self.kind == "none" and (self.last is None or self.last.size(1) != y.size(2)):
            self.grid = self.last = self.make(y)
        elif self.kind == "longest":
            if y.shape[2] > self.h:
                self.long, self.h = self.make(y), y.shape[2]
            self.grid = self.long[:, : y.shape[2], : y.shape[2]]
        elif self.kind == "buffer":
            if self.buffer.numel() != 2 * y.shape[2] * y.shape[3]:
                self.buffer = self.make(y)
            self.grid = self.buffer
        elif self.kind == "cached":
            self.grid = self.kept(*y.shape[2:])
        return torch.cat((y[:, :2] + self.grid, y[:, 2:]), 1)


KINDS = ("class", "instance", "numbers", "list", "dict", "dict, found twice", "none", "longest", "buffer", "cached")
KINDS += ("text", "text of a shape", "text of another shape", "defaultdict")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("was_run", [False, True])
def test_what_a_pass_has_kept_does_not_decide(kind: str, was_run: bool) -> None:
    model = Cache(kind).eval()
    if was_run:
        model(X)
    check(model, torch.rand(3, 3, 8, 8), torch.rand(1, 3, 12, 12))


def test_a_dict_of_sizes_that_no_pass_writes_decides() -> None:
    model = Between(lambda y: y * {6: 1.0, 5: 2.0}.get(y.shape[-1], 3.0))
    net = fxcat.prepare(model.eval(), torch.rand(1, 3, 9, 9), verbose=False)
    with pytest.raises(AssertionError, match="sizes decide otherwise"):
        net(X)


def test_a_text_that_is_more_than_a_key_decides() -> None:
    class Telling(Cache):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(self.a(x).relu())
            key = f"{y.shape[2]}x{y.size(3)}"
            if key not in self.known:
                self.known[key] = self.make(y)
            return y[:, :2] + self.known[key] * (2 if key == "4x4" else 1)

    model = Telling("text").eval()
    net = check(model)
    with pytest.raises(AssertionError, match="sizes decide otherwise"):
        net(torch.rand(1, 3, 12, 12))


class Decoding(Cache):
    """It writes into a value of its own, with numbers that it was made with: these are no cache."""

    def __init__(self) -> None:
        super().__init__("class")
        self.parts = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(super().forward(x))

    def decode(self, y: torch.Tensor) -> torch.Tensor:
        step = self.parts[1]
        y = y.clone()
        y[:, 0::step] = y[:, 0::step].sigmoid()
        y[:, 1::step] = y[:, 1::step] * self.grid[0]
        return y


def test_numbers_beside_a_cache_stay_what_they_are() -> None:
    model = Decoding().eval()
    model(X)
    net = check(model, torch.rand(1, 3, 12, 12), whole=False)
    assert not net.program.analysis.regions  # pyright: ignore[reportAttributeAccessIssue]


def test_a_cache_in_onnx(tmp_path: Path) -> None:
    model = Cache("class").eval()
    model(X)
    small = fxcat.finalize(fxcat.prepare(model, X, verbose=False))
    with contextlib.redirect_stdout(None):
        fxcat.export_onnx(small, tmp_path / "c.onnx", X)
