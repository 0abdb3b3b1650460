"""One computation can be written in many forms: constants, keywords, shapes, in-place ops, views, masks, sections."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from helper_functions import whole_batch
from helper_types import kind_of_number
from torch import nn

import fxcat

Form = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """A convolution, what is written between (given the module, the value and the input), a convolution."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 4, 1)
        self.rows = nn.Parameter(torch.randn(8))
        self.table = nn.Parameter(torch.randn(8, 16))
        self.embedding = nn.Embedding(9, 8)
        self.same = nn.Identity()
        self.held = torch.randn(1, 8, 1, 1).double()
        self.plain = torch.randn(16, 16).double()
        self.several = [torch.randn(8).double()]
        self.register_buffer("blur", torch.rand(8, 1, 3, 3))
        self.register_buffer("mask", torch.rand(8, 8) > 0.5)
        self.register_buffer("order", torch.randperm(8))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.form(self, self.first(x), x))


def failures(model: nn.Module, *shapes: tuple[int, ...]) -> tuple[list[str], int, int]:
    """What fails, the number of units, and of sections."""
    model = model.double()
    randomise(model, 0)
    report = check(model, "form", *shapes)
    return report.failures, report.units, report.sections


IMAGES = (1, 3, 8, 8), (3, 3, 8, 8)

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
    "normalize over two axes": lambda m, y, x: F.normalize(y, dim=(1, 2)),
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


def test_what_is_read_as_another_type_is_kept() -> None:
    model = Between(lambda m, y, x: y * (y.detach().view(torch.int32) != 0))
    with pytest.raises(fxcat.NothingToPruneError, match="another type"):
        fxcat.prepare(model, torch.zeros(IMAGES[0]), verbose=False)


def run(*steps: Any) -> Any:
    """The last of some steps."""
    return steps[-1]


IN_PLACE: dict[str, Form] = {
    "module": lambda m, y, x: run(m.relu(y), y),
    "function": lambda m, y, x: run(F.relu(y, inplace=True), y),
    "method": lambda m, y, x: run(y.relu_(), y),
    "seen through an earlier view": lambda m, y, x: (lambda v: run(y.relu_(), v.view(y.shape)))(y.view(len(y), -1)),
    "module, seen through a view": lambda m, y, x: (lambda v: run(m.relu(y), v.view(y.shape)))(y.flatten(1)),
    "seen through a view of a view": lambda m, y, x: (lambda v: run(y.relu_(), v.permute(0, 3, 1, 2)))(
        y.transpose(1, 2).transpose(2, 3)
    ),
    "a copy that is a view of one unit": lambda m, y, x: (lambda d: run(d.relu_(), y + d.permute(0, 3, 1, 2)))(
        y.permute(0, 2, 3, 1).contiguous()
    ),
    "a module on such a copy": lambda m, y, x: (lambda d: run(m.relu(d), y + d.permute(0, 3, 1, 2)))(
        y.permute(0, 2, 3, 1).contiguous()
    ),
    "identity": lambda m, y, x: (lambda i: run(m.relu(y), i))(m.same(y)),
    "a view that nobody else reads": lambda m, y, x: m.relu(y.flatten(1)).view(y.shape),
}


@pytest.mark.parametrize("form", IN_PLACE)
def test_changes_in_place(form: str) -> None:
    failed, units, _ = failures(Between(IN_PLACE[form]), *IMAGES)
    assert not failed
    assert units == 8


