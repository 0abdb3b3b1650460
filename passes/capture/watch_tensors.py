"""Watching what Python does with tensors: which it uses, which of their sizes it reads, and the MACs that it takes."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fxcat.passes.graph.flops import FORMULAS
from fxcat.passes.graph.nested import leaves


class Watched(Protocol):
    """Who knows the tensors that are watched."""

    paused: bool
    macs: int

    @property
    def place(self) -> str:
        """Where the code is that runs now."""
        ...

    def is_known(self, tensor: Any) -> bool: ...

    def decides(self) -> None:
        """Python takes numbers, or a yes or no, from the values of tensors."""
        ...

    def pin(self, tensor: torch.Tensor, axis: int | None, reason: str) -> None:
        """Python needs a tensor, or the size of one of its axes."""
        ...


class _Shape(tuple[int, ...]):
    """The shape of a region's result: notes which sizes are read."""

    read: Callable[[int], None] = staticmethod(lambda axis: None)
    """A copy, made from what was read, has no more to note."""

    @classmethod
    def of(cls, shape: torch.Size, read: Callable[[int], None]) -> _Shape:
        result = cls(shape)
        result.read = read
        return result

    def __getitem__(self, index: Any) -> Any:
        for axis in range(len(self))[index] if isinstance(index, slice) else [range(len(self))[index]]:
            self.read(axis)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        self.read_all()
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        self.read_all()
        return tuple.__eq__(self, other)

    def __hash__(self) -> int:
        return tuple.__hash__(self)

    def __add__(self, other: Any) -> Any:
        self.read_all()
        return super().__add__(other)

    def numel(self) -> int:
        self.read_all()
        return torch.Size(tuple.__iter__(self)).numel()

    def read_all(self) -> None:
        for axis in range(len(self)):
            self.read(axis)


_HARMLESS = frozenset(
    (
        *("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "is_meta", "is_sparse"),
        *("is_quantized", "is_nested", "grad_fn", "itemsize", "_version", "dim", "ndimension", "size", "numel"),
        *("__len__", "__hash__", "is_floating_point", "is_complex", "is_contiguous", "get_device"),
    )
)
"""What may be asked of a region's result: sizes are noted apart."""


class _Macs(TorchDispatchMode):
    """Counts multiply-adds, as `torch.utils.flop_counter.FlopCounterMode`, which takes milliseconds to enter."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result) // 2
        return result


@cache
def never_counts(function: Any) -> bool:
    """Whether a function takes no multiply-adds that are counted, whatever it is given: it asks for an attribute or an
    element, or is bound to one op, which has a kernel of its own and no formula."""
    if isinstance(function, torch._ops.OpOverloadPacket):
        packet = function
    elif isinstance(function, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
        name = function.__name__
        if name in ("__getitem__", "__setitem__", "__len__", "size", "numel", "dim"):
            return True
        if name.startswith("__"):
            name = name[2:-2]  # an operator
        packet = getattr(torch.ops.aten, name, None)
    else:  # Python, or what PyTorch looks up under the name of an attribute
        return getattr(function, "__name__", "") == "__get__"
    if not isinstance(packet, torch._ops.OpOverloadPacket) or packet in FORMULAS:
        return False
    return not any(_is_composite(getattr(packet, name)) for name in packet.overloads())


def _is_composite(op: torch._ops.OpOverload[..., Any]) -> bool:
    """Whether an op is made of others."""
    try:
        return op.has_kernel_for_dispatch_key(_COMPOSITE)
    except RuntimeError:  # one of TorchScript alone, of numbers or lists
        return False


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore[reportPrivateUsage]


def is_wrapped(value: Any) -> bool:
    """Whether a tensor is what a transform of torch.func (`vmap`, `grad`, `jvp`) makes of another."""
    return isinstance(value, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(value)


def unwrapped(value: Any) -> Any:
    """The tensor that transforms were given."""
    while is_wrapped(value):
        value = _functorch.get_unwrapped(value)
    return value


_functorch: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


class Watch(TorchFunctionMode):
    """Notes what Python does with regions' results."""

    def __init__(self, run: Watched) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        run = self._run
        if run.paused:
            return func(*args, **kwargs)
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
        given = list(leaves((args, kwargs)))
        used = [t for t in map(unwrapped, given) if run.is_known(t)]
        args, kwargs = tuple(map(_plain, args)), {k: _plain(v) for k, v in kwargs.items()}
        if never_counts(func) and not any(map(is_wrapped, given)):  # of many vectors, `dot` is a product of matrices
            result = func(*args, **kwargs)
        else:
            with _Macs() as macs:
                result = func(*args, **kwargs)
            run.macs += macs.total
        if type(result) in (bool, int, float, list) and name not in _HARMLESS:
            run.decides()
        if used and name == "shape":
            return _Shape.of(result, lambda axis: self._read(used[0], axis))
        if used and name in ("size", "numel", "__len__"):
            asked = [0] if name == "__len__" else [*args[1:2], *kwargs.values()]
            for axis in [a for a in asked if a is not None] or range(used[0].dim()):
                self._read(used[0], axis)
        elif name not in _HARMLESS and not any(result is t for t in used):
            for tensor in used:
                run.pin(tensor, None, f"used by code that cannot be captured: {name} in {run.place}")
        return result

    def _read(self, tensor: torch.Tensor, axis: int) -> None:
        reason = f"its size is read by code that cannot be captured, in {self._run.place}"
        self._run.pin(tensor, axis % tensor.dim(), reason)


def _plain(value: Any) -> Any:
    """An argument without watched shapes, which not all of PyTorch takes for tuples."""
    if isinstance(value, _Shape):
        return torch.Size(value)
    if isinstance(value, tuple | list) and any(isinstance(v, _Shape) for v in value):
        return type(value)(_plain(v) for v in value)
    return value
