"""Constant tensors that belong to a network without being its parameters or buffers."""

from __future__ import annotations

import torch


class Table:
    """A tensor that lies on the device on which it is asked for.

    It is no buffer, since people's code averages buffers, casts them and sends them round: what is derived from the
    structure of a network must stay what it is.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def on(self, device: torch.device) -> torch.Tensor:
        """The tensor there. Do not write into it."""
        if self._values.device != device:
            with torch.inference_mode(False):  # it is kept, and may take part in training
                self._values = self._values.to(device)
        return self._values

    def __deepcopy__(self, memo: dict[int, object]) -> Table:
        return Table(self._values)  # which nobody writes into

    def __len__(self) -> int:
        return len(self._values)
