"""Latency tables that no machine has a say in."""

from __future__ import annotations

import itertools
import math

import fxcat
from fxcat.exporters.timing.calibration import Calibration
from fxcat.exporters.timing.op_grid import OpTable

OVERHEAD = 0.01
"""Milliseconds of every op, whatever its widths are."""


def table_for(net: fxcat.GatedModule, *, step: int = 8, batch: int = 1) -> fxcat.LatencyTable:
    """Every op takes `OVERHEAD` and a thousandth of a millisecond per product of its widths, of which each counts as
    the next multiple of `step`."""
    ops: dict[str, OpTable] = {}
    for op in net.timed_ops(batch):
        widths = tuple(tuple(sorted({*range(step, w, step), w})) for w in op.widths)
        kernel = [math.prod(-(-w // step) * step for w in each) / 1000 for each in itertools.product(*widths)]
        ops[op.key] = OpTable(widths, tuple(kernel), (0.0,) * len(kernel), (1,) * len(kernel))
    return fxcat.LatencyTable("torch", "cpu", 1, batch, step, Calibration(layout=0.0, node=OVERHEAD), ops)


def with_latency(net: fxcat.GatedModule, *, step: int = 8) -> fxcat.GatedModule:
    """The network with such a table."""
    net.use_latency(table_for(net, step=step))
    return net
