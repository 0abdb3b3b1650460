"""A function of a model, in a file that uses `int` as a type."""

from __future__ import annotations

import torch


def kind_of_number(y: torch.Tensor, number: object) -> torch.Tensor:
    """Doubled for an integer, which a stand-in for `int` would not be."""
    return 2 * y if type(number) is int else y
