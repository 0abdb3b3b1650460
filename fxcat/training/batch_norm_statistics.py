"""BatchNorm statistics of the network that will be used.

Statistics gathered under sampled gates, or before structures left, are not those of the hard network; judging it
with them can halve its accuracy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from fxcat.checks import check_batches
from fxcat.data.batches import call
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.utils.modes import kept_modes


def recalibrate(net: GatedModule, batches: Iterable[Any]) -> None:
    """Replace all BatchNorm statistics by averages over `batches`, with every gate open or closed as in `eval()`.

    For loops of your own: before a validation while gates are trained, and when the network has become smaller.
    `batches`: inputs, on the device of the network: a tensor each, or a tuple or dict of arguments of `forward`.
    Norms that are in `eval()` keep theirs.

    Layers that write BatchNorm out may have their momentum in the captured graph, so it is not changed: statistics that
    start at zero say what a batch adds to them.

    Raises `InputError` for anything but a `GatedModule`, and where there are no batches.
    """
    check_gated(net, "recalibrate()")
    check_batches(batches, "batches")
    try:
        found = replace_statistics(net, list(batches))
    except torch.OutOfMemoryError:
        raise
    except (InputError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        said = error if isinstance(error, InputError) else InputError(f"the network does not take a batch: {error}")
        remedy = "batches= are inputs without targets, for example [x for x, _ in loader]"
        raise InputError(said.what, where=said.where, remedy=remedy) from error
    if not found:
        raise InputError("there are no batches to take statistics from", remedy="give inputs of some")


def replace_statistics(net: GatedModule, inputs: list[Any]) -> bool:
    """Replace the statistics; returns whether there are inputs."""
    in_training = net.training
    norms = [m for m in _norms(net) if m.track_running_stats and (m.training or not in_training)]
    if not norms or not inputs:
        return bool(inputs)
    before = [[b.clone() for b in m.buffers(recurse=False)] for m in norms]
    sums, counts = [torch.zeros_like(_statistics(m)) for m in norms], [0] * len(norms)
    values, net.gate_vector.values = net.gate_vector.values, "hard"
    try:
        with kept_modes(net), torch.no_grad():
            if not in_training:
                net.train()
            for batch in inputs:
                for norm in norms:
                    for buffer in norm.buffers(recurse=False):
                        buffer.zero_()
                call(net, net, batch)
                for i, norm in enumerate(norms):
                    found = _statistics(norm)
                    if bool(found[1].any()):  # the pass used it
                        sums[i] += found / _share(norm)
                        counts[i] += 1
    finally:
        for norm, old, total, count in zip(norms, before, sums, counts, strict=True):
            for buffer, value in zip(norm.buffers(recurse=False), old, strict=True):
                buffer.copy_(value)
            if count:
                norm.get_buffer("running_mean").copy_(total[0] / count)
                norm.get_buffer("running_var").copy_(total[1] / count)
        net.gate_vector.values = values
    return True


def _statistics(norm: _BatchNorm) -> torch.Tensor:
    """Means and variances, shape (2, channels)."""
    return torch.stack([norm.get_buffer("running_mean"), norm.get_buffer("running_var")])


def _share(norm: _BatchNorm) -> float:
    """What share of the statistics of its batches a norm has after a forward pass that began with zeros."""
    calls = max(1, int(norm.get_buffer("num_batches_tracked")))
    return 1.0 if norm.momentum is None else 1.0 - (1.0 - norm.momentum) ** calls


def _norms(net: GatedModule) -> list[_BatchNorm]:
    return [m for m in net.network.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def recalibrated(net: GatedModule, batches: Iterable[Any]) -> Generator[None, None, None]:
    """Recalibrated statistics for the duration of a block; afterwards the old ones are back."""
    norms = _norms(net)
    saved = [{k: b.clone() for k, b in m.named_buffers(recurse=False)} for m in norms]
    replace_statistics(net, list(batches))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
