"""Expected latency: what every op of a network takes on some machine at its widths, for gates or probabilities.

Per op a grid of widths with milliseconds, interpolated; the sum over the ops that live, and what a run takes besides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.network.cost_model import Axis, CostModel, CostTerm, Holding
from fxcat.utils.constant_tables import Table

OFFSETS = (1, 2, 4, 8)
"""Powers of two, of which every number of channels less than a multiple of 16 is a sum."""

Kind = Literal["product", "value", "passing"]
"""What an op does: it multiplies and sums up over channels; it works on values in another way (norms, softmax,
pooling); it only joins, scales or moves values, which a runtime may do along with what gives or reads them."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Instance = tuple[nn.Module, tuple[torch.Tensor, ...]]
"""An op as a module of its own, and inputs for it, on the meta device."""


@dataclass(frozen=True, slots=True)
class TimedOp:
    """What a runtime computes at once: an op, and what of each entry alone follows it (norm, activation).

    `key`: the same for ops that take the same time at the same widths. `axes`: up to two, whose live entries are its
    widths; all other sizes are constant, or scale with the first of them. `holding`: while what it lives; it runs
    `repeats` times. `build(widths)`: the op at other widths, None if it cannot be had at these.
    """

    key: str
    name: str
    axes: tuple[Axis, ...]
    holding: Holding
    repeats: int
    kind: Kind
    build: Callable[[Sequence[int]], Instance | None]

    @property
    def widths(self) -> tuple[int, ...]:
        """With everything alive."""
        return tuple(axis.width for axis in self.axes)


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Milliseconds of an op over a grid: `widths` per axis, ascending; `milliseconds` in the order of nested loops.

    `rounding`: per axis, as how many more a width counts that is one of `OFFSETS` less than a multiple of 16: as many
    where a kernel rounds up, 0 where it computes what there is; nothing where that is not known.
    """

    widths: tuple[tuple[int, ...], ...]
    milliseconds: tuple[float, ...]
    rounding: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PredictedLatency:
    """What a latency table says of a finalized module: the milliseconds of a run, and of one of the start network;
    `label`: what was measured, in few words."""

    milliseconds: float
    start: float
    label: str


@runtime_checkable
class LatencySource(Protocol):
    """A `LatencyTable`."""

    @property
    def batch(self) -> int:
        """Examples in one run."""
        ...

    @property
    def step(self) -> int:
        """Widths that are multiples of it cost no more per channel than others."""
        ...

    @property
    def label(self) -> str:
        """What was measured, in few words: "onnxruntime, cpu, 1 thread, batch 1"."""
        ...

    @property
    def per_run(self) -> float:
        """Milliseconds of a run beside its ops."""
        ...

    def times(self, key: str) -> OpTimes | None:
        """Those of an op; None if it was not measured."""
        ...


class LatencyModel:
    """Milliseconds of a network, differentiable in θ: at the expected widths of every op, times the probability that it
    lives. Gates are those of the start network, of which `counts` are units and sections. Computes on the device of θ.
    Where nothing is open to chance, widths count as what the kernels compute for them; an expected width is between
    such, and so is its time.

    Raises `InputError` if an op is not in the table.
    """

    def __init__(self, ops: Sequence[TimedOp], source: LatencySource, counts: tuple[int, int]) -> None:
        found = {op.key: source.times(op.key) for op in ops}
        missing = [op for op in ops if found[op.key] is None]
        if missing:
            raise InputError(
                f"the latency table has no times for {len(missing)} of {len(ops)} ops, such as {missing[0].key}",
                where=missing[0].name,
                remedy="measure a table for this network, as it was prepared: fxcat.LatencyTable.measure(net)",
            )
        self.label, self.step = source.label, source.step
        terms = [t for op in ops for t in _terms(op)]
        self._live = CostModel(terms)
        times = [t for op in ops if (t := found[op.key]) is not None]
        knots, grids, sizes = _padded(times)
        self._knots, self._grids, self._counts = Table(knots), Table(grids), Table(sizes)
        none = (0.0,) * len(OFFSETS)
        known = [[r or none for r in (*t.rounding, none, none)[:2]] for t in times]
        self._rounding = Table(torch.tensor(known, dtype=torch.float64))
        self._repeats = Table(torch.tensor([op.repeats for op in ops], dtype=torch.float64))
        self._per_run, self._counts_of_gates = source.per_run, counts
        self.start = float(self(*(torch.ones(n) for n in counts)))
        """Milliseconds of the start network."""

    def __call__(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """Milliseconds of one run, for gates or probabilities of shape (U,) and (S,); a double scalar."""
        return self.per_op(units, sections).sum() + self._per_run

    def share(self, theta: torch.Tensor, numbers: torch.Tensor, settled: Sequence[int]) -> torch.Tensor:
        """Milliseconds at θ, shape (gates,), as a share of those of the start network. `numbers`: of these gates at the
        start; `settled`: of those that have gone while what they gate stayed. What the others gated has left."""
        whole = theta.new_zeros(sum(self._counts_of_gates), dtype=torch.float64)
        whole[list(settled)] = 1.0
        whole = whole.index_put((numbers.long(),), theta.double())
        units, sections = whole.split(self._counts_of_gates)
        return self(units, sections) / self.start

    def per_op(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """The same of every op, shape (ops,)."""
        alive, *widths = self._live.per_term(units, sections).reshape(-1, 3).unbind(1)
        device = units.device
        knots, grids, counts = (t.on(device) for t in (self._knots, self._grids, self._counts))
        exists = widths[0].clamp(max=1) * widths[1].clamp(max=1) * alive
        if bool(((units == 0) | (units == 1)).all()):
            most = knots.gather(2, (counts - 1)[..., None])[..., 0]
            rounding = self._rounding.on(device)
            widths = [_computed(w, rounding[:, i], most[:, i]) for i, w in enumerate(widths)]
        lower, upper, share = zip(*[_cell(knots[:, i], counts[:, i], w) for i, w in enumerate(widths)], strict=True)
        every = torch.arange(len(grids), device=device)
        near = grids[every, lower[0], lower[1]].lerp(grids[every, upper[0], lower[1]], share[0])
        far = grids[every, lower[0], upper[1]].lerp(grids[every, upper[0], upper[1]], share[0])
        return near.lerp(far, share[1]) * exists * self._repeats.on(device)


def _terms(op: TimedOp) -> list[CostTerm]:
    """What counts whether an op lives, and its widths: 1 for an axis that it does not have."""
    axes = [(), *[(axis,) for axis in op.axes], (), ()][:3]
    return [CostTerm(op.name, 1, 0, a, op.holding if i == 0 else Holding()) for i, a in enumerate(axes)]


def _padded(times: Sequence[OpTimes]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widths (ops, 2, n), milliseconds (ops, n, n), and how many of the widths there are (ops, 2)."""
    most = max((len(w) for t in times for w in t.widths), default=1)
    knots = torch.full((len(times), 2, most), torch.inf, dtype=torch.float64)
    grids = torch.zeros((len(times), most, most), dtype=torch.float64)
    counts = torch.ones((len(times), 2), dtype=torch.int64)
    for i, op in enumerate(times):
        shape = [len(w) for w in op.widths] + [1] * (2 - len(op.widths))
        for axis, widths in enumerate([*op.widths, (1,), (1,)][:2]):
            knots[i, axis, : len(widths)] = torch.tensor(widths, dtype=torch.float64)
        grids[i, : shape[0], : shape[1]] = torch.tensor(op.milliseconds, dtype=torch.float64).reshape(shape)
        counts[i] = torch.tensor(shape)
    return knots, grids, counts


