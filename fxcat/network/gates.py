"""Gates: one flat vector of probabilities θ, samples of it, and named views for people.

A gate is a 0/1 random variable ξ ~ Bernoulli(θ) that multiplies a unit or a section's output (arXiv 2205.04650,
2406.04549, 2411.09127). All gates are sampled together, once per forward pass.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fxcat.checks import check_instance, shown
from fxcat.errors import InputError
from fxcat.network.draws import Draw, Draws, batch_size, drawn, place_of
from fxcat.network.notices import AFTER_STEPS, BEFORE_STEPS
from fxcat.network.slot_values import GateLayout, slot_values
from fxcat.utils.constant_tables import Table
from fxcat.utils.tensor_slicing import replace_data

SAMPLES = "fxcat_gates"
"""Attribute of the network under which the gated graph finds the gate values of the current forward pass."""

CLOSED = 1 / 128
"""Value of a closed gate while derivatives are taken, as a multiple of the resolution of its numbers: so it is rounded
away in the sums that it enters, but is not zero. A gate may lie before its activation, and ReLU, as a maximum pooling,
passes no derivative on at zero. It is no smaller, so that products of several are no subnormal numbers."""

Values = Literal["sampled", "hard", "spread", "theta"]
"""What gates are in training: samples of Bernoulli(θ), 1 where θ > ½, the same with some closed at random (`spread`),
or θ itself (a mask that is soft)."""


def type_of_gates(network: nn.Module) -> torch.dtype:
    """The type of the numbers that gates are: that of the network's first weights."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


class _OfThread(threading.local):
    """Values by the slots' names, of every thread its own."""

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfThread, ()  # a copy has none


