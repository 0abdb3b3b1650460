"""Where sections are closed: behind what takes infinities, and at what makes them zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forms import IMAGES, Between, Form, failures
from torch import nn

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
        self.register_buffer("coordinates", torch.randn(8, 2))
        self.register_buffer("places", torch.arange(8))
        self.of_coordinates, self.of_places = nn.Linear(2, 8), nn.Embedding(8, 8)
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
    "sizes from before": lambda m, y, x: m.a(y).flatten(2).view(-1, 8, x.shape[2], x.size(3)),
    "made of sizes": lambda m, y, x: m.a(y) * torch.arange(x.shape[3], dtype=y.dtype),
    "layer of a buffer": lambda m, y, x: m.a(y) * m.of_coordinates(m.coordinates).sigmoid().t()[..., None],
    "rows of a table": lambda m, y, x: m.a(y) + m.of_places(m.places),
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


class Stepped(nn.Module):
    """Branches that also read what is made of another input, as those of diffusion networks and decoders do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.time = nn.Conv2d(3, 8, 1), nn.Linear(4, 6)
        self.enter, self.leave = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.shift, self.again = nn.Linear(6, 6), nn.Linear(6, 8)
        self.shortcut = nn.Conv2d(8, 8, 1) if how == "projected" else nn.Identity()
        self.head, self.how = nn.Conv2d(8, 4, 1), how

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        time = F.silu(self.time(step))
        y = F.relu(self.stem(x))
        z = F.silu(self.enter(y) + self.shift(time)[..., None, None])
        z = self.shortcut(y) + self.leave(z)
        if self.how == "read again":
            z = z * torch.sigmoid(self.shift(time)).mean(1)[:, None, None, None]
        if self.how != "nothing else":
            z = z + self.again(time)[..., None, None]
        return self.head(z)


@pytest.mark.parametrize("how", ["nothing else", "time again", "read again", "projected"])
def test_branches_that_read_other_inputs(how: str) -> None:
    """They are sections, which hold what nothing else reads."""
    failed, units, sections = failures(Stepped(how), ((1, 3, 8, 8), (1, 4)), ((3, 3, 6, 6), (3, 4)))  # pyright: ignore[reportArgumentType]
    assert (failed, units, sections) == ([], (16 if how == "projected" else 8) + 6 + 6, 1)


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


ONE_FOR_ALL: dict[str, Form] = {
    "grid": lambda m, y, x: m.b(torch.linspace(0, 1, y.shape[3], dtype=x.dtype).expand(1, 8, y.shape[2], -1)),
    "mean of all examples": lambda m, y, x: y.mean(0, keepdim=True),
    "largest of all examples": lambda m, y, x: y.max(dim=0, keepdim=True)[0].relu(),
    "first example": lambda m, y, x: y[:1],
}


@pytest.mark.parametrize("form", ONE_FOR_ALL)
def test_what_all_examples_share_is_no_shortcut(form: str) -> None:
    """With one example it has the shape of the branch that is added to it."""

    class Net(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.stem(x))
            return self.head(self.form(self, y, x) + self.a(y))

    failed, _, sections = failures(Net(ONE_FOR_ALL[form]), *IMAGES)
    assert (failed, sections) == ([], 0)
