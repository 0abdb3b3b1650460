"""What the Python of a forward pass may do while it is captured: facts, numbers, draws, in-place ops."""

# much of what Python does here is right although annotations do not say so
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import math
from typing import Any

import einops
import einops.layers.torch
import numpy as np
import pytest
import torch
from between import Between, Middle, X, check, close_some
from differences import difference
from torch import nn

import fxcat

# facts -----------------------------------------------------------------------------------------------------------


def checked(condition: Any) -> None:
    """As packages do that take a value or a function."""
    if callable(condition):
        condition = condition()
    if not condition:
        raise ValueError


def sized(y: torch.Tensor) -> torch.Tensor:
    checked(y.shape[2] * y.shape[3] == y.flatten(2).shape[2])
    return y


class Missing:
    """What packages put in the place of others that are not installed."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError("not installed")

    def __call__(self, *_: Any) -> Any:
        raise ImportError("not installed")


missing_package = Missing()


@functools.cache
def kept(size: int) -> tuple[int, ...]:
    return (size, size)


FACTS: dict[str, Middle] = {
    "ndim": lambda y: y * {4: 1.0, 3: 2.0}[y.ndim],
    "dim": lambda y: y * {4: 1.0, 3: 2.0}[y.dim()],
    "dtype": lambda y: y * {torch.float32: 1.0}[y.dtype],
    "device": lambda y: y * {"cpu": 1.0}[y.device.type],
    "equal device": lambda y: y * (1.0 if y.device == torch.device("cpu") else 2.0),
    "is_cuda": lambda y: y * (2.0 if y.is_cuda else 1.0),
    "is_cpu": lambda y: y * (1.0 if y.is_cpu else 2.0),
    "floating": lambda y: y * (1.0 if y.is_floating_point() else 2.0),
    "size as key": lambda y: y * {6: 1.0}[y.shape[-1]],
    "shape as key": lambda y: y * {(6, 6): 1.0}[tuple(y.shape[2:])],
    "size in a name": lambda y: y * {"6x6": 1.0}[f"{y.shape[2]}x{y.size(3)}"],
    "name of a dtype": lambda y: y * {"torch.float32": 1.0}[str(y.dtype)],
    "in shape": lambda y: y * 2 if -1 in y.shape else y,
    "in part of a shape": lambda y: y * 2 if 6 in y.shape[2:] else y,
    "no attribute": lambda y: y.tensors if hasattr(y, "tensors") else y,
    "callable": sized,
    "kept": lambda y: y * sum(kept(y.shape[2])),
}


def test_globals_are_not_asked_for_attributes() -> None:
    """Some stand in for packages that are missing, and raise."""

    class Here(Between):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.middle(self.a(x)))

    model = Here(torch.relu)
    assert type(model).forward.__globals__["missing_package"] is missing_package
    check(model)


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_plain(name: str) -> None:
    check(Between(FACTS[name]))
    assert kept.cache_info().currsize <= 1


NUMPY: dict[str, Middle] = {
    "quotient": lambda y: y / np.sqrt(8),
    "product": lambda y: y * np.float32(2),
    "on the left": lambda y: np.float64(2) * y - np.float32(1) + np.int64(3) * y,
    "keyword": lambda y: torch.clamp(y, max=np.log(100.0)),
    "view": lambda y: y.reshape(-1, np.int64(8), np.int64(6), np.int64(6)),
    "prod": lambda y: y / np.prod(y.shape[2:]),
    "function of a size": lambda y: y * np.log(y.shape[2]) + np.sqrt(y.shape[3] * 1.0),
    "size": lambda y: y * (np.float64(0.5) * y.shape[2]),
    "order": lambda y: y[:, np.array([1, 0, 3, 2, 5, 4, 7, 6])],
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy(name: str) -> None:
    check(Between(NUMPY[name]))


STRIDES = torch.tensor([8.0, 16.0])

TENSORS: dict[str, Middle] = {
    "new_full": lambda y: y + y.new_full((y.shape[2] * y.shape[3], 1), STRIDES[1], dtype=y.dtype).view(6, -1),
    "full": lambda y: y * torch.full((1, 1, *y.shape[2:]), STRIDES[0]),
    "full_like": lambda y: y + torch.full_like(y, STRIDES[0]),
    "by a computed one": lambda y: y + y.new_full((1,), torch.ones(2, y.shape[3]).sum()),
    "leaky_relu": lambda y: nn.functional.leaky_relu(y - 1, STRIDES[0] / 80),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_where_numbers_are_wanted(name: str) -> None:
    others = () if name == "by a computed one" else (torch.rand(3, 3, 8, 8),)
    net = check(Between(TENSORS[name]), *others)
    assert not net.program.analysis.regions  # pyright: ignore[reportAttributeAccessIssue]


def test_einops() -> None:
    layers = einops.layers.torch

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = layers.Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
            self.embed, self.qkv, self.out, self.head = (nn.Linear(a, b) for a, b in ((12, 8), (8, 24), (8, 8), (8, 4)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(self.patches(x))
            q, k, v = (einops.rearrange(t, "b n (h d) -> b h n d", h=2) for t in self.qkv(x).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            y, shapes = einops.pack([y], "b * n d")
            (y,) = einops.unpack(y, shapes, "b * n d")
            x = x + self.out(einops.rearrange(y, "b h n d -> b n (h d)"))
            return self.head(einops.reduce(x, "b n d -> b d", "mean"))

    check(Attention(), torch.rand(3, 3, 8, 8), whole=False)


EXECUTED = """
import einops
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        y = einops.rearrange(self.a(x), "b c h w -> b c (h w)") / len(x)
        return self.b(y.view(len(x), -1, int(x.shape[2]), max(x.shape[3], 1)).relu())
