"""Modules that generated code does not call: it runs what is in them. A hook on one of them would never be called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxcat.passes.regions import Region

_METHODS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


class Telling:
    """In the place of a module's method that registers a hook: registers it, and warns that nothing will call it."""

    def __init__(self, module: nn.Module, path: str, method: str) -> None:
        self._module, self._path, self._method = module, path, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"a hook on {self._path!r} will not be called: the network runs the layers in it one by one; register it "
            "on one of these (the last one gives the result)",
            stacklevel=2,
        )
        return getattr(type(self._module), self._method)(self._module, *args, **kwargs)


def tell_of_hooks(root: nn.Module, graph: fx.Graph, regions: Sequence[Region]) -> None:
    """Make the modules of a network that its graph runs, and does not call, tell of hooks that come later."""
    called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    own = {r.path for r in regions} or {""}
    for path, module in root.named_modules():
        state = vars(module)
        for method in _METHODS:
            state.pop(method, None)
        inside = any(path.startswith(f"{p}.") if p else path for p in own)
        written = type(module).forward is not nn.Module.forward
        if inside and written and module._modules and path not in called | own:
            state |= {method: Telling(module, path, method) for method in _METHODS}
