"""Which entries of the start network a small network's parameters and buffers are, and how they are put back there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcat.checks import check_instance
from fxcat.errors import InputError
from fxcat.network.gates import SAMPLES
from fxcat.network.module_state import Shapes, full_name
from fxcat.utils.tensor_slicing import Keep, select

MADE = "fxcat made it, or its values are positions that are counted anew: it is no part of the start network's tensor"


@dataclass(frozen=True, slots=True)
class StartTensor:
    """A parameter or buffer of the start network; `first`: the first of its names, `stored`: whether `state_dict` has
    it."""

    first: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: bool


class KeptIndices(Mapping[str, tuple[torch.Tensor, ...]]):
    """For every parameter and buffer of a small network, by name (tied ones by each of theirs), the indices of the
    start network's tensor that it consists of: one int64 tensor per axis, in the order in which they come.

    `start_shapes`: the shapes of the start network's tensors, also of those that have gone. `not_sliced`: what is in
    the small network and is no part of a tensor of the start network, with the reason.
    """

    def __init__(
        self,
        indices: Mapping[str, tuple[torch.Tensor, ...]],
        start: Mapping[str, StartTensor],
        not_sliced: Mapping[str, str],
    ) -> None:
        self._indices, self._start, self.not_sliced = indices, start, not_sliced

    @property
    def start_shapes(self) -> Shapes:
        """Shapes in the start network, by name."""
        return {name: tensor.shape for name, tensor in self._start.items()}

    def __getitem__(self, name: str) -> tuple[torch.Tensor, ...]:
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of tensors of the start network's shapes, by name, the parts that the small network has.

        Raises `InputError` for other shapes; names that the small network has not are left out.
        """
        _check_state(state, self.start_shapes, "start")
        return {name: select(state[name].detach(), dict(enumerate(self[name]))) for name in self if name in state}

    def put_back(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of the small network, by name, in the start network's shapes, with zeros where something has gone.

        `state`: such as `small.state_dict()`. The result has what the start network's `state_dict` has; without what
        is `not_sliced`, which has no values there. Raises `InputError` for tensors of other shapes.
        """
        _check_state(state, {name: tuple(map(len, axes)) for name, axes in self.items()}, "small")
        result: dict[str, torch.Tensor] = {}
        for name, start in self._start.items():
            if name in self.not_sliced or not (start.stored or name in state):
                continue
            value = state.get(name)
            if value is None:
                result[name] = torch.zeros(start.shape, dtype=start.dtype)
            elif name in self:
                result[name] = _spread(value.detach(), self[name], start.shape)
        return result

    def then(self, later: KeptIndices) -> KeptIndices:
        """After what made the small network smaller still; `later`: counted in this one's.

        Raises `InputError` for anything but `KeptIndices` of what this one left."""
        check_instance(later, KeptIndices, "later")
        not_sliced = {name: self.not_sliced.get(name, MADE) for name in later if name not in self}
        both = {
            name: tuple(first[second] for first, second in zip(self[name], axes, strict=True))
            for name, axes in later.items()
            if name in self
        }
        return KeptIndices(both, self._start, {**not_sliced, **later.not_sliced})


@dataclass(frozen=True, slots=True)
class Left:
    """What a rewrite leaves. `shapes`: of all parameters and buffers, by every name; `keep`: surviving indices by the
    first one; `made`: names of what is no slice."""

    shapes: Shapes
    keep: Keep
    made: frozenset[str]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a network consisted of at the start, and the indices that are left of it, shrink after shrink."""

    start: Mapping[str, StartTensor]
    kept: Keep

    @classmethod
    def of(cls, network: nn.Module, own: Shapes) -> Origin:
        """Of a whole network; `own`: of the model it was made from, which has no tensors of the compiler's."""
        first: dict[int, str] = {}
        found: dict[str, StartTensor] = {}
        for name, tensor, stored in named_tensors(network):
            known = first.setdefault(id(tensor), name)
            if known in own:
                found[name] = StartTensor(known, tuple(tensor.shape), tensor.dtype, stored)
        return cls(found, {})

    def after(self, keep: Keep) -> Origin:
        """When no more than this is left of it."""
        kept = {name: dict(axes) for name, axes in self.kept.items()}
        for name, axes in keep.items():
            if name not in self.start:
                continue
            own = kept.setdefault(self.start[name].first, {})
            for axis, index in axes.items():
                own[axis] = own[axis][index] if axis in own else index
        return replace(self, kept=kept)

    def indices(self, left: Left) -> KeptIndices:
        """Of what a last rewrite leaves."""
        kept, found, others = self.after(left.keep).kept, dict[str, tuple[torch.Tensor, ...]](), dict[str, str]()
        for name, shape in left.shapes.items():
            start = self.start.get(name)
            if start is None or name in left.made:
                others[name] = MADE
                continue
            axes = kept.get(start.first, {})
            index = tuple(axes[a] if a in axes else torch.arange(n) for a, n in enumerate(start.shape))
            if tuple(map(len, index)) == tuple(shape):
                found[name] = index
            else:
                others[name] = f"its shape is {list(shape)}: it is computed, and no slice of the start network's"
        return KeptIndices(found, self.start, others)

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self


def named_tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """All parameters, then all buffers, under each of their names, and whether `state_dict` has them; gates are not
    among them."""
    modules = [(p, m) for p, m in network.named_modules(remove_duplicate=False) if p != SAMPLES]
    for path, module in modules:
        yield from ((full_name(path, n), t, True) for n, t in module._parameters.items() if t is not None)
    for path, module in modules:
        for name, tensor in module._buffers.items():
            if tensor is not None:
                yield full_name(path, name), tensor, name not in module._non_persistent_buffers_set


def _spread(value: torch.Tensor, indices: tuple[torch.Tensor, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros of a shape with a value at the indices of its axes."""
    if not indices:
        return value.clone()
    result = torch.zeros(shape, dtype=value.dtype, device=value.device)
    result[torch.meshgrid(*(index.to(value.device) for index in indices), indexing="ij")] = value
    return result


def _check_state(state: Mapping[str, torch.Tensor], shapes: Shapes, which: str) -> None:
    check_instance(state, Mapping, "state", remedy=f"give tensors by name, such as the {which} network's state_dict()")
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != tuple(shape):
            raise InputError(
                f"{name} has shape {list(state[name].shape)}, not {list(shape)} as in the {which} network",
                remedy=f"give the tensors of the {which} network",
            )
