"""The model's own Python beside what was captured of it: it may call that as a whole, but none of its layers apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, NoReturn, TypeVar

from torch import fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fxcat.errors import InputError
from fxcat.network.module_state import module_at

R = TypeVar("R")

Layers = Callable[[], Collection[str]]
"""Gives the paths of modules, once they are needed."""

GENERATED = "<fxcat graph"
"""Begins the file names of generated code."""


_AS_CAPTURED = "call prepare() with an example of the arguments that forward shall take, and forward with these"


def call_whole(
    function: Callable[..., R],
    args: Any,
    kwargs: Any,
    *,
    of: nn.Module,
    layers: Layers,
    said: str,
    remedy: str = _AS_CAPTURED,
) -> R:
    """Call a function of the model's own; refuse calls of the modules `layers` from anywhere but generated code.

    They were captured: they may have left the network, or have gates that only generated code applies, so called one by
    one they would compute something else without a word. `said`: what the caller did, for the error, an `InputError`.
    """
    here, thread = inspect.currentframe(), get_ident()
    names: dict[int, str] = {}

    def check(module: nn.Module, _: Any) -> None:
        if get_ident() != thread:
            return
        if not names:
            names.update({id(m): path for path in layers() if path and (m := module_at(of, path)) is not None})
        if id(module) not in names:
            return
        frame = inspect.currentframe()
        while frame is not None and frame is not here:
            if frame.f_code.co_filename.startswith(GENERATED):
                return
            frame = frame.f_back
        refuse(f"calls {names[id(module)]!r} by itself")

    def refuse(what: str) -> NoReturn:
        raise InputError(
            f"{said}: that {what}, and only forward as a whole was captured", where=type(of).__name__, remedy=remedy
        )

    handle = register_module_forward_pre_hook(check)
    try:
        return function(*args, **kwargs)
    except AttributeError as error:
        if not isinstance(error.obj, nn.Module) or error.obj not in of.modules():
            raise
        refuse(f"reads {error.name!r}, which may have left the network")
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class AsWritten:
    """A `forward` for arguments of another kind than those that were captured: the model's own, as long as that calls
    `forward` itself with such as were (a loss of a batch) and no layer apart.

    `part`: path of the part of the model that it is of. If that has weights itself, they would be used without gates:
    that is refused.
    """

    forward: Callable[..., Any]
    layers: Layers
    captured: str
    part: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # the layers themselves: what gives them knows a whole graph
        return AsWritten, (self.forward, partial(frozenset[str], self.layers()), self.captured, self.part)

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        said = f"forward was captured with {self.captured}, and is called in another way"
        if any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            raise InputError(
                f"{said}, by a tracer",
                where=type(module).__name__,
                remedy="trace it with concrete_args, which say what is left out: {'labels': None}",
            )
        if self.part and "" in self.layers():
            raise InputError(
                f"{said}: it would use its weights without gates",
                where=self.part,
                remedy="call prepare() with an example for which it is called so, or name it in python=[…]",
            )
        return call_whole(self.forward, (module, *args), kwargs, of=module, layers=self.layers, said=said)


@dataclass(frozen=True, slots=True)
class Refusing:
    """In the place of `AsWritten` for a module inside: what its parts are now is known to its generated code alone."""

    captured: str

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            f"forward was captured with {self.captured}, and is called in another way",
            where=type(module).__name__,
            remedy="call it with arguments of the same kinds, flags and numbers as the model does; in the example of "
            "prepare() they can be others",
        )
