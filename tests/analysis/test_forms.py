"""One computation can be written in many forms: constants, keywords, shapes, views."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from forms import IMAGES, Between, Form, failures
from helper_functions import whole_batch
from helper_types import kind_of_number
from torch import nn

import fxcat

FORMS: dict[str, Form] = {
    "layer_norm of a shape": lambda m, y, x: F.layer_norm(y, y.shape[1:]),
    "transposed by attributes": lambda m, y, x: (
        y.mT.relu() + y.flatten(1).T.unflatten(0, (8, 8, 8)).permute(3, 0, 1, 2)
    ),
    "blur pooling": lambda m, y, x: F.conv2d(y, m.blur, padding=1, groups=y.shape[1]),
    "group_norm of a size": lambda m, y, x: F.group_norm(y, num_groups=y.size(1)),
    "conv2d by keywords": lambda m, y, x: F.conv2d(weight=m.inner.weight, input=y),
    "softmax by keywords": lambda m, y, x: F.softmax(input=y, dim=-1),
    "quotient by keywords": lambda m, y, x: torch.div(y, other=2),
    "where by keywords": lambda m, y, x: torch.where(condition=x[:, :1] > 0, input=y, other=2 * y),
    "where as a method": lambda m, y, x: y.where(x[:, :1] > 0, torch.zeros((), dtype=y.dtype)),
    "addcmul of one value": lambda m, y, x: torch.addcmul(y, y, y),
    "normalize over two axes": lambda m, y, x: F.normalize(y, dim=(1, 2)),  # pyright: ignore[reportArgumentType]
    "expanded to a shape": lambda m, y, x: y * y.mean((2, 3), keepdim=True).expand(y.shape),
    "expanded to a size": lambda m, y, x: y * y.mean((2, 3), keepdim=True).expand(size=y.size()),
    "expanded to sizes": lambda m, y, x: y * y.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:]),
    "squeezed": lambda m, y, x: y * F.adaptive_avg_pool2d(y, 1).squeeze()[..., None, None],
    "viewed as a shape": lambda m, y, x: y.view(-1, *y.shape[2:]).relu().view(*y.shape),
    "shape in a loop": lambda m, y, x: y.flatten(1).view([s for s in y.shape]),
    "folded into the batch": lambda m, y, x: y.reshape(len(y) * (y.shape[1] // 4), 4, 8, 8).relu().view(y.shape),
    "halves in the batch": lambda m, y, x: y.reshape(len(y) * y.shape[1] // 2, 2, *y.shape[2:]).relu().reshape(y.shape),
    "unflattened": lambda m, y, x: y.flatten(0, 1).unflatten(0, (len(x), -1)).unflatten(1, (4, 2)).flatten(1, 2),
    "unflattened batch": lambda m, y, x: y.flatten(0, 1).relu().unflatten(0, x.new_zeros(len(x), y.shape[1]).shape),
    "mask made here": lambda m, y, x: y.masked_fill(torch.triu(torch.ones(8, 8)) > 0, 0.5),
    "mask of a size": lambda m, y, x: y.masked_fill(torch.ones(*y.shape[2:]).triu().bool(), 0.5),
    "steps between tensors": lambda m, y, x: (
        y * torch.linspace(torch.full((), 0.5).log(), torch.ones(()), y.shape[1], device=y.device)[:, None, None]
    ),
    "constant added": lambda m, y, x: y + torch.linspace(0, 1, y.shape[-1], dtype=y.dtype),
    "zeros appended": lambda m, y, x: torch.cat([y, torch.zeros(len(y), 2, 8, 8, dtype=y.dtype)], 1)[:, :8],
    "frames one by one": lambda m, y, x: torch.cat([t.relu() for t in y.split(1, 0)], 0) if len(y) > 9 else y.relu(),
    "pooled by a size": lambda m, y, x: F.avg_pool2d(y, y.size()[2:]) * y,
    "pooled by a keyword": lambda m, y, x: F.avg_pool2d(y, kernel_size=y.shape[2:]) * y,
    "smallest number": lambda m, y, x: y.masked_fill(m.mask, torch.finfo(y.dtype).eps),
    "rounded": lambda m, y, x: y.flatten(2)[:, :, : round(y.shape[-1] * 4.0)].unflatten(2, (-1, y.shape[-1])),
    "whole number": lambda m, y, x: y.view(int(y.shape[0] / (8 * 8 / 4 / 16)), -1, 8, 8),
    "compared": lambda m, y, x: y * (y > 0) + y.masked_fill(y < 0, 0.0),
    "ones alike": lambda m, y, x: torch.ones_like(y) + y + torch.zeros_like(y).lerp(y, 0.5),
    "sums along": lambda m, y, x: y.cumsum(-1) - y.logsumexp(2, keepdim=True),
    "asked for its type": lambda m, y, x: torch.cat([y] if isinstance(y, torch.Tensor) else y, 1),
    "table sliced": lambda m, y, x: y + m.table[:, : y.shape[-1]].t()[None, :, None],
    "embedded": lambda m, y, x: y + m.embedding(torch.arange(y.shape[-1])).t()[None, :, None],
    "tensor that is no buffer": lambda m, y, x: y * m.held + m.several[0][None, :, None, None] * m.held.sigmoid(),
    "unsqueezed in place": lambda m, y, x: y * y.mean((2, 3)).unsqueeze_(2).unsqueeze_(3),
    "transposed in place": lambda m, y, x: y.transpose_(2, 3).relu(),
    "rounded up": lambda m, y, x: y[:, :, : math.ceil(y.shape[2] / 2) * 2 + math.floor(y.shape[3] / 2)],
    "constant repeated": lambda m, y, x: (
        y + torch.arange(8.0, dtype=y.dtype).unsqueeze(0).repeat(len(y), 1)[:, None, None]
    ),
    "constant expanded": lambda m, y, x: y + torch.arange(8.0, dtype=y.dtype).expand(len(y), 1, 1, 8),
    "identity matrix": lambda m, y, x: y @ torch.eye(y.shape[-1], dtype=y.dtype),
    "smaller of two": lambda m, y, x: y[:, :, : min(y.shape[2], 99), : max(y.shape[2:])] * min(len(y), 99),
    "shapes compared": lambda m, y, x: y * y.relu() if y.shape == y.relu().shape else y,
    "compared with nothing": lambda m, y, x: y.relu() if y.shape is not None and y.shape != None else y,  # noqa: E711
    "sizes of data": lambda m, y, x: y.view(*x.data.size()[:1], *y.data.size()[1:]),
    "maximum along an axis": lambda m, y, x: y * torch.max(y, dim=2, keepdim=True)[0] + torch.max(y, y.relu()),
    "instance_norm": lambda m, y, x: F.instance_norm(y),
    "int in another file": lambda m, y, x: whole_batch(y),
    "table sliced by a size": lambda m, y, x: y + m.plain[: y.shape[-1], : y.shape[-2]],
    "tensor viewed by sizes": lambda m, y, x: y * m.held.view(1, y.shape[1], 1, 1).expand(len(y), -1, 1, 1),
    "tensor repeated": lambda m, y, x: y + torch.ones(1, 1, 1, 8).repeat(len(y), 1, 1, 1),
    "named results": lambda m, y, x: y * y.max(dim=2, keepdim=True).values,
    "repeated each": lambda m, y, x: (
        y.repeat_interleave(2, dim=1, output_size=y.shape[1] * 2).unflatten(1, (-1, 2)).sum(2)
    ),
    "repeated each as said": lambda m, y, x: torch.repeat_interleave(y, 3, 1, output_size=24)[:, ::3],
    "repeated as often as a size": lambda m, y, x: (
        y * y.mean((2, 3)).repeat_interleave(y.shape[1], 1)[:, ::8, None, None]
    ),
    "outer product": lambda m, y, x: y * torch.outer(m.rows, torch.linspace(0, 1, y.shape[-1]))[..., None],
    "outer product as a method": lambda m, y, x: y + m.several[0].ger(torch.arange(y.shape[-1]).to(y))[..., None],
    "divided by its norm": lambda m, y, x: y / (y.norm(dim=1, keepdim=True) + 0.1),
}


VIEWED: dict[str, Form] = {
    "batch_norm": lambda m, y, x: m.norm(y.mT).view(len(y), 8, -1).view_as(y),
    "layer_norm": lambda m, y, x: F.layer_norm(y.permute(0, 3, 2, 1), (8,)).view(len(y), -1, 8).mT.reshape(y.shape),
    "rms_norm": lambda m, y, x: F.rms_norm(y.permute(0, 3, 2, 1), (8,)).view(len(y), -1, 8).mT.reshape(y.shape),
    "group_norm": lambda m, y, x: F.group_norm(y.mT, 4).view(len(y), 8, -1).view(y.shape),
    "softmax": lambda m, y, x: F.softmax(y.permute(0, 2, 3, 1), 2).view(len(y), -1, 8).mT.reshape(y.shape),
}


@pytest.mark.parametrize("form", VIEWED)
def test_what_is_normalised_can_be_viewed(form: str) -> None:
    """The kernels write their results anew, whatever the strides of the value."""
    failed, _, _ = failures(Between(VIEWED[form]), *IMAGES)
    assert not failed


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    failed, units, _ = failures(Between(FORMS[form]), *IMAGES)
    assert not failed
    assert units >= 2


def sines(y: torch.Tensor, width: int) -> torch.Tensor:
    """Position embeddings for the sizes of an image, with as many channels as are written."""
    steps = 0.1 ** torch.arange(width // 4, device=y.device, dtype=y.dtype)
    rows, columns = (torch.arange(n, device=y.device, dtype=y.dtype) for n in y.shape[2:])
    grids = [g.flatten()[:, None] * steps for g in torch.meshgrid(rows, columns, indexing="ij")]
    return torch.cat([f(g) for g in grids for f in (torch.sin, torch.cos)], 1).T.unflatten(1, y.shape[2:])


def test_what_is_made_of_sizes_gives_what_is_left() -> None:
    model = Between(lambda m, y, x: y + m.inner(y + sines(y, 8)).relu())
    failed, units, sections = failures(model, (1, 3, 8, 8), (3, 3, 6, 4))
    assert (failed, units, sections) == ([], 8, 1)
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8).double(), verbose=False)
    assert not [n for n, _ in fxcat.finalize(net).named_buffers() if "channels" in n]
    for gate in net.gates.values():
        gate.set(torch.zeros(gate.count) if gate.kind == "section" else torch.ones(gate.count))
    small, x = fxcat.finalize(net), torch.rand(1, 3, 6, 6).double()
    assert difference(small(x), net.eval()(x)) < 1e-10


def test_what_is_read_as_another_type_is_kept() -> None:
    model = Between(lambda m, y, x: y * (y.detach().view(torch.int32) != 0))
    with pytest.raises(fxcat.NothingToPruneError, match="another type"):
        fxcat.prepare(model, torch.zeros(IMAGES[0]), verbose=False)


def test_int_is_a_type_where_it_is_used_as_one() -> None:
    failed, units, _ = failures(Between(lambda m, y, x: kind_of_number(y, 3)), *IMAGES)
    assert (failed, units) == ([], 8)


def test_sizes_decide_as_for_the_example() -> None:
    """A branch that went one way for the example inputs is not taken by inputs of another kind."""
    forms: list[Form] = [
        lambda m, y, x: torch.cat([y[i : i + 1].relu() for i in range(len(y))]),
        lambda m, y, x: torch.stack([image.relu() for image in y]),
        lambda m, y, x: torch.cat([image.relu() for image in y.split(1, 0)]),
        lambda m, y, x: torch.stack([image.relu() for image in y.unbind()]),
    ]
    for form in forms:
        net = fxcat.prepare(Between(form), torch.randn(2, 3, 8, 8), verbose=False).eval()
        assert len(net(torch.randn(2, 3, 8, 8))) == 2
        with pytest.raises(AssertionError, match="sizes decide otherwise"):
            net(torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8, 8)])
def test_values_without_a_batch_axis_are_kept(shape: tuple[int, ...]) -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(self.first(x).relu())
            return self.head(F.adaptive_avg_pool2d(y, 1).squeeze())

    if len(shape) == 4:
        assert failures(Squeezed(), shape, shape)[:2] == ([], 8)
    else:
        with pytest.raises(fxcat.NothingToPruneError, match="no batch axis"):
            fxcat.prepare(Squeezed(), torch.randn(*shape), verbose=False)


def test_a_vector_as_weight() -> None:
    class Scored(nn.Module):
        """Tokens weighted by a score."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 8)
            self.score = nn.Parameter(torch.randn(8))
            self.outer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return self.outer(y + F.linear(y, self.score).unsqueeze(-1))

    assert failures(Scored(), (1, 5, 3), (3, 5, 3))[:2] == ([], 8)


