"""What is written into a part of a value, in the branches of sections and beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import IMAGES, failures, run
from torch import nn


class Branch(nn.Module):
    """A residual branch into a part of which something is written."""

    def __init__(self, write: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.branch = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.write = write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        z = self.branch(x)
        return self.last(x + run(self.write(z), z))


def add_to_a_column(z: torch.Tensor) -> None:
    z[..., 0] += 1


def set_a_channel(z: torch.Tensor) -> None:
    z[:, 0] = 0.3


def clear_where(z: torch.Tensor) -> None:
    z[z < 0] = 0


def add_by_steps(z: torch.Tensor) -> None:
    z[:, :, ::2] += 1


def double_a_view(z: torch.Tensor) -> None:
    part = z[:, :4]
    part += 1
    part *= z[:, 4:]


def change_what_was_set(z: torch.Tensor) -> None:
    z[:, :, 1] = z[:, :, 0]
    z[:, :, 1].mul_(2)


def set_a_vector(z: torch.Tensor) -> None:
    z[:, :2, 1:] = torch.arange(8, dtype=z.dtype)


WRITES: dict[str, tuple[Callable[[torch.Tensor], Any], int]] = {
    "+= on a column": (add_to_a_column, 6 + 8),
    "a channel": (set_a_channel, 6 + 7),  # of the channel alone nothing can go
    "a view": (lambda z: z[:, :, 0].add_(1.0), 6 + 8),
    "a mask": (clear_where, 6 + 8),
    "steps": (add_by_steps, 6 + 8),
    "a view, twice": (double_a_view, 6 + 4),
    "what was set": (change_what_was_set, 6 + 8),
    "the same for all": (set_a_vector, 6 + 8),
    "a view of a view, twice": (lambda z: z.transpose(2, 3)[:, :, 0].mul_(3).add_(1), 6),
    # the channels beside the slice, of the stream and so of the branch, are none of its
    "a slice by another name": (lambda z: z.narrow(1, 2, 3).sub_(0.5), 6 + 5),
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_into_a_part_of_a_branch(write: str) -> None:
    change, expected = WRITES[write]
    failed, units, _ = failures(Branch(change), *IMAGES)
    assert not failed
    assert units == expected


class Tokens(nn.Module):
    """Tokens that are written over, by what is the same for all examples of a batch, and by what is not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.first, self.head = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        x = x + self.leave(self.inner(x).relu())
        x[:, 0] = self.first
        x[:, -1] = x[:, :-1].mean(1)
        x[:, 1:2] = self.first[None]
        return self.head(x)


def test_tokens_that_are_written_over() -> None:
    assert failures(Tokens(), (1, 5, 3), (3, 5, 3)) == ([], 8 + 6, 1)


def test_a_convolution_of_some_channels() -> None:
    """As FasterNet has it: it may have fewer channels than what it is written into."""

    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            y = x.clone()
            y[:, :3, :, :] = self.part(x[:, :3, :, :])
            return self.last(y)

    assert failures(Partial(), *IMAGES) == ([], 8 + 3, 0)


def test_an_earlier_view_of_a_branch_sees_what_is_written_later() -> None:
    class Net(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            z = self.branch(x)
            seen = z.view(z.shape)
            z[..., 0] += 1
            return self.last(x + seen)

    assert not failures(Net(lambda z: None), *IMAGES)[0]
