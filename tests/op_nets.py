"""Networks of an op: every way to call it becomes a branch between two layers (`Branch`), all of them one network
(`Branches`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from op_calls import apply, constant, fill, results
from op_values import MODE, TRANSPOSED, WIDTH, WITH_UNITS, Call, Slot, X
from torch import nn


class Branch(nn.Module):
    """A layer, an op on its result, and a layer on what that gives."""

    def __init__(self, kind: str, key: Any, call: Call) -> None:
        super().__init__()
        self.kind, self.key, self.call = kind, key, call
        self.before, self.beside = self._layer(), self._layer()
        self.op = key(*call.args, **call.kwargs) if kind == "module" else None
        self.constants = nn.ParameterDict()
        self.slots: dict[Slot, str] = {}
        for slot in self._slots((*call.args, *call.kwargs.values())):
            self.slots[slot] = name = f"{slot.kind}_{len(self.slots)}"
            value = constant(slot)
            if value.is_floating_point() and slot.kind not in ("boxes", "grid", "constant", "positive", "statistic"):
                self.constants[name] = nn.Parameter(value)
            else:
                self.register_buffer(name, value)
        with torch.no_grad():
            results = self.double()._results(torch.randn(2, 3, 4, 4, dtype=torch.float64))
            more = self._results(torch.randn(3, 3, 4, 4, dtype=torch.float64))
        self.whole = [r.dim() > 1 and r.shape != m.shape for r, m in zip(results, more, strict=True)]
        self.after = nn.ModuleList(
            nn.Linear(r[0].numel(), 3) if whole else nn.Identity() for r, whole in zip(results, self.whole, strict=True)
        )

    @staticmethod
    def _slots(values: Iterable[Any]) -> Iterator[Slot]:
        for value in values:
            for slot in value if isinstance(value, list | tuple) else [value]:
                if isinstance(slot, Slot) and slot not in (*WITH_UNITS, MODE):
                    yield slot

    def _layer(self) -> nn.Module:
        layout = self.call.layout
        if layout in ("NC", "NLC"):
            return nn.Linear(3, WIDTH)
        return {"NCL": nn.Conv1d, "NCHW": nn.Conv2d, "NCDHW": nn.Conv3d}[layout](3, WIDTH, 1)

    def _entering(self, image: torch.Tensor) -> torch.Tensor:
        if self.call.layout == "NC":
            return image.mean((2, 3))
        if self.call.layout == "NCL":
            return image.mean(3)
        if self.call.layout == "NLC":
            return image.mean(3).transpose(1, 2)
        return torch.stack([image, -image], 2) if self.call.layout == "NCDHW" else image

    def _value(self, layer: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return self.call.within(layer(self._entering(image)))

    def _tensor(self, slot: Slot, image: torch.Tensor) -> torch.Tensor:
        if slot in WITH_UNITS:
            value = self._value(self.before if slot == X else self.beside, image)
            return value.transpose(-1, -2) if slot == TRANSPOSED else value
        if slot == MODE:
            return self.training  # pyright: ignore[reportReturnType]
        name = self.slots[slot]
        value = self.constants[name] if name in self.constants else getattr(self, name)
        return value.expand(image.shape[0], -1, -1, -1) if slot.kind == "grid" else value

    def _results(self, image: torch.Tensor) -> list[torch.Tensor]:
        if self.op is not None:
            return list(results(self.op(self._tensor(X, image))))
        args = [fill(a, lambda slot: self._tensor(slot, image)) for a in self.call.args]
        kwargs = {k: fill(v, lambda slot: self._tensor(slot, image)) for k, v in self.call.kwargs.items()}
        return list(results(apply(self.kind, self.key, args, kwargs)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        total = 0
        for result, after, whole in zip(self._results(image), self.after, self.whole, strict=True):
            result = result if result.is_floating_point() else result.to(image.dtype)
            result = result.to(image.dtype) if result.dtype != image.dtype else result
            total = total + (after(result.flatten(1)) if whole else result.mean())
        return total  # pyright: ignore[reportReturnType]


class Branches(nn.Module):
    """All ways to call some ops beside each other, and one without them."""

    def __init__(self, ops: Sequence[tuple[str, Any, Sequence[Call]]]) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(5, 3)
        self.branches = nn.ModuleList(Branch(kind, key, way) for kind, key, ways in ops for way in ways)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result = self.head(self.plain(image))
        for branch in self.branches:
            result = result + branch(image)
        return result
