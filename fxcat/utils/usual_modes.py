"""What the library computes is the same in whatever modes of PyTorch it is called."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def usual_modes() -> Generator[None, None, None]:
    """Within the block tensors are made on the CPU where nothing else is said, and not in inference mode, where nothing
    that is trained could be made. What is run of the user's own belongs outside."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def as_called(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the user's own that is called in such a block as it would be outside, before which this is called:
    with its device by default."""
    device = torch.get_default_device()
    if device.type == "cpu":
        return function

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.device(device):
            return function(*args, **kwargs)

    return call
