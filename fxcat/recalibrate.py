"""BatchNorm statistics of the network that will be used.

Statistics gathered under sampled gates, or before structures left, are not those of the hard network; judging it
with them can halve its accuracy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from fxcat.gated import GatedModule


def recalibrate(net: GatedModule, batches: Iterable[torch.Tensor]) -> None:
    """Replace all BatchNorm statistics by averages over `batches`, with every gate open or closed as in `eval()`."""
    norms = [m for m in net.network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    inputs = list(batches)
    if not norms or not inputs:
        return
    momenta = [m.momentum for m in norms]
    was_training, values = net.training, net.gate_vector.values
    net.gate_vector.values = "hard"
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        net.train()
        with torch.no_grad():
            for batch in inputs:
                net(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.gate_vector.values = values
        net.train(was_training)


@contextmanager
def recalibrated(net: GatedModule, batches: Iterable[torch.Tensor]) -> Generator[None, None, None]:
    """Recalibrated statistics for the duration of a block; afterwards the old ones are back."""
    norms = [m for m in net.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore[reportPrivateUsage]
    saved = [{k: b.clone() for k, b in m.named_buffers(recurse=False)} for m in norms]
    recalibrate(net, batches)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