class GateSamples(nn.Module):
    """Gate values of one forward pass, as attributes with the slots' names. In `eval()` several threads may run one
    network: every one has its own.

    One gather serves all slots, and one multiplication all parameters that are scaled.
    """

    def __init__(self, layout: GateLayout) -> None:
        super().__init__()
        self._index = Table(layout.index)
        self._slots = layout.slots
        self._repeated = layout.repeated
        self._sizes = [torch.Size(s.shape).numel() for s in layout.slots]
        self._filled = _OfThread()
        # by their paths: people put other modules in their place (SyncBatchNorm), and blocks hold this one
        self._scaled = tuple((s.scales[0].split("."), s.scales[1]) for s in layout.slots if s.scales is not None)

    def forward(self, value: Any) -> Any:
        """Passes on what comes: a container whose Python runs all that it holds (`nn.Sequential`) runs this too."""
        return value

    def fill(self, sample: torch.Tensor, network: nn.Module) -> None:
        """Publish a sample of all gates, shape (gates,), for one forward pass of the network that they are of."""
        parameters = [_of_module(_at(network, path), name) for path, name in self._scaled]
        index = self._index.on(sample.device)
        values = slot_values(sample, index, self._repeated, self._sizes, parameters)
        place = self._place()
        for slot, value in zip(self._slots, values, strict=True):
            place[slot.name] = value if len(slot.shape) == 1 else value.reshape(slot.shape)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        try:
            return own["_filled"].values[name]
        except KeyError:  # it is none of them, or it is being made
            pass
        if any(slot.name == name for slot in own.get("_slots", ())):
            raise InputError(
                "the gates have no values outside of a forward pass of the whole network",
                remedy="call the network that fxcat.prepare returned, not a part of it",
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """How many values the graph reads."""
        return f"{len(self._slots)} values"

    def clear(self) -> None:
        """Drop them: tensors with a history cannot be copied, and would keep the autograd graph alive."""
        own = self.__dict__
        for slot in self._slots:
            own.pop(slot.name, None)
        self._filled.values.clear()  # another thread may have changed the mode meanwhile

    def _place(self) -> dict[str, Any]:
        """Where the values are. In training those of all threads, which take turns: attributes are read faster."""
        return self.__dict__ if self.training else self._filled.values


def _at(network: Any, path: list[str]) -> nn.Module:
    for name in path:
        network = network._modules[name]
    return network


def _of_module(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a module, or what a parametrisation makes of it."""
    own = module._parameters.get(name)
    return getattr(module, name) if own is None else own


class GateVector(nn.Module):
    """θ of all units, then of all sections, in one parameter of shape (U + S,).

    What the loss says of it is in `draws`; `theta.grad` is zero, and no optimizer that holds θ changes it.
    """

    theta: nn.Parameter

    def __init__(self, units: int, sections: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(units + sections, dtype=dtype))
        self._numbers = Table(torch.arange(units + sections, dtype=torch.int32))
        self.unit_count = units
        self.counts_at_start = (units, sections)
        self.values: Values = "sampled"
        self.spread = (0.0, 0.0)
        """Shares of the units and of the sections that `values="spread"` closes at random."""
        self.explored = 0.0
        """Share of the open sections that are closed at random while gates are sampled."""
        self.draws = Draws()
        self.last_batch = 1
        self.shrunk = 0
        """How often gates have gone."""
        self._fixed: torch.Tensor | None = None
        self._generators = (torch.Generator(), torch.Generator())
        self.seed(0)
        self._guard()

    def _guard(self) -> None:
        """Optimizers of all parameters would let θ decay, though its gradient is zero, as long as no controller takes
        it out of them: what it was is put back."""
        self._before = dict[int, torch.Tensor]()
        BEFORE_STEPS.tell(self._remember)
        AFTER_STEPS.tell(self._put_back)

    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        if any(p is self.theta for group in optimizer.param_groups for p in group["params"]):
            self._before[id(optimizer)] = self.theta.detach().clone()

    def _put_back(self, optimizer: torch.optim.Optimizer) -> None:
        before = self._before.pop(id(optimizer), None)
        if before is not None:
            self.theta.data.copy_(before)

    def extra_repr(self) -> str:
        """How many of what there are, and what they are in training."""
        decided = "" if self.theta.requires_grad else ", decided"
        return f"{self.unit_count} units, {self.theta.numel() - self.unit_count} sections, {self.values!r}{decided}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """θ says how much of the network there is: it has values also where weights have none (`to("meta")`), or none
        of their own (`to_empty()`)."""
        values, requires_grad = self.theta.detach().clone(), self.theta.requires_grad
        super()._apply(fn, recurse)
        if self.theta.is_meta:
            self.theta = nn.Parameter(values, requires_grad)
        self.theta.data.copy_(values)
        return self

    @property
    def units(self) -> torch.Tensor:
        return self.theta[: self.unit_count]

    @property
    def sections(self) -> torch.Tensor:
        return self.theta[self.unit_count :]

    def hard(self) -> torch.Tensor:
        """0/1 gates as inference uses them: open where θ > ½."""
        return (self.theta.detach() > 0.5).to(self.theta.dtype)

    def open_but(self, closed: Sequence[int]) -> torch.Tensor:
        """0/1 gates of which some are closed, by number. Raises `InputError` for numbers that there are not."""
        numbers = torch.tensor(closed, dtype=torch.int64, device=self.theta.device)
        if len(closed) and not 0 <= min(closed) <= max(closed) < self.theta.numel():
            raise InputError(f"there is no gate {max(closed)} among {self.theta.numel()}")
        return torch.ones_like(self.theta.detach()).index_fill_(0, numbers, 0.0)

    @property
    def numbers(self) -> torch.Tensor:
        """Of the gates that are left, among those that there were at first; int32, one entry per gate."""
        return self._numbers.on(self.theta.device)

    def forward(self, arguments: Any = ()) -> torch.Tensor:
        """Values of all gates for one forward pass, shape (U + S,): in training as `values` says, hard otherwise.

        `arguments`: of that pass. A pass that a running backward pass computes again has the values that it had.
        """
        self.last_batch = batch_size(arguments) or 1
        if not self.training:
            return self.hard() if self._fixed is None else self._fixed
        place = place_of(arguments)
        draw = self.draws.again(place)
        if draw is None:
            draw = Draw(self._sample() if self._fixed is None else self._fixed, self.last_batch, place)
            self.draws.add(draw)
        theta = self.theta
        # `torch.func` puts other tensors in the place of parameters, and its transforms take no functions with a memory
        trained = isinstance(theta, nn.Parameter) and theta.requires_grad and torch.is_grad_enabled()
        if not trained or torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
            return draw.sample
        # open or closed, the derivative is that from above
        values = draw.sample.clamp(min=CLOSED * torch.finfo(theta.dtype).eps)
        return drawn(theta, values, draw, self.draws)

    def differentiated(self, value: torch.Tensor) -> list[Draw]:
        """The draws of the forward passes that a scalar was made from, with its derivatives at the gates' values."""
        torch.autograd.grad(value, self.theta)
        return self.draws.withdraw()

    def _sample(self) -> torch.Tensor:
        theta = self.theta.detach()
        if self.values in ("sampled", "spread") and self.theta.requires_grad:
            probability = self._probability()
            # for the gates that have gone too, so that a shrink does not change the others' samples
            made = zip(self.counts_at_start, self._generators, strict=True)
            draws = torch.cat([torch.rand(n, generator=g, device=g.device) for n, g in made]).to(theta.device)
            draws = draws if len(draws) == len(theta) else draws[self.numbers]  # none has gone
            return (draws < probability).to(theta.dtype)
        return theta.clone() if self.values == "theta" else self.hard()

    def _probability(self) -> torch.Tensor:
        """Of every gate, to be open in one forward pass."""
        if self.values == "sampled":
            probability, (units, sections) = self.theta.detach().clone(), (0.0, self.explored)
        else:
            probability, (units, sections) = self.hard(), self.spread
        if units:
            probability[: self.unit_count] *= 1 - units
        if sections:
            probability[self.unit_count :] *= 1 - sections
        return probability

    @contextmanager
    def fixed(self, sample: torch.Tensor) -> Generator[None, None, None]:
        """These values of all gates, shape (U + S,), in every forward pass of a block."""
        self._fixed = sample
        try:
            yield
        finally:
            self._fixed = None

    def restrict(self, origin: torch.Tensor, units: int) -> None:
        """Keep the entries `origin` only, as `units` units and then sections; the parameter object stays the same."""
        replace_data(self.theta, self.theta.detach()[origin], None)
        self._numbers = Table(self.numbers[origin])
        self.unit_count = units
        self.shrunk += 1
        self.draws.forget()

    def __getstate__(self) -> dict[str, Any]:
        # as bytes: to a process that is spawned a tensor goes by a file descriptor, which ends with the tensor, and
        # the one that a generator is pickled as ends before that process begins
        return self.__dict__ | {"_generators": bytes(self.random_state.flatten().tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_generators": (torch.Generator(), torch.Generator())})
        self.random_state = torch.tensor(list(state["_generators"]), dtype=torch.uint8).reshape(2, -1)
        self._guard()

    def seed(self, seed: int) -> None:
        """Gates draw from generators of their own, so that dropout and data order stay those of the plain run.

        So do sections, so that the units' samples are the same with and without gates on sections.
        """
        for i, generator in enumerate(self._generators):
            generator.manual_seed(seed ^ i << 32)

    @property
    def random_state(self) -> torch.Tensor:
        """States of those generators, bytes."""
        return torch.stack([g.get_state() for g in self._generators])

    @random_state.setter
    def random_state(self, state: torch.Tensor) -> None:
        for generator, its_state in zip(self._generators, state, strict=True):
            generator.set_state(its_state.clone())  # of a view it would read the storage's beginning


@dataclass(frozen=True, slots=True, repr=False)
class Gate:
    """A named part of the gate vector: the units of a group, or one section."""

    name: str
    kind: Literal["units", "section"]
    vector: GateVector
    start: int
    count: int
    shrunk: int = 0
    """How often gates had gone from the network when this was taken from it: later its numbers are those of others."""

    def __repr__(self) -> str:
        what = f"{self.count} units" if self.kind == "units" else "section"
        if self.shrunk != self.vector.shrunk:
            return f"Gate({self.name!r}, {what}; the network has become smaller since)"
        theta = self.theta
        if self.kind == "section":
            return f"Gate({self.name!r}, {what}, θ = {float(theta):.2f})"
        return f"Gate({self.name!r}, {what}, {int((theta > 0.5).sum())} with θ > ½)"

    @property
    def theta(self) -> torch.Tensor:
        """Probabilities in [0, 1], shape (units,) or (1,) for a section. Shares memory: write into it to set gates.

        Raises `InputError` once the network has become smaller."""
        if self.shrunk != self.vector.shrunk:
            raise InputError(
                "the network has become smaller since this gate was taken from it",
                where=self.name,
                remedy="take it again: net.gates[name]",
            )
        return self.vector.theta.detach()[self.start : self.start + self.count]

    def set(self, values: torch.Tensor | float) -> None:
        """Set all probabilities. Raises `InputError` for values outside [0, 1] or of another shape."""
        theta = self.theta
        remedy = f"give one number, or {self.count} of them, in [0, 1]"
        try:
            new = torch.as_tensor(values, dtype=theta.dtype, device=theta.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            what = f"gate {self.name!r} cannot take {shown(values)}"
            raise InputError(what, where=self.name, remedy=remedy) from error
        if new.shape not in (torch.Size(()), theta.shape):
            what = f"gate {self.name!r} cannot take values of shape {tuple(new.shape)}"
            raise InputError(what, where=self.name, remedy=remedy)
        if not bool(((new >= 0) & (new <= 1)).all()):
            wrong = new[~((new >= 0) & (new <= 1))].reshape(-1)[0].item()
            raise InputError(f"gate {self.name!r} cannot take the value {wrong:g}", where=self.name, remedy=remedy)
        theta.copy_(new)


class GatesByName(dict[str, Gate]):
    """The gates of a network by name, which say what there is when a name is not among them."""

    def __missing__(self, name: Any) -> Gate:
        near = difflib.get_close_matches(str(name), self, n=3) or list(self)[:3]
        raise InputError(
            f"there is no gate {shown(name)} among {len(self)}, or it has gone",
            remedy=f"use names of net.summary(), such as {', '.join(map(repr, near))}",
        )


def check_setting(keep: Any, theta: torch.Tensor) -> None:
    """Raise `InputError` for anything but zeros and ones, one per gate, or None."""
    check_instance(keep, torch.Tensor, "keep", optional=True)
    if keep is not None and (keep.shape != theta.shape or not bool(((keep == 0) | (keep == 1)).all())):
        raise InputError(
            f"keep= is a tensor of shape {tuple(keep.shape)}, not of zeros and ones for {theta.numel()} gates",
            remedy="give one per gate, in the order of net.gates",
        )


def check_thetas(thetas: Any, own: torch.Tensor) -> None:
    """Raise `InputError` for anything but one number per gate."""
    check_instance(thetas, torch.Tensor, "theta")
    if thetas.shape != own.shape or not thetas.is_floating_point():
        raise InputError(
            f"theta= is a tensor of shape {tuple(thetas.shape)} and type {thetas.dtype}, not of {own.numel()} "
            "probabilities",
            remedy="give one per gate, in the order of net.gates",
        )
