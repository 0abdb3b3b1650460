"""Names are data, whatever modules, parameters, buffers and arguments are called."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from between import X, check
from differences import difference
from torch import nn

import fxcat

HOSTILE = (
    'x"), getattr(__import__("builtins"), "setattr")(__import__("sys"), "ran_a_name", 1), getattr(self, "x',
    *('a"b', "a'b", "a\nb", "x\n    import os", "a\\", "a b", "3", "{x}", "%s", "ﬁ", "a-b", "class", "None", "self"),
    *("torch", "_", "__x", "getattr", "print", "input_1", "forward_"),
)


class Named(nn.Module):
    """Modules, parameters or buffers of these names, one after another."""

    def __init__(self, names: tuple[str, ...], kind: str) -> None:
        super().__init__()
        self.stem, self.head, self.names, self.kind = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), names, kind
        self.inner = nn.ModuleDict()
        for name in names:
            if kind == "key":
                self.inner[name] = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.0))
            elif kind == "module":
                self.add_module(name, nn.Conv2d(8, 8, 1))
            elif kind == "parameter":
                self.register_parameter(name, nn.Parameter(torch.rand(8, 1, 1)))
            else:
                self.register_buffer(name, torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for name in self.names:
            if self.kind == "key":
                x = nn.functional.dropout(self.inner[name](x), 0.0, self.training)
            elif self.kind == "module":
                x = getattr(self, name)(x)
            else:
                x = x * getattr(self, name)
        return self.head(x)


@pytest.mark.parametrize("kind", ["key", "module", "parameter", "buffer"])
def test_names_are_data(kind: str, tmp_path: Path) -> None:
    model = Named(HOSTILE, kind).eval()
    net = check(model, whole=False)
    small = fxcat.finalize(net)
    fxcat.save(small, tmp_path / "small.safetensors")
    loaded = fxcat.load(tmp_path / "small.safetensors", Named(HOSTILE, kind).eval())
    assert difference(loaded(X), small(X)) <= 1e-6
    assert not hasattr(sys, "ran_a_name")


def test_names_in_onnx(tmp_path: Path) -> None:
    small = fxcat.finalize(fxcat.prepare(Named(HOSTILE[:1], "key").eval(), X, verbose=False))
    with contextlib.suppress(fxcat.FxcatError):  # where PyTorch's exporter cannot do with such a name
        fxcat.export_onnx(small, tmp_path / "n.onnx", X)
    assert not hasattr(sys, "ran_a_name")
    small = fxcat.finalize(fxcat.prepare(Named(("a b", "1"), "key").eval(), X, verbose=False))
    fxcat.export_onnx(small, tmp_path / "n.onnx", X)


def test_an_argument_may_be_called_self() -> None:
    class Odd(nn.Module):
        def __init__(this) -> None:  # pyright: ignore[reportSelfClsParameterName]
            super().__init__()
            this.a, this.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(this, self: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportSelfClsParameterName]
            return this.b(nn.functional.dropout(this.a(self).relu(), 0.0, this.training))

    check(Odd())


def test_the_name_of_the_gates_is_taken() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    model.add_module("fxcat_gates", nn.Identity())
    with pytest.raises(fxcat.InputError, match="fxcat_gates"):
        fxcat.prepare(model, X, verbose=False)


# threads ---------------------------------------------------------------------------------------------------------
