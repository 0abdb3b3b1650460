"""The signature that networks show: trainers choose by it which columns of their data a model takes."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import fxcat

X = torch.zeros(1, 3, 8, 8)


class Written(nn.Module):
    """With all kinds of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, twice: bool = False, **more: Any) -> Any:
        y = self.b(self.a(x).relu())
        y = y if mask is None else y * mask
        return sum(more.values(), y)


def names(of: Any) -> list[str]:
    return list(inspect.signature(of.forward).parameters)


@pytest.mark.parametrize("extra", [False, True])
def test_it_is_that_of_the_model_without_what_it_cannot_take(extra: bool) -> None:
    example = {"x": X, "mask": torch.ones(1, 1, 6, 6), **({"noise": torch.ones(1, 4, 1, 1)} if extra else {})}
    net = fxcat.prepare(Written(), example, verbose=False).eval()
    expected = ["x", "mask", "twice", *(["more"] if extra else [])]
    small = fxcat.finalize(net)
    for each in (net, small, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), pickle.loads(pickle.dumps(small))):
        assert names(each) == expected
        assert names(type(each)) == ["self", *expected]
        torch.testing.assert_close(each(**example), net(**example))
    parameter = inspect.signature(net.forward).parameters["twice"]
    assert parameter.default is False and parameter.kind is parameter.KEYWORD_ONLY
    assert isinstance(net, fxcat.GatedModule) and type(net).__name__ == "GatedModule"


class Named(Written):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, twice: bool = False, **more: Any) -> Any:
        return {"x": super().forward(x, mask, **more)}


class Listing(nn.Module):
    """Its own Python stays, and takes what it took."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Written()

    def forward(self, images: list[torch.Tensor], **more: Any) -> list[torch.Tensor]:
        return [self.inside(image[None]) for image in images]


def test_what_is_captured_in_regions_shows_all() -> None:
    net = fxcat.prepare(Listing(), ([X[0], X[0]],), verbose=False)
    assert names(net) == names(fxcat.finalize(net)) == ["images", "more"]
    assert len(net([X[0]] * 3, anything=1)) == 3


def test_the_last_parameters_are_those_of_the_models_head() -> None:
    net = fxcat.prepare(Written(), X, verbose=False)
    assert [p.shape for p in net.parameters()][-2:] == [p.shape for p in Written().parameters()][-2:]


def test_a_file_of_a_network_that_hides_parameters(tmp_path: Path) -> None:
    """An input and an output may have one name, as `sample` has in diffusion models."""
    small = fxcat.finalize(fxcat.prepare(Named(), X, verbose=False))
    fxcat.export_onnx(small, tmp_path / "net.onnx", X)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [v.name for v in graph.input] == ["x"] and [v.name for v in graph.output] == ["x_out"]
    assert names(small) == ["x", "mask", "twice"]
