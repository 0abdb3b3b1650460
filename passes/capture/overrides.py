"""Functions by which a model asks whether tensors change what functions do with them, while it is traced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def _asking(function: Callable[..., bool], several: bool) -> Callable[..., bool]:
    """One of the functions that ask for tensors of kinds that change what functions do: for models, proxies are none.
    PyTorch itself asks whether it has to hand a call on to them."""

    def call(*values: Any) -> bool:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "torch":
            return function(*values)
        given = values[0] if several else values
        return any(hasattr(v, "__torch_function__") and not isinstance(v, _OF_TORCH) for v in given)

    return call


_OF_TORCH = (torch.Tensor, fx.Proxy)
ASKING_FOR_OVERRIDES = {
    name: _asking(getattr(torch.overrides, name), several=name == "has_torch_function")
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
}
"""What stands in the place of these functions of `torch.overrides`."""

NOT_OVERRIDDEN = [(getattr(torch.overrides, name), new) for name, new in ASKING_FOR_OVERRIDES.items()]
"""What models may have imported, and what stands in its place."""
