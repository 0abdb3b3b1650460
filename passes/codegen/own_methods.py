"""Methods of modules that take apart what these hold (`reparameterize`, `fuse`), after a removal.

A generated `forward` calls what its module held when it was made. Where a removal changed nothing but widths, the code
of the module's class does the same: it takes over when a method takes something away. Elsewhere such a method does not
know what is missing, and refuses.
"""

from __future__ import annotations

import dis
import inspect
import types
from typing import Any, NoReturn

from torch import nn

from fxcat.errors import InputError
from fxcat.utils.made_classes import make_class


def takes_apart(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the methods of a class that delete attributes, as they were written: decorators may tidy up."""
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    methods = [v for c in own for v in vars(c).values() if isinstance(v, types.FunctionType)]
    written = [(m.__name__, inspect.unwrap(m)) for m in methods if not m.__name__.startswith("__")]
    return tuple(
        dict.fromkeys(name for name, m in written if isinstance(m, types.FunctionType) and _deletes(m.__code__))
    )


def _deletes(code: types.CodeType) -> bool:
    named = not {"__delattr__", "delattr"}.isdisjoint(code.co_names)
    return named or any(step.opname == "DELETE_ATTR" for step in dis.get_instructions(code))


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
