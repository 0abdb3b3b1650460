"""The source of a random network while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Value = tuple[str, int]
"""Name and channels of a map (N, C, …)."""

SPATIAL = {1: (6,), 2: (4, 6), 3: (2, 4, 4)}
"""Sizes of the images."""

OTHER = {1: (8,), 2: (6, 4), 3: (2, 6, 4)}
"""Sizes that a network for images of several sizes takes too."""


@dataclass
class Writer:
    """The source of a network, as far as it is written. `fixed`: it is for images of one size."""

    dims: int
    init: list[str] = field(default_factory=list[str])
    forward: list[str] = field(default_factory=list[str])
    values: list[Value] = field(default_factory=list[Value])
    classes: dict[str, None] = field(default_factory=dict[str, None])
    count: int = 0
    fixed: bool = False

    def layer(self, text: str) -> str:
        """A module or parameter; its name."""
        self.count += 1
        name = f"self.l{self.count}"
        self.init.append(f"{name} = {text}")
        return name

    def buffer(self, text: str) -> str:
        self.count += 1
        self.init.append(f"self.register_buffer('l{self.count}', {text})")
        return f"self.l{self.count}"

    def conv(self, entering: int, leaving: int, kernel: int = 1, more: str = "") -> str:
        return self.layer(f"nn.Conv{self.dims}d({entering}, {leaving}, {kernel}, padding={kernel // 2}{more})")

    def norm(self, width: int, number: int) -> str:
        groups = next(g for g in (3, 2, 1) if width % g == 0)
        kinds = (f"nn.BatchNorm{self.dims}d({width})", f"nn.GroupNorm({groups}, {width})", f"nn.GroupNorm(1, {width})")
        more = (
            f"nn.InstanceNorm{self.dims}d({width}, affine=True)",
            f"nn.BatchNorm{self.dims}d({width}, affine=False)",
        )
        return self.layer((kinds + more)[number % 5])

    def define(self, text: str) -> None:
        """Classes and functions that the network uses."""
        self.classes[text] = None

    def line(self, text: str) -> None:
        self.forward.append(text)

    def new(self, text: str, channels: int) -> str:
        """A value that later steps may read."""
        name = f"v{len(self.values)}"
        self.line(f"{name} = {text}")
        self.values.append((name, channels))
        return name

    def like(self, value: Value, channels: int) -> str:
        """A value mapped to other channels, if it has others."""
        name, own = value
        return name if own == channels else f"{self.conv(own, channels)}({name})"


StepWriter = Callable[[Writer, Value, Value, int], None]