def add_to(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`+=` on what has a second name."""
    same = y
    same += 1
    same *= x[:, :1]
    same -= 0.5
    same /= 3
    return y


def add_through_a_view(y: torch.Tensor) -> torch.Tensor:
    part = y[:, :, :4]
    part += 1
    return y


def test_augmented_assignments_are_seen_under_other_names() -> None:
    assert failures(Between(lambda m, y, x: add_to(y, x)), *IMAGES)[:2] == ([], 8)


KEPT: dict[str, Form] = {
    "a part": lambda m, y, x: add_through_a_view(y),
    "cast to its own type": lambda m, y, x: (lambda i: run(i.relu_(), y))(y.to(x.dtype)),
    "expanded as it is": lambda m, y, x: (lambda i: run(i.relu_(), y))(y.expand_as(y)),
    "dropout of nothing": lambda m, y, x: (lambda i: run(i.relu_(), y + i))(F.dropout(y, 0.0)),
}


@pytest.mark.parametrize("form", KEPT)
def test_what_is_changed_through_a_view_is_kept(form: str) -> None:
    """A gate before the change would come too early."""
    model = Between(lambda m, y, x: m.inner(KEPT[form](m, y, x)))
    assert failures(model, *IMAGES)[:2] == ([], 8)  # those of the inner layer


MASKS: dict[str, Form] = {
    "leaky_relu": lambda m, y, x: F.leaky_relu(y.masked_fill(m.mask, -torch.inf)).amax(-1, keepdim=True),
    "negated": lambda m, y, x: (-y.masked_fill(m.mask, -torch.inf)).amin(-1, keepdim=True),
    "added": lambda m, y, x: (y + torch.zeros(8, dtype=y.dtype).masked_fill(m.mask[0], -torch.inf)).amax(-1, True),
    "chosen": lambda m, y, x: F.relu(torch.where(m.mask, y, torch.full((), -torch.inf, dtype=y.dtype))),
    "relu": lambda m, y, x: F.relu(y.masked_fill(m.mask, -torch.inf)),
}


@pytest.mark.parametrize("form", MASKS)
def test_gates_go_behind_what_takes_infinities(form: str) -> None:
    assert failures(Between(MASKS[form]), *IMAGES)[:2] == ([], 8)


class Residual(nn.Module):
    """A sum of a value and of what is written, between two convolutions."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.register_buffer("mask", torch.rand(8, 8) > 0.5)
        self.register_buffer("order", torch.randperm(8))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x))
        return self.head(y + self.form(self, y, x))


SECTIONS: dict[str, Form] = {
    "condition": lambda m, y, x: torch.where(y > 0, m.a(y), m.b(y)),
    "constant condition": lambda m, y, x: torch.where(m.mask, m.a(y), m.b(y)),
    "mask in numbers": lambda m, y, x: m.a(y) * (y.mean(1, keepdim=True) > 0).to(y.dtype),
    "paths dropped": lambda m, y, x: m.a(y) * (torch.rand(len(y), 1, 1, 1, dtype=y.dtype) < 1.1).to(y.dtype),
    "mask added": lambda m, y, x: m.a(y) + (y[:, :1] > 0).type_as(y).repeat(1, 8, 1, 1),
    "infinite padding": lambda m, y, x: (
        F.pad(m.a(y), (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))
    ),
    "boolean factor": lambda m, y, x: m.a(y) * (y > 0),
    "indices": lambda m, y, x: m.a(y)[:, :, m.order],
    "computed indices": lambda m, y, x: m.b(F.relu(m.a(y)))[:, :, m.order.flip(0)],
    "quotient": lambda m, y, x: m.a(y) / m.b(y).exp(),
    "quotient by itself": lambda m, y, x: (lambda z: z / z.norm(dim=1, keepdim=True))(m.a(y)),
    "root": lambda m, y, x: m.a(y).abs() ** 0.5,
    "positions": lambda m, y, x: F.grid_sample(m.a(y), m.b(y).tanh()[:, :2].permute(0, 2, 3, 1), align_corners=False),
    "addcmul": lambda m, y, x: torch.addcmul(m.a(y), m.b(y), m.b(y).sigmoid()),
    "attention": lambda m, y, x: F.scaled_dot_product_attention(
        m.a(y).flatten(2), m.b(y).flatten(2), m.b(y).flatten(2)
    ).view(y.shape),
}