def _computed(width: torch.Tensor, rounding: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """How many channels kernels seem to compute, but not more than there are at the start; `rounding`: (ops, 4)."""
    offsets = torch.tensor(OFFSETS, device=width.device)
    missing = (-width.detach().long()).remainder(2 * OFFSETS[-1])
    more = ((missing[:, None] & offsets).bool() * rounding).sum(1)
    return width + torch.minimum(more, (most - width.detach()).clamp(min=0))


def _cell(
    knots: torch.Tensor, count: torch.Tensor, width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Between which two widths of the grid every width lies, and where; at a width of the grid the cell below, since
    what counts is what a little less would save."""
    lower = (torch.searchsorted(knots.contiguous(), width.detach().reshape(-1, 1).contiguous())[:, 0] - 1).clamp(min=0)
    lower = torch.minimum(lower, (count - 2).clamp(min=0))
    upper = torch.minimum(lower + 1, count - 1)
    start, end = (knots.gather(1, i[:, None])[:, 0] for i in (lower, upper))
    share = (width - start) / torch.where(end > start, end - start, 1.0)
    return lower, upper, torch.where(width < start, 0.0, share)  # `clamp` passes no derivative on at its bounds


_PREDICTED = "_fxcat_latency"
"""Of a finalized module: what a table says of it, as JSON. A text: it is copied with the module, and is not code."""


def attach_latency(module: nn.Module, predicted: PredictedLatency | None) -> None:
    """Note what a table says of a module, or that none does."""
    vars(module).pop(_PREDICTED, None)
    if predicted is not None:
        setattr(module, _PREDICTED, json.dumps(asdict(predicted)))


def latency_of(module: nn.Module) -> PredictedLatency | None:
    """What a table said of a module when it was finalized; None if there was no table."""
    text = vars(module).get(_PREDICTED)
    return PredictedLatency(**json.loads(text)) if isinstance(text, str) else None
