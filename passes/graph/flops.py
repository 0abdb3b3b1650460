"""PyTorch's own FLOP counter, and what its older releases leave out."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


_MISSING = {} if _ON_CPU in flop_registry else {_ON_CPU: _attention_flops}
"""Formulas of shapes. Fused attention on a CPU is counted from PyTorch 2.15 on."""


class _NoModules:
    """In the place of what tells modules apart: it asks inputs for their backward functions, and fails with parameters
    among them where gradients are off."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """A counter of the whole, that prints nothing."""
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
    counter.mod_tracker = _NoModules()  # pyright: ignore[reportAttributeAccessIssue]
    return counter


FORMULAS = flop_counter().flop_registry
"""Op → FLOPs, as a function of its arguments and `out_val`."""
