"""What an ONNX file is to look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from fxcat.checks import as_names, check_flag, check_integer, check_text
from fxcat.errors import InputError

SIZE_STEP = 32
"""By so many pixels images are larger when a file with dynamic sizes is verified: what most networks stride by."""


@dataclass(frozen=True, slots=True)
class Form:
    """`opset`: the exporter's own if None. `dynamic_batch`, `dynamic_size` (of images, N, C, H, W): what may be other
    than in the example. `external_data`: None has the weights beside the file only where they must be. `half`: weights
    and arithmetic in float16."""

    opset: int | None = None
    dynamic_batch: bool = True
    dynamic_size: bool = False
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    external_data: bool | None = None
    half: bool = False

    def __post_init__(self) -> None:
        for argument in ("input_names", "output_names"):
            if getattr(self, argument) is not None:
                object.__setattr__(self, argument, as_names(getattr(self, argument), argument))

    def check(self) -> None:
        """Raise `InputError` for values of another kind."""
        check_integer(self.opset, "opset", least=1, optional=True)
        check_flag(self.dynamic_batch, "dynamic_batch")
        check_flag(self.dynamic_size, "dynamic_size")
        check_flag(self.external_data, "external_data", optional=True)
        check_flag(self.half, "half")
        for argument in ("input_names", "output_names"):
            names = getattr(self, argument)
            for name in names or ():
                check_text(name, argument, remedy=f'write {argument}=["image"]')
                if not name:
                    raise InputError(f"{argument}= has an empty name", remedy="give each a name of its own")
            if names is not None and len(set(names)) < len(names):
                raise InputError(f"{argument}= names something twice", remedy="give one name each")

    def named(self, names: Sequence[str] | None, found: Sequence[Any], argument: str) -> list[Any]:
        """The names that are wanted for what was found; that itself without any."""
        if names is None:
            return list(found)
        if len(names) != len(found):
            what = f"{argument}= has {len(names)} names, and there are {len(found)}"
            raise InputError(what, remedy="give one name for each")
        return list(names)

    def dynamic_shapes(self, arguments: tuple[Any, ...]) -> Any:
        """For `torch.export`: the axes of every tensor that may have another size; None if none may."""
        if not self.dynamic_batch and not self.dynamic_size:
            return None
        batch, size = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC  # which may have to be larger than a kernel

        def axes(value: Any) -> dict[int, Any] | None:
            if not isinstance(value, torch.Tensor):
                return None
            found: dict[int, Any] = {0: batch} if self.dynamic_batch else {}
            return found | ({2: size, 3: size} if self.dynamic_size and is_image(value) else {})

        return tree_map(axes, arguments)


def is_image(value: Any) -> bool:
    """Whether a value is a batch of images (N, C, H, W)."""
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point()
