"""One computation can be written in many forms: constants, keywords, shapes, in-place ops, views, masks, sections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from torch import nn

Form = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """A convolution, what is written between (given the module, the value and the input), a convolution."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 4, 1)
        self.rows = nn.Parameter(torch.randn(8))
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
    "divided by its norm": lambda m, y, x: y / (y.norm(dim=1, keepdim=True) + 0.1),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    failed, units, _ = failures(Between(FORMS[form]), *IMAGES)
    assert not failed
    assert units >= 2


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


def test_a_part_changed_through_a_view_is_kept() -> None:
    """A gate before the change would come too early."""
    model = Between(lambda m, y, x: m.inner(add_through_a_view(y)))
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
    assert sections == 1


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
