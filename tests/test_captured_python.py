"""What the Python of a forward pass may do while it is captured: names, facts, numbers, draws, caches, threads."""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import einops.layers.torch
import numpy as np
import pytest
import torch
from exactness import difference, fixed_seed
from torch import nn

import fxcat

X = torch.rand(2, 3, 8, 8)
Middle = Callable[[torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.middle(self.a(x).relu()))


def close_some(net: fxcat.GatedModule) -> None:
    for gate in net.gates.values():
        open_ = torch.arange(gate.theta.numel()) % 3 != 1
        gate.set(open_.to(gate.theta.dtype))


def check(model: nn.Module, *inputs: torch.Tensor, whole: bool = True) -> fxcat.GatedModule:
    """Open gates, in both modes, and removal; nothing is pinned but the output if `whole`."""
    net = fxcat.prepare(model, X, verbose=False)
    for training in (True, False):
        model.train(training)
        net.train(training)
        for x in (X, *inputs):
            for seed in (0, 1):
                with torch.no_grad(), fixed_seed(seed):
                    expected = model(x)
                with torch.no_grad(), fixed_seed(seed):
                    assert difference(net(x), expected) <= 1e-5
    close_some(net)
    small = fxcat.finalize(net)
    for x in (X, *inputs):
        with torch.no_grad(), fixed_seed(0):
            expected = net(x)
        with torch.no_grad(), fixed_seed(0):
            assert difference(small(x), expected) <= 1e-5
    if whole:
        # attributes in which forward leaves values are told of, and are no pins
        assert [p.where for p in net.structure.pinned if not p.where.startswith("attribute")] == ["output"]
    return net


# names -----------------------------------------------------------------------------------------------------------

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
        def __init__(this) -> None:
            super().__init__()
            this.a, this.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(this, self: torch.Tensor) -> torch.Tensor:
            return this.b(nn.functional.dropout(this.a(self).relu(), 0.0, this.training))

    check(Odd())


def test_the_name_of_the_gates_is_taken() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    model.add_module("fxcat_gates", nn.Identity())
    with pytest.raises(fxcat.InputError, match="fxcat_gates"):
        fxcat.prepare(model, X, verbose=False)


# threads ---------------------------------------------------------------------------------------------------------


def test_prepare_in_several_threads() -> None:
    patched = (nn.Module.__call__, nn.Module.__getattr__, torch.zeros, torch.Tensor.view, torch.finfo)
    model, layer, errors, done = Between(nn.Tanh()), nn.Linear(2, 2), [], threading.Event()

    def prepare() -> None:
        for _ in range(3):
            try:
                fxcat.prepare(model, X, verbose=False)
            except Exception as error:
                errors.append(error)

    def run() -> None:
        while not done.is_set():
            try:
                assert type(layer(torch.ones(1, 2))) is torch.Tensor
            except BaseException as error:
                errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    threads = [threading.Thread(target=prepare) for _ in range(3)]
    other = threading.Thread(target=run)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    sys.setswitchinterval(interval)
    assert not errors
    assert patched == (nn.Module.__call__, nn.Module.__getattr__, torch.zeros, torch.Tensor.view, torch.finfo)


class Slow(Between):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return super().forward(x)


def prepared_in_a_child() -> None:
    fxcat.prepare(Between(nn.Tanh()), X, verbose=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile() -> None:
    thread = threading.Thread(target=lambda: fxcat.prepare(Slow(nn.Tanh()), X, verbose=False))
    thread.start()
    time.sleep(0.1)
    child = multiprocessing.get_context("fork").Process(target=prepared_in_a_child)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    thread.join()
    assert code == 0


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
    model = Between(torch.relu)
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
    assert not net.program.analysis.regions  # pyright: ignore


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
    assert not net.program.analysis.regions  # pyright: ignore


def test_a_cache_in_onnx(tmp_path: Path) -> None:
    model = Cache("class").eval()
    model(X)
    small = fxcat.finalize(fxcat.prepare(model, X, verbose=False))
    with contextlib.redirect_stdout(None):
        fxcat.export_onnx(small, tmp_path / "c.onnx", X)
