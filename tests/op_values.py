"""Values to try as arguments of ops, by the names and the types of the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

WIDTH = 6
LAYOUTS: dict[str, tuple[int, ...]] = {
    "NC": (WIDTH,),
    "NCL": (WIDTH, 4),
    "NCHW": (WIDTH, 4, 4),
    "NCDHW": (WIDTH, 2, 4, 4),
    "NLC": (4, WIDTH),
}
"""Shapes of the first argument, without the batch axis."""


@dataclass(frozen=True)
class Slot:
    """A tensor among the arguments: `x` and `y` have units, the others are parameters or constants of a shape."""

    kind: str
    shape: tuple[int, ...] = ()


X, Y, TRANSPOSED = Slot("x"), Slot("y"), Slot("transposed")
WITH_UNITS = (X, Y, TRANSPOSED)
MODE = Slot("mode")
"""Whether the network is in training: what is random is so then only."""


@dataclass(frozen=True)
class Parameter:
    """What a signature says of one argument."""

    name: str
    kind: str
    required: bool
    keyword_only: bool = False
    default: Any = None


@dataclass(frozen=True)
class Call:
    """One way to call an op on a value of a layout; `domain`: of numbers that it takes."""

    layout: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    domain: str = "any"

    def within(self, value: torch.Tensor) -> torch.Tensor:
        """A value of the domain."""
        if self.domain == "truth":
            return value > 0
        if self.domain == "positive":
            return value.abs() + 0.5
        return value.tanh() * 0.9 if self.domain == "small" else value

    def __str__(self) -> str:
        args = [_shown(a) for a in self.args] + [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return f"{self.layout}, {self.domain}: ({', '.join(args)})"


def _shown(value: Any) -> str:
    if isinstance(value, Slot):
        return value.kind + (str(list(value.shape)) if value.shape else "")
    return f"({', '.join(map(_shown, value))})" if isinstance(value, tuple | list) else str(value)


def values_by_name(name: str, shape: tuple[int, ...]) -> list[Any]:
    """What arguments of this name usually are, for a first argument of this shape (without the batch axis)."""
    dims, spatial = len(shape) + 1, len(shape) - 1
    channel, rest = 1 if shape[0] == WIDTH else dims - 1, tuple(range(2, dims)) if shape[0] == WIDTH else (1,)
    flat = 1
    for size in shape:
        flat *= size
    known: dict[str, list[Any]] = {
        "dim": [channel, -1, (1, 2), *([rest] if rest else [])],
        "dims": [tuple(range(dims)[:1]) + tuple(range(1, dims))[::-1], -1, (1, 2), (-1,), (2,) + (1,) * (dims - 1)],
        "axis": [channel, -1],
        "dim0": [1],
        "dim1": [-1],
        "axis0": [1],
        "axis1": [-1],
        "source": [1, (1, -1)],
        "destination": [-1, (-1, 1)],
        "start_dim": [1],
        "end_dim": [-1],
        "shifts": [1, (1, 2), (1,)],
        "start": [1],
        "end": [3],
        "step": [2],
        "length": [2],
        "chunks": [2, 3],
        "sections": [2],
        "indices": [[1, 3], (2,)],
        "split_size": [2, [1, WIDTH - 1], [2, 2]],
        "split_size_or_sections": [2, [2, WIDTH - 2], [1, 3]],
        "split_sizes": [[2, WIDTH - 2], [1, 3]],
        "tensor_indices_or_sections": [],
        "repeats": [2, (1, 2) + (1,) * (dims - 2)],
        "sizes": [(3, -1), (2, WIDTH // 2), (2, 2)],
        "size": [(-1, *shape), (-1, flat), (-1, shape[0] // 2, 2, *shape[1:]), (4, *shape), (3, 1)],
        "shape": [(-1, flat), (-1, *shape)],
        "output_size": [2, (1,) * spatial, (8,) * spatial, (4, 5)],
        "scale_factor": [2, 0.5],
        "upscale_factor": [1],
        "downscale_factor": [2],
        "kernel_size": [2, (2,) * spatial],
        "stride": [2, (1,) * spatial],
        "padding": [1, (1,) * spatial],
        "dilation": [2, (2,) * spatial],
        "pad": [(1, 1), (0, 0, 1, 2), (1, 0, 0, 1, 1, 1)],
        "mode": ["bilinear", "nearest", "reflect", "circular", "linear", "trilinear", "row", "batch", "max"],
        "p": [2, 0.5, 1],
        "ord": [2, 1],
        "normalized_shape": [(shape[-1],)],
        "num_groups": [2, WIDTH, 1],
        "num_features": [WIDTH],
        "num_channels": [WIDTH],
        "in_channels": [WIDTH],
        "out_channels": [8],
        "in_features": [WIDTH],
        "out_features": [8],
        "num_parameters": [WIDTH],
        "groups": [2, WIDTH],
        "equation": ["bc...,bc...->bc...", "bc...,bd...->bcd", "b...c,b...c->b..."],
        "spatial_scale": [1.0],
        "sampling_ratio": [2],
        "correction": [0, 1],
        "decimals": [1],
        "accumulate": [True],
        "dtype": [torch.float64],
        "threshold": [0.1],
        "value": [0.25],
        "fill_value": [0.25],
        "min": [-0.5],
        "max": [0.5],
        "min_val": [-0.5],
        "max_val": [0.5],
        "exponent": [2, 3.0],
        "weight": [*_weights(shape), 0.3],
        "bias": [Slot("vector", (WIDTH,)), Slot("vector", (8,))],
        "running_mean": [Slot("statistic", (WIDTH,))],
        "running_var": [Slot("positive", (WIDTH,))],
        "mask": [Slot("mask", shape), Slot("mask", shape[1:])],
        "condition": [Slot("mask", shape)],
        "attn_mask": [Slot("bias", (shape[-2] if len(shape) > 1 else 1,) * 2)],
        "index": [Slot("index", (3,))],
        "grid": [Slot("grid", (3, 3, 2))],
        "boxes": [Slot("boxes")],
        "rois": [Slot("boxes")],
        "a": [X],
        "b": [Y, 2.0, 2, Slot("constant", shape), (slice(None), 1), (slice(None), slice(1, 3)), (..., None), 0],
        "operands": [],
        "tensor2": [Slot("vector", shape[-1:])],
        "dropout_p": [0.0],
        "scale": [0.7],
        "size_average": [],
        "num_embeddings": [10],
        "embedding_dim": [8],
    }
    return known.get(name, [])


def _weights(shape: tuple[int, ...]) -> list[Any]:
    """Kernels for a value of this shape, and weights along an axis."""
    spatial = len(shape) - 1
    kernel = Slot("kernel", (8, WIDTH, *((2,) * spatial)))
    return [kernel, Slot("kernel", (8, shape[-1])), Slot("vector", (WIDTH,)), Slot("vector", shape[-1:])]


def values_by_type(kind: str, shape: tuple[int, ...]) -> list[Any]:
    kind = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional") else kind
    if kind == "Tensor":
        return [Y, TRANSPOSED, Slot("kernel", (shape[-1], 8)), Slot("vector", shape[-1:])]
    if kind.startswith("List[Tensor"):
        return [(X, Y), (X, Y, Slot("parameter", shape))]
    return {
        "number": [2.0, 0.5],
        "float": [0.5],
        "int": [2, 1],
        "bool": [True, False],
        "List[int]": [(2, 2), (2,), (1,)],
    }.get(kind, [])
