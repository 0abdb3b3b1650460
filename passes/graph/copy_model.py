"""Copies of models: with weights, or as a meta twin without data.

`copy.deepcopy` visits every dict, string and flag of every submodule; here only what can change is copied, and the
rest is shared. Attributes that are not plain values still go through `copy.deepcopy`.
"""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxcat.errors import InputError

_SHARED = (int, float, complex, str, bytes, bool, type(None), type, types.FunctionType, types.BuiltinFunctionType)
_SHARED_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)

_ATOMS = frozenset((int, float, str, bool, tuple, type(None)))
_HOOKS = frozenset(k for k, v in nn.Module().__dict__.items() if isinstance(v, OrderedDict))
_OF_THE_ORIGINAL = ("forward", "_compiled_call_impl")
"""Attributes that would call the module they were copied from: a method that was assigned, what `compile()` made."""

Copied: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""A tensor and its copy."""


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device: no data is copied.

    Other tensors that a module holds have data, with which its Python may compute.
    """

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device="meta", requires_grad=False)

    return _Copier(empty, private=True).module(model)


def copy_model(model: nn.Module) -> tuple[nn.Module, list[Copied]]:
    """A copy with tensors of its own, still empty, and what to copy (see `copy_data`)."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, requires_grad=False)

    copier = _Copier(empty)
    try:
        return copier.module(model), copier.copied
    except Exception as error:  # what people's objects raise when they are copied
        raise InputError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            where=type(model).__name__,
            remedy="copy.deepcopy(model) must work: prepare the model before it is wrapped, and without what cannot be "
            "copied (open files, modules as attributes, tensors with a history)",
        ) from error


def share(model: nn.Module) -> nn.Module:
    """A copy whose tensors have the data of the model's."""
    return _Copier(torch.Tensor.detach).module(model)


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that can be run without a trace: it shares the parameters only."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()

    return _Copier(own).module(model)


def copy_data(copied: list[Copied]) -> None:
    """Copy all at once: one call that does not hold Python's lock, so that it can run beside other work."""
    if copied:
        with torch.no_grad():
            torch._foreach_copy_([new for _, new in copied], [old for old, _ in copied])  # pyright: ignore[reportPrivateImportUsage]


def _without_graph(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of a module that was made from a graph, as one that only has the code: its copies get another graph."""
    return type(cls.__name__, (nn.Module,), {"forward": cls.forward, "__module__": cls.__module__})


class _Copier:
    """`private`: a copy to be traced, whose constants are its own."""

    def __init__(self, new_tensor: Callable[[torch.Tensor], torch.Tensor], *, private: bool = False) -> None:
        self._new_tensor = new_tensor
        self._private = private
        self._root: nn.Module | None = None
        # id → copy, as copy.deepcopy keeps it; originals outlive the copier
        self._memo: dict[int, Any] = {}
        self.copied: list[Copied] = []

    def module(self, module: nn.Module) -> nn.Module:
        found = self._memo.get(id(module))
        if found is not None:
            return found
        self._root = self._root or module
        cls = type(module)
        own = module.__dict__.get("forward")
        if isinstance(module, fx.GraphModule) and not self._private:
            cls = _without_graph(cls)
        elif isinstance(own, types.MethodType):
            cls = type(cls.__name__, (cls,), {"forward": own.__func__, "__module__": own.__func__.__module__})
        elif getattr(cls, "__deepcopy__", None) is not None:
            self._note_tensors(module)
            return copy.deepcopy(module, self._memo)
        new = cls.__new__(cls)
        self._memo[id(module)] = new
        state = new.__dict__
        # torch.nn's own layers hold numbers, strings and tuples; a user's module may hold anything
        plain = cls.__module__.startswith("torch.nn.")
        # one by one: a dict that is updated as a whole does not share its keys with those of other instances
        for key, value in module.__dict__.items():
            kind = type(value)
            if kind in _ATOMS and (plain or kind is not tuple):
                state[key] = value
            elif kind is fx.Graph or key in _OF_THE_ORIGINAL:
                continue
            elif key in _HOOKS and not value:
                state[key] = OrderedDict()
            elif key in ("_parameters", "_buffers"):
                state[key] = {k: None if t is None else self._tensor(t) for k, t in value.items()} if value else {}
            elif key == "_modules":
                state[key] = {k: None if c is None else self.module(c) for k, c in value.items()} if value else {}
            else:
                state[key] = self._value(value)
        return new

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SHARED or kind in _SHARED_TORCH:
            return value
        if isinstance(value, torch.Tensor):
            constant = self._private and id(value) not in self._registered
            return self._memo.setdefault(id(value), value.detach().clone()) if constant else self._tensor(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if kind in (dict, list, set) and not value:
            return kind()
        if kind is dict:
            return {k: self._value(v) for k, v in value.items()}
        if kind is list:
            return [self._value(v) for v in value]
        if kind is tuple:
            return tuple(self._value(v) for v in value)
        return copy.deepcopy(value, self._memo)

    @cached_property
    def _registered(self) -> set[int]:
        """The ids of parameters and buffers."""
        assert self._root is not None
        return {id(t) for t in (*self._root.parameters(), *self._root.buffers())}

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        found = self._memo.get(id(tensor))
        if found is None:
            found = self._new_tensor(tensor)
            if isinstance(tensor, nn.Parameter):
                found = nn.Parameter(found, tensor.requires_grad)
            self._memo[id(tensor)] = found
            self.copied.append((tensor, found))
        return found

    def _note_tensors(self, module: nn.Module) -> None:
        for part in module.modules():
            for tensor in [*part._parameters.values(), *part._buffers.values()]:
                if tensor is not None:
                    self._tensor(tensor)


def make_what_is_read(twin: nn.Module, graph: fx.Graph) -> None:
    """Let modules make what a graph reads of them and they have in `eval()` only, such as biases that their `train`
    looks up and takes away. Modes stay as they are."""
    for target in {str(n.target) for n in graph.nodes if n.op == "get_attr"}:
        path, _, leaf = target.rpartition(".")
        module = twin.get_submodule(path)
        if hasattr(module, leaf):
            continue
        modes = [(m, m.training) for m in module.modules()]
        module.eval()
        for each, mode in modes:
            each.training = mode
