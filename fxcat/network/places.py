"""Whether the modules of a network are those that they were."""

from __future__ import annotations

from torch import nn

from fxcat.errors import InputError
from fxcat.network.module_state import shapes_of


class Places:
    """The children of all modules of a network."""

    def __init__(self, network: nn.Module) -> None:
        self._found = [(m._modules, name, child) for m in network.modules() for name, child in m._modules.items()]

    @property
    def have_changed(self) -> bool:
        """Whether a module was replaced.

        Raises `InputError` where it was by one with other parameters than it has, or taken away."""
        if all(home.get(name) is module for home, name, module in self._found):
            return False
        for home, name, module in self._found:
            new = home.get(name)
            if new is not module and module is not None and (new is None or shapes_of(new) != shapes_of(module)):
                raise InputError(
                    f"a {type(module).__name__} was replaced after prepare() by a {type(new).__name__} of other shapes",
                    where=name,
                    remedy="replace it in the model, and call prepare() again",
                )
        return True