def test_frames_of_a_batch() -> None:
    """Sizes that are written as the example's would only fit its batch."""

    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 3, padding=1)
            self.outer = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, frames = x.shape[:2]
            y = F.relu(self.inner(x.flatten(0, 1))).unflatten(0, (batch, frames))
            return self.outer(y.mean(1))

    assert failures(Video(), (1, 5, 3, 8, 8), (3, 5, 3, 8, 8))[:2] == ([], 8)


MERGED: dict[str, Form] = {
    "softmax": lambda m, y, x: y.flatten(1).softmax(1).view(y.shape),
    "softmax, channels last": lambda m, y, x: (
        y.movedim(1, -1).flatten(1).softmax(1).unflatten(1, (*y.shape[2:], -1)).movedim(-1, 1)
    ),
    "log_softmax of rows": lambda m, y, x: y.flatten(1, 2).log_softmax(1).view(y.shape),
    "logsumexp": lambda m, y, x: y - y.flatten(1).logsumexp(1)[:, None, None, None],
    "mean": lambda m, y, x: y - y.view(len(y), -1).mean(-1, keepdim=True)[..., None, None],
    "mean of all": lambda m, y, x: y / (1 + y.view(-1).pow(2).mean()),
    "smallest and largest": lambda m, y, x: (
        lambda f: ((f - f.amin(1, keepdim=True)) / (f.max(1, keepdim=True)[0] + 9)).view(y.shape)
    )(y.flatten(1)),
    "layer_norm": lambda m, y, x: F.layer_norm(y.flatten(1), y.flatten(1).shape[1:]).view(y.shape),
    "not zero at zero": lambda m, y, x: y.flatten(1).exp().cos().view(y.shape),
    "groups": lambda m, y, x: (lambda g: ((g - g.mean(-1, keepdim=True)) / (g.std(-1, keepdim=True) + 1)).view_as(y))(
        y.view(len(y), 4, -1)
    ),
}


@pytest.mark.parametrize("form", MERGED)
def test_units_along_merged_axes(form: str) -> None:
    """How many entries a unit has there is another number for images of another size, and for another batch."""
    failed, units, _ = failures(Between(MERGED[form]), (1, 3, 8, 8), (3, 3, 6, 10))
    assert not failed
    assert units == (4 if form == "groups" else 8)
