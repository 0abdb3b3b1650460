"""How far two results are apart, and how much of that rounding explains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fxcat.gated import GatedModule

Inputs = tuple[Any, ...]
DOUBLE_TOLERANCE = 1e-10
SINGLE_TOLERANCE = 1e-4


def _ordered(value: Any) -> Any:
    """Detections by box where their scores are equal to twelve digits: then rounding alone decides on their order."""
    if isinstance(value, list):
        return [_ordered(v) for v in value]
    if not isinstance(value, dict) or not {"boxes", "scores"} <= value.keys() or value["scores"].dim() != 1:
        return value
    scores = value["scores"].double()
    run = (scores.diff(prepend=scores[:1]).abs() > 1e-12 * scores).cumsum(0).tolist()
    boxes = value["boxes"].round(decimals=6).tolist()
    order = sorted(range(len(run)), key=lambda i: (run[i], boxes[i]))
    return {k: v[order] for k, v in value.items()}


def difference(a: Any, b: Any) -> float:
    """max |a − b| relative to max(1, max |b|), over all tensors of two outputs."""
    worst = 0.0
    pairs = list(zip(tree_leaves(_ordered(a)), tree_leaves(_ordered(b)), strict=True))
    for x, y in pairs:
        if isinstance(y, torch.Tensor):
            if x.shape != y.shape or not bool(torch.isfinite(y).all()):
                return float("inf")
            if not y.is_floating_point():
                worst = max(worst, 0.0 if torch.equal(x, y) else float("inf"))
                continue
            if not y.numel():
                continue
            worst = max(worst, (x - y).abs().max().item() / max(1.0, y.abs().max().item()))
    return worst


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """As `torch.manual_seed` within, which alone keeps a stack trace per call for every device that is not in use."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def well_posed(net: GatedModule, inputs: Inputs, tolerance: float) -> Inputs:
    """Inputs at which the network itself does not jump when every layer's result is rounded differently: where a
    detector gives two boxes the same score, rounding alone decides which one it keeps, and other images are taken."""
    if not isinstance(inputs[0], list):
        return inputs
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        if _of_rounding(net, inputs, 1e-14) <= tolerance:
            return inputs
        inputs = tree_map(lambda x: torch.rand(x.shape, generator=generator, dtype=x.dtype), inputs)
    raise AssertionError("the network jumps on five inputs")


def allowed_by_rounding(module: nn.Module, inputs: Inputs, tolerance: float) -> float:
    """Ten times what rounding makes of its result, where that is more."""
    return max(tolerance, min(10 * _of_rounding(module, inputs, torch.finfo(torch.double).eps), SINGLE_TOLERANCE))


def _of_rounding(module: nn.Module, inputs: Inputs, by: float) -> float:
    """How much its result changes if every layer's is rounded differently."""
    generator = torch.Generator().manual_seed(0)

    def rounded(_: nn.Module, args: Any, result: torch.Tensor) -> torch.Tensor:
        return result * (1 + by * torch.randn(result.shape, generator=generator, dtype=result.dtype))

    expected = drawn(module, inputs)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [m.register_forward_hook(rounded) for m in layers]
    try:
        return max(difference(drawn(module, inputs), expected) for _ in range(2))
    finally:
        for handle in handles:
            handle.remove()


def drawn(module: nn.Module, inputs: Inputs) -> Any:
    """Its result, with the same random numbers every time: some models mask at random in inference too."""
    with fixed_seed(0):
        return module(*inputs)
