"""Layers that look at the width of what they get; not in a test's file, whose assertions pytest rewrites."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def _compare(layer: nn.Conv2d, width: int) -> bool:
    if width != layer.in_channels:
        raise ValueError(f"{width} channels")
    return True


def _with_another_handler(layer: nn.Conv2d, width: int) -> bool:
    try:
        return _compare(layer, width)
    except (TypeError, KeyError):
        return False


def _with_a_message(layer: nn.Conv2d, width: int) -> bool:
    try:
        return _with_another_handler(layer, width)
    except ValueError as error:
        message = "width: "
        if width > 1:
            message += str(error)
        raise RuntimeError(message) from None


def _by_a_base_class(layer: nn.Conv2d, width: int) -> bool:
    try:
        return _compare(layer, width)
    except (TypeError, Exception):
        return False


def _raised_as_another(layer: nn.Conv2d, width: int) -> bool:
    try:
        return _with_a_message(layer, width)
    except RuntimeError:
        return False


_TRIES: dict[str, Callable[[nn.Conv2d, int], bool]] = {
    "another caught": _with_another_handler,
    "told": _with_a_message,
    "base class caught": _by_a_base_class,
    "raised again and caught": _raised_as_another,
}


def checked_width(how: str) -> type[nn.Conv2d]:
    """A layer that looks at the width of what it gets."""

    class Checked(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, width, _, _ = x.shape
            if how == "raise":
                if width != self.in_channels or batch < 1:
                    raise ValueError(f"{width} channels where {self.in_channels} are expected")
            elif how == "weight":
                if not (width == self.weight.shape[1] and self.weight.size(0) == self.out_channels):
                    with torch.no_grad():
                        raise ValueError("width")
            elif how == "assert":
                assert width == self.in_channels, f"{width} channels"
                for axis in (1, 2):
                    assert x.shape[axis] > 0 and x.shape[1] == self.in_channels
            elif how == "caught":
                try:
                    assert width == self.in_channels
                except AssertionError:
                    return x
            elif how in _TRIES:
                if not _TRIES[how](self, width):
                    return x
            elif how == "mode":
                if width != (self.in_channels if self.training else self.weight.shape[1]):
                    raise ValueError
            elif how == "branch" and width != self.in_channels:
                x = F.pad(x, (0, 0, 0, 0, 0, 8 - self.in_channels))
            elif how == "number":
                x = x * (int(width) // 2)
            elif how == "among" and (7 in x.shape or width in (1, 4)):
                x = x.relu()
            return F.conv2d(x, self.weight, self.bias)

    return Checked
