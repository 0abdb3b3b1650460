"""Methods of tensors that are no nodes of a graph, or nodes of another kind, while a model is traced."""

from __future__ import annotations

from typing import Any

from fxcat.errors import CaptureError
from fxcat.passes.capture.numbers_of_tensors import READING, number_of, numbers_of
from fxcat.passes.capture.proxy import ExampleProxy, is_tensor

_RESHAPING = ("unsqueeze_", "squeeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
"""Methods that give a tensor another shape."""

_OF_MEMORY = ("data_ptr", "numpy", "untyped_storage", "storage")
"""Methods that give what is not in a graph."""

_FACTS = ("dim", "ndimension", "is_floating_point", "is_complex")
"""Methods that ask for what no input and no removal changes."""


def instead_of_method(name: str, args: Any, kwargs: Any) -> Any:
    """What a method gives without a node of its name; NotImplemented for most."""
    proxy = args[0] if args else None
    if not isinstance(proxy, ExampleProxy):
        return NotImplemented
    if name in _FACTS:
        return getattr(proxy.example, name)()
    if not is_tensor(proxy):
        return NotImplemented
    if name in READING:
        return (number_of if name == "item" else numbers_of)(proxy)
    if name in _OF_MEMORY:
        raise CaptureError(
            f"{name}() asks for the memory of a tensor",
            where=proxy.tracer.location(),
            remedy="compute with the tensor itself, or teach fxcat the module with a rule (fxcat.rules)",
        )
    if type(proxy) is not ExampleProxy:
        return NotImplemented
    if name == "requires_grad_":
        if args[1:] == (False,) or not kwargs.get("requires_grad", True):
            proxy.node = proxy.tracer.create_proxy("call_method", "detach", args[:1], {}).node
        return proxy
    if name in _RESHAPING:
        # the proxy stands for the same tensor in its new shape
        proxy.node = proxy.tracer.create_proxy("call_method", name.removesuffix("_"), args, kwargs).node
        return proxy
    return NotImplemented
