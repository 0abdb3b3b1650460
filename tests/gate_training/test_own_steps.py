"""Steps as people write them: each meets the target, and what is left computes what the network computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halved import STEPS, Step, descend, run
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def sharpness(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    weights = list(net.weight_parameters())
    moves = [0.05 * p.grad / p.grad.norm().clamp(min=1e-9) for p in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, moves)
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        torch._foreach_sub_(weights, moves)
    optimizer.step()


def gradient_penalty(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    x = x.clone().requires_grad_()
    output = net(x)
    (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    descend(optimizer, F.cross_entropy(output, y) + 0.1 * slope.square().mean())


def inner_step(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    """MAML."""
    weights = {n: p for n, p in net.named_parameters() if n.startswith("network.")}
    slopes = torch.autograd.grad(F.cross_entropy(net(x[:8]), y[:8]), list(weights.values()), create_graph=True)
    fast = {n: p - 0.01 * g for (n, p), g in zip(weights.items(), slopes, strict=True)}
    descend(optimizer, F.cross_entropy(torch.func.functional_call(net, fast, (x[8:],)), y[8:]))


def mixed(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    share, order = 0.1 * i / STEPS, torch.randperm(len(x))
    output = net((1 - share) * x + share * x[order])
    descend(optimizer, (1 - share) * F.cross_entropy(output, y) + share * F.cross_entropy(output, y[order]))


def two_views(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    views = F.normalize(torch.cat([net(x + 0.1 * torch.randn_like(x)) for _ in range(2)]))
    likeness = (2 * views @ views.T).fill_diagonal_(-1e9)
    descend(optimizer, F.cross_entropy(likeness, (torch.arange(2 * len(x)) + len(x)) % (2 * len(x))))


def cached_gradients(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    with torch.no_grad():
        outputs = torch.cat([net(part) for part in x.chunk(2)])
    F.cross_entropy(outputs.requires_grad_(), y).backward()
    optimizer.zero_grad()
    assert outputs.grad is not None
    for part, slope in zip(x.chunk(2), outputs.grad.chunk(2), strict=True):
        net(part).backward(slope)
    optimizer.step()


def twice(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward(retain_graph=True)
    (0.1 * loss).backward()
    optimizer.step()


def kept_zeros(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    (optimizer if i % 2 else net).zero_grad(set_to_none=False)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def skipped(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    optimizer.zero_grad()
    (F.cross_entropy(net(x), y) * (float("nan") if i % 5 == 3 else 1.0)).backward()
    if all(bool(p.grad.isfinite().all()) for p in net.weight_parameters()):
        optimizer.step()
    else:
        optimizer.zero_grad()


def validated(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    net.eval()
    net(x)
    net.train()
    optimizer.step()


def growing(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    descend(optimizer, F.cross_entropy(net(F.interpolate(x, size=4 + i // 2)), y))


def lower_precision(dtype: torch.dtype) -> Step:
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)

    def step(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        with torch.autocast("cpu", dtype):
            output = net(x)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(output.float(), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step


def checkpointed(reentrant: bool) -> Step:
    def step(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        x = x.clone().requires_grad_()
        descend(optimizer, F.cross_entropy(checkpoint(net, x, use_reentrant=reentrant), y))

    return step


def of_all_examples(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
    """By `torch.autograd.grad`, of θ too, and by hand."""
    losses = F.cross_entropy(net(x), y, reduction="none")
    weights = [p for p in net.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(losses.mean(), weights)
    for weight, slope in zip(weights, slopes, strict=True):
        weight.grad = slope
    optimizer.step()


LOOPS: dict[str, Step] = {
    **{f.__name__: f for f in (sharpness, gradient_penalty, inner_step, mixed, two_views, cached_gradients, twice)},
    **{f.__name__: f for f in (kept_zeros, skipped, validated, growing, of_all_examples)},
    **{"bfloat16": lower_precision(torch.bfloat16), "float16": lower_precision(torch.float16)},
    **{"checkpoint": checkpointed(False), "checkpoint, reentrant": checkpointed(True)},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_of_ones_own(loop: str) -> None:
    run(LOOPS[loop])