@pytest.mark.parametrize("form", SECTIONS)
def test_sections_close_at_what_makes_them_zero(form: str) -> None:
    failed, _, sections = failures(Residual(SECTIONS[form]), *IMAGES)
    assert not failed
    assert sections >= 1


class Statistics(nn.Module):
    """Buffers that Python changes, in training or always."""

    def __init__(self, change: Callable[[Any, torch.Tensor], Any], always: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("scale", torch.ones(1))
        self.change, self.always = change, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.training or self.always:
            self.change(self, y)
        return self.last((y - self.mean.view(1, -1, 1, 1)).sigmoid() / (self.scale + 1))


KEPT_VALUES: dict[str, torch.Tensor] = {}

CHANGES = {
    "in a chain": lambda m, y: m.scale.mul_(0.9).add_(y.detach().abs().mean(), alpha=0.1),
    "per channel": lambda m, y: m.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1),
    "as an assignment": lambda m, y: setattr(m, "scale", 0.9 * m.scale + 0.1 * y.detach().mean()),
    "by copy_": lambda m, y: m.mean.copy_(0.9 * m.mean + 0.1 * y.detach().mean((0, 2, 3))),
    "by lerp_": lambda m, y: m.mean.lerp_(y.detach().mean((0, 2, 3)), 0.1),
    "as data": lambda m, y: setattr(m.scale, "data", 0.9 * m.scale + 0.1 * y.detach().mean()),
    "without gradients": lambda m, y: change_without_gradients(m, y),
}


def change_without_gradients(module: Any, y: torch.Tensor) -> None:
    with torch.no_grad():
        module.scale += y.mean()


@pytest.mark.parametrize("change", CHANGES)
def test_buffers_that_python_changes(change: str) -> None:
    failed, units, _ = failures(Statistics(CHANGES[change], False), *IMAGES)
    assert not failed
    assert units == 8
    net = fxcat.prepare(Statistics(CHANGES[change], True), torch.randn(1, 3, 8, 8), verbose=False)
    before = [b.clone() for b in net.network.buffers()]
    for _ in range(3):  # the graph of one step's gradients must not reach into the next
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert any(not torch.equal(b, a) for a, b in zip(before, net.network.buffers(), strict=True))


def test_what_runs_without_gradients_gets_none() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.neck, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                parts = self.body(x).relu().chunk(2, 1)
            return self.head(self.neck(torch.cat(parts, 1)))

    model = Frozen()
    net = fxcat.prepare(model, torch.randn(1, 3, 8, 8), verbose=False)
    assert [g.name for g in net.structure.groups] == ["neck"]
    for trained in (net, fxcat.finalize(net)):
        trained(torch.randn(2, 3, 8, 8)).sum().backward()
        gradients = {n.removeprefix("network."): p.grad for n, p in trained.named_parameters()}
        assert gradients["body.weight"] is None
        assert gradients["neck.weight"] is not None


def test_changes_that_cannot_be_captured_are_refused() -> None:
    def add(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.add(y, 1.0, out=y)

    def clamp(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y.clamp_(0.0)
        return y

    def count(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        module.held += 1
        return y * module.held

    def decay(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        module.held = module.held * 0.5
        return y * module.held

    def mix(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        module.held = module.held * 0.5 + y.mean()
        return y * module.held

    def keep(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        KEPT_VALUES["positions"] = torch.arange(y.shape[-1])
        return y + KEPT_VALUES["positions"]

    for form in (add, clamp, count, decay, mix, keep):
        with pytest.raises(fxcat.FxcatError):
            fxcat.prepare(Between(form), torch.randn(1, 3, 8, 8), verbose=False)


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


def test_positions_are_no_shortcut() -> None:
    """They have no batch: the sum with them is no residual connection."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.places = nn.Linear(3, 8), nn.Embedding(9, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.patches(x) + self.places(torch.arange(x.shape[1])[None]))

    assert failures(Embedded(), (1, 5, 3), (3, 5, 3)) == ([], 8, 0)


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
