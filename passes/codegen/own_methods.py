"""Methods of the model's modules beside `forward`, after a removal.

Where a removal changed nothing but widths, they do what they did. That some take apart what a module holds
(`reparameterize`, `fuse`) its generated `forward` does not know: the code of the module's class takes over then.

Elsewhere a method does not know what is missing. One that takes things apart refuses; another one may run, if it
computes nothing with what the module holds but by calling `forward`.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.network.apart import call_whole
from fxcat.utils.made_classes import make_class


def takes_apart(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the methods of a class that delete attributes which they do not set, as they were written: decorators
    may tidy up. One that does both keeps something there for a while: LeViT's biases, from `eval()` to `train()`."""
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    methods = [v for c in own for v in vars(c).values() if isinstance(v, types.FunctionType)]
    written = [(m.__name__, inspect.unwrap(m)) for m in methods if not m.__name__.startswith("__")]
    return tuple(
        dict.fromkeys(name for name, m in written if isinstance(m, types.FunctionType) and _deletes(m.__code__))
    )


def _deletes(code: types.CodeType) -> bool:
    if not {"__delattr__", "delattr"}.isdisjoint(code.co_names):
        return True
    if dis.opmap["DELETE_ATTR"] not in code.co_code[::2]:  # the instructions; their arguments lie between them
        return False
    steps = list(dis.get_instructions(code))
    made = {s.argval for s in steps if s.opname in ("STORE_ATTR", "LOAD_CONST")}  # register_buffer("biases", …)
    return any(s.opname == "DELETE_ATTR" and s.argval not in made for s in steps)


def own_again(base: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """A subclass for a module whose own code does what the generated one does: that of its class, `original`, from when
    one of the modules in it is taken away."""

    def take_away(self: nn.Module, name: str) -> None:
        if name not in self._modules:
            base.__delattr__(self, name)
            return
        self.__class__ = original
        delattr(self, name)

    members = {"__module__": base.__module__, "__doc__": base.__doc__, "__delattr__": take_away}
    return make_class(base.__name__, base, members, (own_again, (base, original)))


def refusing(base: type[nn.Module], methods: tuple[str, ...]) -> type[nn.Module]:
    """A subclass for a module of which something has gone: these methods say that they cannot know that."""

    def method(name: str) -> Any:
        def refuse(self: nn.Module, *args: Any, **kwargs: Any) -> NoReturn:
            raise InputError(
                f"{name}() of this {base.__name__} takes its modules apart, and some of what it knows has been removed",
                remedy="call it before prepare(), or keep what is in the module: limits={pattern: Limits(keep=True)}",
            )

        return refuse

    members = {"__module__": base.__module__, "__doc__": base.__doc__, **{name: method(name) for name in methods}}
    return make_class(base.__name__, base, members, (refusing, (base, methods)))


_REMEDY = (
    "call forward, and take what it computes on the way with forward hooks; or keep what is in this module: "
    "prepare(limits={pattern: Limits(keep=True)})"
)


def computing(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the methods of a class that its authors wrote, and that torch.nn knows nothing of."""
    own = [c for c in cls.__mro__[: cls.__mro__.index(nn.Module)] if not c.__module__.startswith("torch.")]
    written = {n: v for c in reversed(own) for n, v in vars(c).items() if isinstance(v, types.FunctionType)}
    return tuple(n for n in written if n != "forward" and not n.startswith("__") and not hasattr(nn.Module, n))


def watched(base: type[nn.Module], methods: tuple[str, ...]) -> type[nn.Module]:
    """A subclass for a module of which more than widths has changed: these methods refuse to compute something else
    than they did, without a word."""
    members = {"__module__": base.__module__, "__doc__": base.__doc__}
    members |= {name: _watched(getattr(base, name)) for name in methods}
    return make_class(base.__name__, base, members, (watched, (base, methods)))


def _watched(method: Callable[..., Any]) -> Any:
    written = inspect.unwrap(method)
    names = frozenset(written.__code__.co_names) if isinstance(written, types.FunctionType) else frozenset[str]()

    @wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        said = f"{method.__name__}() is the model's own code, and more than widths has changed in what it is about"
        called: list[bool] = []
        # the module's own hooks tell whether it was called as a whole
        handle = nn.Module.register_forward_pre_hook(self, lambda *_: called.append(True))
        try:
            result = call_whole(
                method, (self, *args), kwargs, of=self, layers=lambda: _inside(self), said=said, remedy=_REMEDY
            )
        finally:
            handle.remove()
        if not called and _is_computed(self, names, result):
            raise InputError(
                f"{said}: it computes with {', '.join(sorted(_read(self, names)))}",
                where=type(self).__name__,
                remedy=_REMEDY,
            )
        return result

    return call


def _inside(module: nn.Module) -> tuple[str, ...]:
    return tuple(path for path, _ in module.named_modules() if path)


def _read(module: nn.Module, names: frozenset[str]) -> set[str]:
    """Which of its modules, tensors and numbers that may be sizes a method asks for."""
    numbers = {name for name, value in vars(module).items() if type(value) is int and value > 0}
    return {*module._modules, *module._parameters, *module._buffers, *numbers} & names


def _is_computed(module: nn.Module, names: frozenset[str], result: Any) -> bool:
    """Whether a result was made of what the module holds, and is not one of the things that it holds."""
    held = {id(x) for m in module.modules() for x in (m, *m._parameters.values(), *m._buffers.values())}
    parts = result if isinstance(result, tuple | list) else [result]
    made = any(isinstance(r, torch.Tensor | nn.Module) and id(r) not in held for r in parts)
    return made and bool(_read(module, names))
