"""What Python changes in place: values, parts of values, buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forms import IMAGES, Between, Form, failures, run
from torch import nn

import fxcat


def add_through_a_view(y: torch.Tensor) -> torch.Tensor:
    part = y[:, :, :4]
    part += 1
    return y


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
    "a part": lambda m, y, x: add_through_a_view(y),
    "a view that nobody else reads": lambda m, y, x: m.relu(y.flatten(1)).view(y.shape),
}


@pytest.mark.parametrize("form", IN_PLACE)
def test_changes_in_place(form: str) -> None:
    failed, units, _ = failures(Between(IN_PLACE[form]), *IMAGES)
    assert not failed
    assert units == 8


def set_where(y: torch.Tensor, places: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    scores = y.sum(1)
    scores[places(scores > 0.5)] = 0.25
    return y * scores[:, None]


PLACES: dict[str, Callable[[torch.Tensor], Any]] = {
    "where": torch.where,
    "nonzero": lambda c: torch.nonzero(c, as_tuple=True),
    "method": lambda c: c.nonzero(as_tuple=True),
}


@pytest.mark.parametrize("form", PLACES)
def test_values_are_set_where_a_condition_holds(form: str) -> None:
    failed, units, _ = failures(Between(lambda m, y, x: set_where(y, PLACES[form])), *IMAGES)
    assert not failed
    assert units == 8


OF_VALUES: dict[str, Form] = {
    "where": lambda m, y, x: y * len(torch.where(y > 0)[0]),
    "nonzero": lambda m, y, x: y * len(torch.nonzero(y > 0)),
    "method": lambda m, y, x: y * (y > 0).nonzero().shape[0],
    "argwhere": lambda m, y, x: y * len(torch.argwhere(y > 0)),
    "masked_select": lambda m, y, x: y * y.masked_select(y > 0).mean(),
    "unique": lambda m, y, x: y * torch.unique(y).mean(),
    "repeat_interleave": lambda m, y, x: y * y.flatten().repeat_interleave((y > 0).flatten().long()).mean(),
}


@pytest.mark.parametrize("form", OF_VALUES)
def test_what_is_found_where_a_condition_holds_is_not_captured(form: str) -> None:
    with pytest.raises(fxcat.CaptureError, match="how many entries a value has depends on the values") as caught:
        fxcat.prepare(Between(OF_VALUES[form]), torch.rand(IMAGES[0]), verbose=False)
    assert "forms.py" in str(caught.value)


def add_to(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`+=` on what has a second name."""
    same = y
    same += 1
    same *= x[:, :1]
    same -= 0.5
    same /= 3
    return y


def test_augmented_assignments_are_seen_under_other_names() -> None:
    assert failures(Between(lambda m, y, x: add_to(y, x)), *IMAGES)[:2] == ([], 8)


KEPT: dict[str, Form] = {
    "cast to its own type": lambda m, y, x: (lambda i: run(i.relu_(), y))(y.to(x.dtype)),
    "expanded as it is": lambda m, y, x: (lambda i: run(i.relu_(), y))(y.expand_as(y)),
    "dropout of nothing": lambda m, y, x: (lambda i: run(i.relu_(), y + i))(F.dropout(y, 0.0)),
}


@pytest.mark.parametrize("form", KEPT)
def test_what_is_changed_through_a_view_is_kept(form: str) -> None:
    """A gate before the change would come too early."""
    model = Between(lambda m, y, x: m.inner(KEPT[form](m, y, x)))
    assert failures(model, *IMAGES)[:2] == ([], 8)  # those of the inner layer


