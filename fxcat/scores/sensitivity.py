"""`sensitivity`: what the loss does when a share of a group, or a section, goes, measured before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fxcat.checks import check_batches, check_callable, check_instance, check_number
from fxcat.choosing.cost_shares import cost_fractions
from fxcat.choosing.widths import nearest_aligned
from fxcat.data.batches import Batch, call, read_batch
from fxcat.data.losses import Loss, checked, count_correct, cross_entropy
from fxcat.errors import InputError, TrainingError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.records import Target
from fxcat.scores.importance import taylor
from fxcat.scores.one_shot import checked_scores, closing_order
from fxcat.scores.sensitivity_result import PartSensitivity, Removal, Sensitivity
from fxcat.utils.modes import in_eval

SHARES = (0.25, 0.5, 0.75)


def sensitivity(
    net: GatedModule,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    scores: torch.Tensor | None = None,
    shares: Sequence[float] = SHARES,
    progress: Callable[[int, int], Any] | None = None,
) -> Sensitivity:
    """Remove, one at a time, every share of every group and every section, and measure the loss on a few batches.

    What goes is what `one_shot` takes from that group alone: the units with the least score per cost, in widths that
    the network's `Limits` allow. So a removal's loss is that of the network which `one_shot` and `finalize` would make.
    `batches`: of `(inputs, targets)`, as in `fit`. `scores`: one per gate, as in `one_shot`; by default
    `importance.taylor` of the same batches and loss. `shares`: of the units of a group, in (0, 1). `progress`: called
    with the number of measurements that are done, and of all.

    All other gates are open and every module is in `eval()` meanwhile; afterwards θ and modes are what they were.

    Raises `InputError` without a batch, for scores of another shape and shares outside their range, and `TrainingError`
    if the loss of the whole network is not finite.
    """
    check_gated(net, "sensitivity()")
    check_batches(batches, "batches")
    check_callable(loss, "loss")
    check_callable(progress, "progress", optional=True)
    remedy = "give shares of a group's units, such as (0.25, 0.5)"
    check_instance(shares, (Sequence, np.ndarray), "shares", remedy=remedy)
    for share in shares:
        check_number(share, "shares", above=0, most=1, remedy=remedy)
    device = net.gate_vector.theta.device
    found = list(batches)
    scores = checked_scores(net, taylor(net, found, loss) if scores is None else scores)
    read = [read_batch(batch, net).to(device) for batch in found]
    if not read:
        raise InputError("sensitivity() got no batch", remedy="pass a loader, or a list of (inputs, targets)")
    settings = list(_settings(net, scores, tuple(sorted(shares))))
    total = 1 + len(settings)
    with _measuring(net) as measure:
        whole, right = measure(torch.ones_like(scores), read, loss)
        if not math.isfinite(whole):
            raise TrainingError(f"the loss of the whole network is {whole}", remedy="check the weights and the data")
        removals: list[list[Removal]] = [[] for _ in net.parts]
        for done, (part, share, setting) in enumerate(settings, 1):
            if progress is not None:
                progress(done, total)
            value, accuracy = measure(setting, read, loss)
            macs, params, *_ = cost_fractions(net, setting).tolist()
            removals[part].append(Removal(share, int((setting < 0.5).sum()), value, accuracy, macs, params))
    if progress is not None:
        progress(total, total)
    parts = [PartSensitivity(p.name, p.kind, p.count, tuple(own)) for p, own in zip(net.parts, removals, strict=True)]
    return Sensitivity(whole, right, sum(b.size for b in read), tuple(sorted(shares)), tuple(parts))


def _settings(
    net: GatedModule, scores: torch.Tensor, shares: tuple[float, ...]
) -> Iterator[tuple[int, float, torch.Tensor]]:
    """For every part of the gate vector and every share: numbers, shares, and 0/1 settings of shape (gates,)."""
    order = closing_order(net, scores, Target(flops=1.0))
    start = 0
    for number, part in enumerate(net.parts):
        stop = start + part.count
        own = order[(order >= start) & (order < stop)]
        seen: set[int] = set()
        for share in shares if part.kind == "units" else (1.0,):
            setting = torch.ones_like(scores)
            setting[own[: round(share * part.count)]] = 0.0
            if net.limits.aligned and part.kind == "units":
                others = torch.ones_like(setting)
                others[start:stop] = nearest_aligned(net, setting, scores, up=True)[start:stop]
                setting = others
            closed = int((setting < 0.5).sum())
            if closed and closed not in seen:
                seen.add(closed)
                yield number, share, setting
        start = stop


@contextmanager
def _measuring(
    net: GatedModule,
) -> Generator[Callable[[torch.Tensor, list[Batch], Loss], tuple[float, float | None]]]:
    """A function from a setting to the loss and accuracy on batches; θ and modes are afterwards what they were."""
    theta = net.gate_vector.theta
    before = theta.detach().clone()

    def measure(setting: torch.Tensor, batches: list[Batch], loss: Loss) -> tuple[float, float | None]:
        theta.data.copy_(setting)
        total, right, examples, classified = 0.0, 0, 0, True
        for batch in batches:
            output = call(net, net, batch.inputs)
            total += checked(loss(output, batch.targets)).item() * batch.size
            correct = count_correct(output, batch.targets)
            classified &= correct is not None
            right, examples = right + (correct or 0), examples + batch.size
        return total / examples, right / examples if classified else None

    try:
        with in_eval(net), torch.no_grad():
            yield measure
    finally:
        theta.data.copy_(before)
