"""Making up for units that close: what they gave on average goes into the biases of the layers that read them.

Source: Variance-Based Pruning (arXiv 2507.12988, §3): a unit is replaced by its mean over the data, which is constant
and so part of the next layer's bias.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxcat.data.batches import call, read_batch
from fxcat.errors import InputError, TrainingError
from fxcat.gated import GatedModule
from fxcat.network.program import Consumer
from fxcat.records import Pinned
from fxcat.utils.modes import in_eval

_log = logging.getLogger(__name__)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Compensation:
    """What every consumer loses of its result on average, shape (its channels,), double; and where nothing makes up."""

    lost: tuple[tuple[Consumer, torch.Tensor], ...]
    left: tuple[Pinned, ...]

    def without_place(self, net: GatedModule) -> list[str]:
        """Paths of consumers that have neither a bias nor a batch normalisation behind them."""
        return [c.path for c, _ in self.lost if c.norm is None and _bias(net, c) is None]

    def apply(self, net: GatedModule) -> None:
        """Add to biases, or take from the running means behind them, which is the same; and say what is left."""
        with torch.no_grad():
            for consumer, mean in self.lost:
                bias = _bias(net, consumer)
                if bias is not None:
                    bias += mean.to(bias.dtype)
                elif consumer.norm is not None:
                    running = net.network.get_buffer(f"{consumer.norm}.running_mean")
                    running -= mean.to(running.dtype)
        if self.left:
            places = [f"{p.where}: {p.reason} ({p.count} units)" for p in self.left]
            shown = [*places[:_SHOWN], *([f"and {len(places) - _SHOWN} more"] if len(places) > _SHOWN else [])]
            _log.warning("nothing makes up for the units that close in\n  %s", "\n  ".join(shown))


def measure(net: GatedModule, setting: torch.Tensor, batches: Sequence[Any]) -> Compensation:
    """What closing gates takes from the layers that read them, on average over the batches and all positions.

    `setting`: 0/1, shape (gates,); `batches`: of `(inputs, targets)`. The network runs with all gates open, in
    `eval()`, and is afterwards what it was.

    Raises `InputError` without a batch, and `TrainingError` for a mean that is not finite.
    """
    if not batches:
        raise InputError("compensate= has no batch", remedy="pass some batches of a loader, as (inputs, targets)")
    units, theta = net.gate_vector.unit_count, net.gate_vector.theta
    consumers, left = net.program.consumers(net.network, setting[:units], setting[units:])
    means = [_Mean(c, theta.device) for c in consumers]
    opened = torch.ones_like(theta.detach())
    with in_eval(net), torch.no_grad(), net.gate_vector.fixed(opened), _watching(net, means):
        for batch in batches:
            call(net, net, read_batch(batch, net).to(theta.device).inputs)
    lost = [(m.consumer, m.value) for m in means if bool((m.value != 0).any())]
    for consumer, mean in lost:
        if not bool(mean.isfinite().all()):
            raise TrainingError(
                "what this layer reads of the units that close is not finite on average",
                where=consumer.path,
                remedy="check the weights and the data",
            )
    return Compensation(tuple(lost), left)


class _Mean:
    """The mean over examples and positions of a consumer's results, as far as they come from what closes."""

    def __init__(self, consumer: Consumer, device: torch.device) -> None:
        self.consumer = consumer
        self._closed, self._open = consumer.closed.to(device), consumer.open.to(device)
        self._sum = torch.zeros(len(consumer.open), dtype=torch.float64, device=device)
        self._count = 0

    @property
    def value(self) -> torch.Tensor:
        return self._sum / max(1, self._count)

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook. The layer is affine: its result at zero, the bias, is taken from that of what closes."""
        value, *gates = args
        mask = self._closed.reshape([-1] + [1] * (-self.consumer.axis - 1))
        # where that is not finite, zero times it would not be zero
        of_closed = module.forward(torch.where(mask, value, 0), *gates, **kwargs)
        result = of_closed - module.forward(torch.zeros_like(value[:1]), *gates, **kwargs)
        rows = result.movedim(self.consumer.axis, -1).flatten(0, -2)
        self._sum += torch.where(self._open, rows.sum(0, dtype=torch.float64), 0)
        self._count += len(rows)


@contextmanager
def _watching(net: GatedModule, means: Sequence[_Mean]) -> Generator[None, None, None]:
    layers = [net.network.get_submodule(m.consumer.path) for m in means]
    hooks = [layer.register_forward_pre_hook(m.add, with_kwargs=True) for layer, m in zip(layers, means, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _bias(net: GatedModule, consumer: Consumer) -> torch.Tensor | None:
    bias = net.network.get_submodule(consumer.path)._parameters.get("bias")
    return None if bias is None else bias.data