def put(y: torch.Tensor, *changes: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    """A copy of a value after some changes."""
    y = y * 1.0
    for change in changes:
        change(y)
    return y


def scale(y: torch.Tensor, index: Any, by: Any) -> None:
    y[index] *= by


def move(y: torch.Tensor, index: Any, by: Any) -> None:
    y[index] += by


ROWS, EVERY = slice(None), Ellipsis

ASSIGNED: dict[str, Form] = {
    "picked and scaled": lambda m, y, x: put(y, lambda z: scale(z, z > 0.3, 2)),
    "picked and moved": lambda m, y, x: put(y, lambda z: move(z, z < 0, 0.5)),
    "picked by other values": lambda m, y, x: put(y, lambda z: scale(z, (x[:, :1] > 0).expand_as(z), 0.5)),
    "picked by a constant": lambda m, y, x: put(y, lambda z: scale(z, (EVERY, m.mask), 2)),
    "filled by a constant mask": lambda m, y, x: put(y, lambda z: z.__setitem__((EVERY, m.mask), 0.2)),
    "picked by a size": lambda m, y, x: put(
        y, lambda z: z.__setitem__((EVERY, torch.arange(z.shape[-1]) % 2 == 0), 0.2)
    ),
    "filled in the middle": lambda m, y, x: put(
        y.movedim(1, -1), lambda z: z.__setitem__((ROWS, m.mask, ROWS), 0.2)
    ).movedim(-1, 1),
    "a function of what is picked": lambda m, y, x: put(
        y, lambda z: z.__setitem__(z > 1, torch.log(z[z > 1]) + 1), lambda z: z.__setitem__(z < 0, z[z < 0].exp() - 1)
    ),
    "picked from several": lambda m, y, x: (lambda k: put(y, lambda z: z.__setitem__(k, (y.sigmoid()[k] - z[k]) * 2)))(
        y > 0
    ),
    "a token in the place of others": lambda m, y, x: (
        put(y.flatten(2).transpose(1, 2), lambda t: t.__setitem__(x[:, 0].flatten(1) > 0.5, m.rows))
        .transpose(1, 2)
        .reshape(y.shape)
    ),
    "all": lambda m, y, x: put(y, lambda z: z.__setitem__(ROWS, y.sigmoid()), lambda z: move(z, EVERY, 1.0)),
    "all, by a number": lambda m, y, x: y + put(y, lambda z: z.__setitem__(EVERY, 0.5)),
    "listed channels": lambda m, y, x: put(y, lambda z: move(z, (ROWS, [1, 3]), 1), lambda z: scale(z, (ROWS, [0]), 2)),
    "listed rows": lambda m, y, x: put(y, lambda z: z.__setitem__((ROWS, ROWS, torch.tensor([0, 2])), 0.3)),
    "listed rows, by values": lambda m, y, x: put(y, lambda z: z.__setitem__((ROWS, ROWS, [4, 0]), y[:, :, :2])),
}


@pytest.mark.parametrize("form", ASSIGNED)
def test_assignments(form: str) -> None:
    """Such values are computed for all entries; gradients are those of the entries that are picked."""
    model = Between(ASSIGNED[form])
    failed, units, _ = failures(model, (1, 3, 8, 8), (3, 3, 8, 6) if form == "picked by a size" else (3, 3, 8, 8))
    assert not failed
    assert units == (5 if form == "listed channels" else 8)  # what is written in the place of others stays with them
    net = fxcat.prepare(model, torch.randn(*IMAGES[0]).double(), verbose=False).train()
    for each in (model.train(), net):
        each.zero_grad()
        each(torch.randn(*IMAGES[1], generator=torch.Generator().manual_seed(0)).double()).square().sum().backward()
    found = {n: p.grad for n, p in net.network.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, {n: p.grad for n, p in model.named_parameters() if n in found})


@pytest.mark.parametrize(
    "form",
    [lambda m, y, x: y * y[y > 0].mean(), lambda m, y, x: y[:, y.mean((0, 2, 3)) > 0].view(len(y), 3, *y.shape[2:])],
)
def test_how_many_entries_are_picked_is_not_known(form: Form) -> None:
    with pytest.raises(fxcat.CaptureError, match="a mask picks entries"):
        fxcat.prepare(Between(form), torch.randn(*IMAGES[0]), verbose=False)


class Statistics(nn.Module):
    """Buffers that Python changes, in training or always."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, change: Callable[[Any, torch.Tensor], Any], always: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last: nn.Module = nn.Conv2d(8, 4, 1)
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


def write_an_entry(module: Any, y: torch.Tensor) -> None:
    with torch.no_grad():
        module.mean[0] = y.mean()


def add_to_entries(module: Any, y: torch.Tensor) -> None:
    with torch.no_grad():
        module.mean[2:4] += y.mean((0, 2, 3))[2:4]


PARTS_OF_BUFFERS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "an entry": write_an_entry,
    "entries": add_to_entries,
    "a slice": lambda m, y: m.mean.__setitem__(slice(0, 3), y.detach().mean((0, 2, 3))[:3]),
    "all": lambda m, y: m.mean.__setitem__(slice(None), y.detach().mean((0, 2, 3))),
}


@pytest.mark.parametrize("change", PARTS_OF_BUFFERS)
def test_buffers_that_python_changes_in_part(change: str) -> None:
    def made(always: bool) -> Statistics:
        model = Statistics(PARTS_OF_BUFFERS[change], always)
        model.last = nn.Sequential(model.last, nn.ReLU(), nn.Conv2d(4, 2, 1))
        return model

    assert not failures(made(False), *IMAGES)[0]
    model = made(True)
    net = fxcat.prepare(model, torch.randn(1, 3, 8, 8), verbose=False)
    for seed in range(3):
        for each in (model, net):
            each.zero_grad()
            each(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).sum().backward()
        torch.testing.assert_close(net.network.mean, model.mean)
        found = {n: p.grad for n, p in net.network.named_parameters() if p.grad is not None}
        torch.testing.assert_close(found, {n: p.grad for n, p in model.named_parameters()})


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

    def clear(module: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y[:, 0] = 0
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

    for form in (add, clamp, clear, count, decay, mix, keep):
        with pytest.raises(fxcat.FxcatError):
            fxcat.prepare(Between(form), torch.randn(1, 3, 8, 8), verbose=False)


FREQUENCIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "some of two axes": lambda f: write(torch.zeros_like(f), (..., slice(3), slice(2)), 2 * f[..., :3, :2]),
    "every other one": lambda f: write(f.clone(), (..., slice(None, None, 2)), f[..., ::2] * 1j),
    "conjugates": lambda f: write(f.clone(), (..., slice(1, 3), slice(2)), f[..., 1:3, :2].conj()),
    "of some channels": lambda f: write(f.clone(), (slice(None), slice(2, 5), slice(2)), 2 * f[:, 2:5, :2]),
}


def write(whole: torch.Tensor, index: Any, value: torch.Tensor) -> torch.Tensor:
    whole[index] = value
    return whole


@pytest.mark.parametrize("form", FREQUENCIES)
def test_complex_numbers_that_are_written_train(form: str) -> None:
    def frequencies(m: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(FREQUENCIES[form](torch.fft.rfft2(y)), s=y.shape[-2:])

    model = Between(frequencies).double()
    failed, units, _ = failures(model, *IMAGES)
    assert not failed
    assert units == 8
    example = torch.randn(IMAGES[1], dtype=torch.float64)
    small = fxcat.finalize(fxcat.prepare(model, example, verbose=False))
    for network in (small, model):
        network(example).square().sum().backward()
    assert {n for n, p in small.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if p.grad is not None
    }
