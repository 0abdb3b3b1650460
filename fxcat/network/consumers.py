"""What a layer that reads units loses when some of them close."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer of weight and bias, affine in its input, that reads units which close.

    `path`: of its module. `axis`: of the channels, from the end, in what it reads and in what it gives. `closed`: which
    of those that it reads close; `open`: which of its own stay; bool, 1-D. `norm`: path of the batch normalisation that
    alone takes its result, if it has running statistics and is called nowhere else.
    """

    path: str
    axis: int
    closed: torch.Tensor
    open: torch.Tensor
    norm: str | None
