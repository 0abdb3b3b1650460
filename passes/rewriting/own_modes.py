"""Classes that have a say in the modes of their modules (`train` with some norms kept in `eval`), where modules go.

A `train` that names a module which is gone fails. Then what it did to those that are left is done instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import nn

from fxcat.passes.capture.mode_watch import sets_mode
from fxcat.passes.codegen.install import original_class
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.utils.made_classes import make_class

_Modes: TypeAlias = Mapping[bool, Mapping[str, bool]]
"""For `train()` and for `eval()` the mode of every module by its path."""


def modes_set_by(root: nn.Module) -> dict[str, _Modes]:
    """For every module with a `train` of its own what that does to the modules below it."""
    own = [path for path, module in root.named_modules() if sets_mode(original_class(module))]
    found = {path: _tried(root.get_submodule(path)) for path in own}
    return {path: modes for path, modes in found.items() if modes is not None}


def keep_modes(root: nn.Module, before: Mapping[str, _Modes]) -> None:
    """Let every `train` that was tried before modules went do the same as then, if by itself it does not run."""
    left = dict(root.named_modules())
    for path, modes in list(before.items())[::-1]:  # inner ones first
        if path in left and _tried(left[path]) is None:
            left[path].__class__ = _class_with(original_class(left[path]), modes)


def _class_with(base: type[nn.Module], modes: _Modes) -> type[nn.Module]:
    members = {"train": _train_as(modes), "__module__": base.__module__}
    return make_class(base.__name__, base, members, (_class_with, (base, modes)))


def _tried(module: nn.Module) -> _Modes | None:
    """The modes that a module's `train` leads to, tried on a copy; None if it fails."""
    twin = meta_twin(module)
    modes: dict[bool, dict[str, bool]] = {}
    try:
        for mode in (True, False):
            twin.train(mode)
            modes[mode] = {path: m.training for path, m in twin.named_modules()}
    except Exception:  # what the user's code does
        return None
    return modes


def _train_as(modes: _Modes) -> Callable[..., nn.Module]:
    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        known = modes[bool(mode)]
        for path, module in self.named_modules():
            module.training = known.get(path, mode)
        return self

    return train
