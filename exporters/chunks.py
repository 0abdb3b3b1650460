"""`torch.chunk` along a dynamic batch, as in `torch.cat([a, b]).chunk(2)`: RAFT pairs its images so.

How many pieces a chunk gives depends on the size: `torch.export` guards a formula whose answer is the same for every
batch, but that it cannot prove (torch 2.15). Pieces of equal size need no such guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CHUNK = (torch.chunk, torch.Tensor.chunk)


class EqualChunks(TorchFunctionMode):
    """While active, chunks of a dynamic size that divides are splits into equal pieces."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = _chunk if func in _CHUNK else func
        return function(*args, **(kwargs or {}))


def _chunk(input: torch.Tensor, chunks: int, dim: int = 0) -> Sequence[torch.Tensor]:
    size: Any = input.shape[dim]
    if isinstance(size, torch.SymInt) and size % chunks == 0:
        return torch.split(input, [size // chunks] * chunks, dim)  # pyright: ignore[reportArgumentType]
    return torch.chunk(input, chunks, dim)