"""


def test_source_that_is_executed_in_a_dict() -> None:
    """Its globals are no Python module's: what stands in for functions is put there too."""
    space: dict[str, Any] = {}
    exec(EXECUTED, space)
    names = set(space)
    check(space["Net"](), torch.rand(3, 3, 8, 8))
    assert set(space) == names


def apart(y: torch.Tensor) -> torch.Tensor:
    a, b = torch.cat([y, y.flip(-1)]).split(y.shape[0])
    return a + torch.stack(torch.cat([b, b]).split(len(b))).sum(0)


def test_as_many_pieces_for_any_batch() -> None:
    """Pieces of the batch's own length."""
    check(Between(apart), torch.rand(1, 3, 6, 6), torch.rand(3, 3, 6, 6))


# in place, drawn -------------------------------------------------------------------------------------------------


def late(y: torch.Tensor) -> torch.Tensor:
    drawn = torch.zeros(1, 1, 6, 6)
    drawn.normal_()
    return y * drawn


def without_gradient(y: torch.Tensor) -> torch.Tensor:
    noise = torch.randn_like(y[:, :1])
    noise.requires_grad_(False)
    return y + noise


IN_PLACE: dict[str, Middle] = {
    "zero_": lambda y: y + y.clone().zero_(),
    "copy_": lambda y: y + y.clone().copy_(y.tanh()),
    "fill_": lambda y: y + y.clone().fill_(2.0),
    "normal_": lambda y: y + y.new_empty(1, 1, 6, 6).normal_(),
    "uniform_": lambda y: y + torch.empty(y.shape[0], 1, 1, 1).uniform_(0, 1),
    "uniform_ of a constant": lambda y: y * torch.empty(1, 1, 6, 6).uniform_(0, 1),
    "bernoulli_": lambda y: y * y.new_zeros(1, 1, 6, 6).bernoulli_(),
    "bernoulli_ of a copy": lambda y: y + y.mean(1, keepdim=True).clone().bernoulli_(),
    "exponential_": lambda y: y + y.new_empty(1, 1, 6, 6).exponential_(),
    "random_": lambda y: y + y.new_empty(1, 1, 6, 6).random_(0, 3),
    "requires_grad_": without_gradient,
    "rand": lambda y: y * torch.rand(1, 1, 6, 6),
    "randperm": lambda y: y[:, :, torch.randperm(6)],
    "late": late,
    "init": lambda y: y * nn.init.normal_(torch.empty(1, 1, 6, 6)),
    "init of a new value": lambda y: y * nn.init.uniform_(y.new_empty(1, 1, 6, 6)),
    "layers are never dropped": lambda y: y if torch.rand([]) < 0.0 else y.tanh(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_without_another_form(name: str) -> None:
    check(Between(IN_PLACE[name]), whole=False)


def test_chance_decides_no_branch() -> None:
    with pytest.raises(fxcat.FxcatError, match="values of a tensor"):
        fxcat.prepare(Between(lambda y: y if torch.rand([]) < 0.5 else y.tanh()), X, verbose=False)


# known values ----------------------------------------------------------------------------------------------------


def traced(x: object) -> bool:
    return isinstance(x, torch.fx.Proxy)


def masked(y: torch.Tensor) -> torch.Tensor:
    mask = torch.ones((y.shape[0], y.shape[2]), dtype=torch.bool)
    if not (mask.view(-1, y.shape[2])[:, None] > 0).all():
        y = y * mask[:, None, :, None] * 2
    return y


def written(y: torch.Tensor) -> torch.Tensor:
    mask = torch.ones((y.shape[0], y.shape[2]))
    mask[:, 0] = 0
    return y if mask.all() else y * mask[:, None, :, None]


def test_masks_of_ones_decide() -> None:
    check(Between(masked), torch.rand(5, 3, 9, 8))
    asked: list[bool] = []
    fxcat.prepare(Between(lambda y: asked.append(traced(y)) or y), X, verify=False, verbose=False)
    assert asked == [True]
    with pytest.raises(fxcat.FxcatError, match="values of a tensor"):
        fxcat.prepare(Between(written), X, verbose=False)


SYMBOLIC: dict[str, Middle] = {
    "root": lambda y: y / np.sqrt(y.shape[-1]) + math.sqrt(y.shape[2]),
    "ceil": lambda y: nn.functional.pad(y, (0, int(np.ceil(y.shape[-1] / 4) * 4 - y.shape[-1]))),
    "float": lambda y: y / float(sum(y.shape[-2:])),
    "divmod": lambda y: y * divmod(y.shape[-1], 3)[0] + divmod(100, y.shape[-1])[1],
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_numbers_of_sizes_are_found_anew(name: str) -> None:
    check(Between(SYMBOLIC[name]), torch.rand(3, 3, 8, 8), torch.rand(1, 3, 11, 10))


TABLE: dict[str, Middle] = {"shuffle": lambda y: einops.rearrange(y, "b (g c) h w -> b (c g) h w", g=2)}


def test_functions_of_packages_in_tables() -> None:
    """What is used by functions that no layer's code names is seen too."""
    check(Between(TABLE["shuffle"]))


def test_identity_by_name() -> None:
    same = nn.Identity(3, unused=True)
    check(Between(lambda y: same(input=y)))


def test_identity_of_a_tuple() -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
            self.neck = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).relu()
            return self.c(torch.cat(self.neck((y, self.b(y))), 1))

    check(Neck())


def test_a_layer_of_width_zero() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 4)
            with pytest.warns(UserWarning):
                self.down, self.up = nn.Linear(8, 0), nn.Linear(0, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(self.a(x).mean((2, 3)).relu())
            return self.c(y + self.up(self.down(y)))

    check(Empty(), whole=False)


def test_an_op_that_needs_data_is_opaque() -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)
            self.register_buffer("window", torch.hann_window(64))

        def forward(self, w: torch.Tensor) -> torch.Tensor:
            z = torch.stft(w, 64, 32, window=self.window, return_complex=True)
            y = self.b(self.a(torch.stack([z.real, z.imag], 1)).relu())
            return torch.istft(torch.complex(y[:, 0], y[:, 1]), 64, 32, window=self.window)

    model, w = Inverse().eval(), torch.randn(2, 640)
    net = fxcat.prepare(model, w, verbose=False).eval()
    assert difference(net(w), model(w)) <= 1e-5
    close_some(net)
    assert difference(fxcat.finalize(net)(w), net(w)) <= 1e-5


# caches ----------------------------------------------------------------------------------------------------------
