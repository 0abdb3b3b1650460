"""The modes of modules while a model is traced: whether its Python asks for them, and which it sets itself; and what
else it sets of them.

A layer whose mode `forward` sets (`self.norm.eval()`) is not called as a module, in whatever mode that is then: what it
computes in the mode that it has been given is traced.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.attributes import assign
from fxcat.passes.capture.tracing import Tracing
from fxcat.passes.rules.leaves import is_leaf


class Modes:
    """Gives every module of a twin a `training` property, which notes who reads and who writes it, and `assign` for
    attributes: in a class of its own, since a change of `nn.Module` itself costs time for each of its subclasses."""

    def __init__(self, twin: nn.Module) -> None:
        self.tracer: Tracing | None = None
        """What traces the twin now."""
        self.matter = False
        """Whether any Python read or set a mode."""
        self._modules = list(twin.modules())
        self._set: set[int] = set()
        self._used: set[int] = set()
        self._late: set[int] = set()
        self._start: list[bool] = []
        classes: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}
        for module in self._modules:
            kind = type(module), is_leaf(module)
            if kind not in classes:
                classes[kind] = self._watched(*kind)
            module.__class__ = classes[kind]

    def begin(self, training: bool) -> None:
        """Put the twin into a mode, before it is traced."""
        self.tracer = None
        if any(sets_mode(type(m)) for m in self._modules):
            self._modules[0].train(training)
        else:
            for module in self._modules:
                vars(module)["training"] = training
        self._start = [vars(m)["training"] for m in self._modules]
        self._used.clear()
        self._late.clear()

    def end(self) -> None:
        """Refuse what is one thing in the first forward pass, and another one in those that follow."""
        for module, before in zip(self._modules, self._start, strict=True):
            if id(module) in self._late and vars(module)["training"] != before:
                raise CaptureError(
                    f"a {type(module).__name__} is used in one mode, and then put into the other for the next pass",
                    where=type(self._modules[0]).__name__,
                    remedy="set modes before they are used, or outside of the forward pass",
                )

    def use(self, layer: nn.Module) -> bool:
        """Note that a layer is called. Returns whether `forward`, in some mode, sets that of the layer."""
        if id(layer) in self._set:
            return True
        self._used.add(id(layer))
        return False

    @property
    def known(self) -> int:
        """Of how many layers `forward` has been seen to set the mode."""
        return len(self._set)

    def _watched(self, cls: type[nn.Module], leaf: bool) -> type[nn.Module]:
        watching = ref(self)  # classes are garbage for long, and would keep the twin

        def read(module: nn.Module) -> bool:
            modes = watching()
            if modes is None:
                return vars(module)["training"]
            if leaf and (modes.tracer is None or modes.tracer.is_executing):
                return False  # a layer's example run must not check batch sizes or update statistics
            modes.matter = True
            modes._used.add(id(module))
            return vars(module)["training"]

        def write(module: nn.Module, value: bool) -> None:
            before = vars(module).get("training", value)  # none yet: `forward` makes it (a slice of a list of layers)
            vars(module)["training"] = value
            modes = watching()
            if modes is None or modes.tracer is None or modes.tracer.is_executing:
                return
            modes.matter = True
            if id(module) in modes._used and value != before:
                modes._late.add(id(module))
            if leaf:
                modes._set.add(id(module))

        def set_attribute(module: nn.Module, name: str, value: Any) -> None:
            modes = watching()
            if modes is None or modes.tracer is None:
                cls.__setattr__(module, name, value)
            else:
                assign(modes.tracer, cls.__setattr__, module, name, value)

        members = {
            "training": property(read, write),
            "__setattr__": set_attribute,
            "__module__": cls.__module__,
        }
        return type(cls.__name__, (cls,), members)


def sets_mode(cls: type[nn.Module]) -> bool:
    """Whether a class has a say in the modes of its modules."""
    return cls.train is not nn.Module.train
