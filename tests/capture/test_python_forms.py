"""What people write in Python between layers: facts of tensors, shapes, numbers, containers, branches on these."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from exactness import check, randomise
from torch import nn

import fxcat

Form = Callable[[torch.Tensor], torch.Tensor]
SHAPE, OTHER = (1, 3, 8, 8), (3, 3, 8, 8)


class Residual(nn.Module):
    """Something in the middle of a residual branch of two convolutions."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.b, self.head, self.form = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1), form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).relu()
        return self.head(y + self.b(self.form(self.a(y))))


def built(form: Form) -> nn.Module:
    model = Residual(form).double()
    randomise(model, 0)
    return model


@dataclasses.dataclass
class Pack:
    a: torch.Tensor
    b: torch.Tensor
    n: int = 0


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


def pieces(y: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from y.chunk(2, 1)


def by_class(y: Any) -> Any:
    match y:
        case torch.Tensor():
            return y * 2
        case _:
            return y


def by_shape(y: torch.Tensor) -> torch.Tensor:
    match y.shape:
        case (n, c, h, w):
            return y.view(n, c, h * w).view(n, c, h, w)
        case _:
            return y


def walrus(y: torch.Tensor) -> torch.Tensor:
    return y * (mean := y.mean((2, 3), keepdim=True)) + mean if (n := y.dim()) > 3 else y * n


def attempts(y: torch.Tensor) -> torch.Tensor:
    try:
        return y * y.scale  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        return y * 2


def containers(y: torch.Tensor) -> torch.Tensor:
    found = collections.defaultdict(list)
    found["x"] += collections.OrderedDict(a=y, b=y * 2).values()
    return torch.cat(tuple(collections.deque(found["x"], maxlen=2)), 1)[:, ::2]


def of_a_dataclass(y: torch.Tensor) -> torch.Tensor:
    pack = dataclasses.replace(Pack(y, y * 2), n=y.shape[2])
    found = dataclasses.asdict(pack)
    return found["a"] + dataclasses.astuple(pack)[1] / pack.n


def of_a_tuple(y: torch.Tensor) -> torch.Tensor:
    pair = Pair(y, y * 2)._replace(a=y + 1)
    return pair.a + pair.b


def enumerated(y: torch.Tensor) -> torch.Tensor:
    for i, (a, b) in enumerate(zip(y.chunk(2, 1), y.split(3, 1), strict=True)):
        y = y + torch.cat([a, b], 1) * i
    return y


def handed_on(y: torch.Tensor) -> torch.Tensor:
    if torch.overrides.has_torch_function((y,)) or torch.overrides.has_torch_function_unary(y):
        return torch.overrides.handle_torch_function(handed_on, (y,), y)
    return y * 2


def spatial(tensor: torch.Tensor) -> torch.Tensor:
    height, width = torch.tensor([[tensor.shape[2], tensor.shape[3]]]).tolist()[0]
    return tensor.view(tensor.shape[0], -1, height * width).view(tensor.shape) / height


FORMS: dict[str, Form] = {
    "stride": lambda y: y * (1.0 / y.stride(2)) * (y.stride()[1] // y.shape[2]),
    "contiguous": lambda y: y * 2 if y.is_contiguous() else y,
    "layout": lambda y: y * 2 if y.layout == torch.strided and y.storage_offset() == 0 else y,
    "bytes": lambda y: y / (y.nbytes / y[0].nbytes) / y.element_size(),
    "numel": lambda y: y / y.numel() * y.shape[2:].numel(),
    "kinds of numbers": lambda y: y if torch.is_floating_point(y) and not y.is_complex() else y.float(),
    "is_tensor": lambda y: y * 2 if torch.is_tensor(y) else y,
    "isinstance of TorchScript": lambda y: y * 2 if torch.jit.isinstance(y, torch.Tensor) else y,
    "list of tensors": lambda y: y * 2 if torch.jit.isinstance([y, y], list[torch.Tensor]) else y,
    "type": lambda y: y * 2 if type(y) is torch.Tensor and issubclass(type(y), torch.Tensor) else y,
    "case of a class": by_class,
    "case of a shape": by_shape,
    "walrus": walrus,
    "try": attempts,
    "containers": containers,
    "dataclass": of_a_dataclass,
    "named tuple": of_a_tuple,
    "copy": lambda y: copy.copy(y) + copy.deepcopy(y),
    "copy of a copy": lambda y: copy.deepcopy((y, {"a": y * 2}))[1]["a"],
    "partial": lambda y: functools.partial(torch.clamp, min=0)(functools.partial(y.view, y.shape[0])(*y.shape[1:])),
    "generator": lambda y: torch.cat([p * 2 for p in pieces(y)], 1),
    "enumerate": enumerated,
    "reduce": lambda y: functools.reduce(torch.add, itertools.accumulate([y, y * 2], torch.mul)),
    "prod": lambda y: y.reshape(y.shape[0], math.prod(y.shape[1:])).reshape(y.shape) / math.prod(y.shape[2:]),
    "shapes added": lambda y: y.new_ones(y.shape[:1] + (1,) + y.shape[2:]) * y,  # noqa: RUF005
    "a shape of sizes": lambda y: y.flatten(2).reshape(torch.Size([*y.shape[:2]]) + torch.Size(y.shape[2:])),
    "shape of one kind": lambda y: y * 2 if isinstance(torch.Size([1, 2]), torch.Size) else y,
    "shape reversed": lambda y: y.reshape(y.shape[:2] + y.shape[2:][::-1]).reshape(y.shape),
    "broadcast_shapes": lambda y: y.mean((2, 3), keepdim=True).expand(torch.broadcast_shapes(y.shape, (1, 1))),
    "broadcast of sizes": lambda y: y.expand(torch.broadcast_shapes((y.shape[2], 1), y.shape)),
    "broadcast_tensors": lambda y: torch.sub(*torch.broadcast_tensors(y, y.mean((2, 3), keepdim=True))),
    "types": lambda y: y.to(torch.result_type(y, 1)).to(torch.promote_types(y.dtype, torch.float32)),
    "is_scripting": lambda y: y if torch.jit.is_scripting() or torch.compiler.is_compiling() else y * 2,
    "assert": lambda y: (torch._assert(y.shape[1] == 6, f"not 6 but {y.shape}"), y)[1],
    "overrides": handed_on,
    "truth of a size": lambda y: y * 2 if y.shape[2] % 3 else y,
    "truth of a width": lambda y: y * 2 if y.shape[2] and y.size(3) - 1 else y,
    "int and float": lambda y: y * int(y.shape[2] / 3) / float(y.shape[3]) + round(y.shape[2] / 3),
    "a list by a number": lambda y: y * [1, 2, 3, 4][int(y.shape[2] / 3)],
    "bits": lambda y: y * (y.shape[2] & 7 | 1) + (y.shape[3] >> 1),
    "numbers of a tensor of sizes": spatial,
    "item of a constant": lambda y: y * torch.tensor(0.5).item(),
    "a scale": lambda y: y / float(torch.full((2,), 4.0).max()),
    "arange": lambda y: y * torch.arange(y.shape[1]).to(y).view(1, -1, 1, 1) / y.shape[1],
    "linspace": lambda y: y * torch.linspace(0, 1, y.shape[1], dtype=y.dtype).view(1, -1, 1, 1),
    "mask of channels": lambda y: y * (torch.arange(y.shape[1]) < 3).to(y).view(1, -1, 1, 1),
    "ones of channels": lambda y: y * torch.ones(y.shape[1], dtype=y.dtype).view(1, -1, 1, 1),
    "unit matrix": lambda y: (y.movedim(1, -1) @ torch.eye(y.shape[1], dtype=y.dtype)).movedim(-1, 1),
    "Variable": lambda y: y + torch.autograd.Variable(y * 2) + torch.autograd.Variable(torch.ones(1).to(y)),
    "einsum that permutes": lambda y: torch.einsum("nchw->nhwc", y).permute(0, 3, 1, 2),
    "einsum that sums": lambda y: y + torch.einsum("n c h w -> n c", y)[..., None, None],
    "normal_": lambda y: y + torch.empty_like(y).normal_(1, 0.0),
    "uniform_": lambda y: y * y.new_empty((y.shape[0], y.shape[1], 1, 1)).uniform_(2.0, 2.0),
    "bernoulli_": lambda y: y * torch.empty_like(y).bernoulli_(1.0),
    "bernoulli_ of values": lambda y: y * torch.empty_like(y).bernoulli_(torch.ones_like(y)),
    "random_": lambda y: y * torch.empty_like(y).random_(1, 2),
    "normal of values": lambda y: y + torch.normal(y, 0.0 * y.abs()),
    "normal of a shape": lambda y: y + 0 * torch.normal(0.0, 1.0, y.shape, dtype=y.dtype) + 1,
    "randint of channels": lambda y: y + 0 * torch.randint(low=1, high=3, size=(y.shape[1], 1, 1)),
}

ALL = 14
"""Units: eight of the stem, six in the branch."""
FEWER = {"enumerate": 11, "unit matrix": 20}
"""Two channels that are added to each other are one; a matrix has its own rows."""


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    report = check(built(FORMS[name]), name, SHAPE, OTHER, settings=2)
    assert not report.failures
    assert report.units == FEWER.get(name, ALL)


NUMBERS: dict[str, Form] = {
    "item": lambda y: y * y.mean().item(),
    "of a type": lambda y: y * 2 if isinstance(y.mean().item(), float) and not torch.is_tensor(y.sum().item()) else y,
    "of a maximum": lambda y: y / float(y.abs().max()),
    "whole": lambda y: y * int(y.abs().max() * 3),
    "list": lambda y: y * sum(y.mean((0, 2, 3)).tolist()),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_tensors(name: str) -> None:
    assert not check(built(NUMBERS[name]), name, SHAPE, OTHER, settings=2).failures


PIECES: dict[str, Form] = {
    "unbind": lambda y: sum(y.unbind(2)).unsqueeze(2) + y,  # pyright: ignore[reportAttributeAccessIssue]
    "split": lambda y: sum(p.mean(2, keepdim=True) for p in y.split(4, 2)) + y,
    "chunk": lambda y: sum(p.mean(3, keepdim=True) for p in y.chunk(3, 3)) + y,
    "unpacked": lambda y: torch.cat([*torch.split(y, 4, 2)][::-1], 2),
}


@pytest.mark.parametrize("name", PIECES)
def test_other_numbers_of_pieces_are_refused(name: str) -> None:
    """A sum over the pieces of the example would leave out what other sizes have more of."""
    model = built(PIECES[name]).eval()
    net = fxcat.prepare(model, torch.randn(SHAPE).double(), verbose=False).eval()
    for size in (8, 4, 9, 13):
        x = torch.randn(1, 3, size, size).double()
        try:
            found = net(x)
        except (AssertionError, RuntimeError) as error:
            assert size != 8
            assert "sizes decide otherwise" in str(error)
        else:
            assert difference(found, model(x)) <= 1e-10


def fails_for_these_sizes(y: torch.Tensor) -> torch.Tensor:
    try:
        return y.view(y.shape[0], y.shape[1], 3, -1).mean(3, keepdim=True)
    except RuntimeError:
        return y * 2


def test_what_was_tried_in_vain_decides() -> None:
    model = built(fails_for_these_sizes).eval()
    net = fxcat.prepare(model, torch.randn(SHAPE).double(), verbose=False).eval()
    x = torch.randn(SHAPE).double()
    assert difference(net(x), model(x)) <= 1e-10
    with pytest.raises(AssertionError, match="sizes decide otherwise"):
        net(torch.randn(1, 3, 9, 9).double())


class Casting(nn.Module):
    """Takes images of any type, as the weights have one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expected = self.a.weight.dtype
        if x is not None and x.dtype != expected:
            x = x.to(expected)
        y = self.a(x)
        if y.dtype != self.b.weight.dtype:
            y = y.to(dtype=self.b.weight.dtype)
        return self.b(y)


@pytest.mark.parametrize("example", [torch.float32, torch.float64])
def test_casts_to_the_type_of_weights_stay(example: torch.dtype) -> None:
    model, x = Casting().eval(), torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(model, x.to(example), verbose=False).eval()
    net.gates["a"].theta[::2] = 0
    small = fxcat.finalize(net)
    for dtype in (torch.bfloat16, torch.float64):
        for cast in (net.to(dtype), small.to(dtype)):
            for given in (x, x.to(dtype)):
                assert cast(given).dtype == dtype
        assert difference(small(x), net(x)) <= 1e-10 or dtype == torch.bfloat16


REFUSED: dict[str, tuple[Form, str]] = {
    "address": (lambda y: y * 2 if y.data_ptr() else y, "memory of a tensor"),
    "numpy": (lambda y: y * torch.from_numpy(y.detach().numpy()), "memory of a tensor"),
    "as a size": (lambda y: y[:, :, : int(y.abs().max().item()) + 1], "takes numbers from the values|memory|captured"),
    "many numbers": (lambda y: y * sum(map(sum, y.mean((0, 1)).repeat(2, 2).tolist())), "takes numbers from the"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    form, said = REFUSED[name]
    with pytest.raises(fxcat.CaptureError, match=said):
        fxcat.prepare(built(form), torch.randn(SHAPE).double(), verbose=False)


TOLD: dict[str, tuple[Form, str]] = {
    "one_hot": (lambda y: y * F.one_hot(torch.tensor(2), y.shape[1]).to(y).view(1, -1, 1, 1), "meets one without"),
    "cumprod": (lambda y: y * torch.ones(y.shape[1]).to(y).cumprod(0).view(1, -1, 1, 1), "elements are mixed"),
}


@pytest.mark.parametrize("name", TOLD)
def test_why_units_stay_is_told(name: str) -> None:
    form, said = TOLD[name]
    report = check(built(form), name, SHAPE, OTHER, settings=1)
    assert not report.failures
    assert any(said in p.reason for p in report.pinned)


class Held(nn.Module):
    """A branch on what a buffer holds."""

    shares: torch.Tensor
    done: torch.Tensor

    def __init__(self, asked: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.asked = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), asked
        self.register_buffer("shares", torch.ones(3))
        self.register_buffer("done", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        if self.asked(self):
            y = y + self.b(y)
        return self.head(y)

    def begin(self) -> None:
        self.done.fill_(1)


ASKED: dict[str, Callable[[Any], Any]] = {
    "an entry": lambda net: net.training or net.shares[1] > 0,
    "a number": lambda net: net.shares.sum().item() == 3,
    "a list": lambda net: net.shares[:2].tolist()[0] > 0.5,
}


@pytest.mark.parametrize("name", ASKED)
def test_buffers_that_no_pass_changes_decide(name: str) -> None:
    model, x = Held(ASKED[name]).eval(), torch.rand(2, 3, 6, 6)
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert not net.program.analysis.regions  # pyright: ignore[reportAttributeAccessIssue]
    small = fxcat.finalize(net)
    for network in (net, small):
        assert difference(network(x), model(x)) <= 1e-5
    for buffer in (net.network.shares, small.shares):
        assert isinstance(buffer, torch.Tensor)
        buffer.zero_()
    for network in (net, small):
        with pytest.raises(RuntimeError, match="not taken for these values"):
            network(x)


def test_buffers_that_methods_change_do_not() -> None:
    with pytest.raises(fxcat.CaptureError, match="values of a tensor"):
        fxcat.prepare(Held(lambda net: not net.done).eval(), torch.rand(2, 3, 6, 6), verbose=False)
