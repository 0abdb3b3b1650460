"""What a rule may say of one op: the base class, and the records that its methods take and give."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.terms import Term


class Zero(enum.Enum):
    """What an op does to a unit that is exactly zero in its inputs."""

    PRESERVES = "zero if every input is zero"
    ANY = "zero if one input is zero"
    BREAKS = "not zero, whatever the inputs are"


@dataclass(frozen=True, slots=True)
class Sample:
    """A small instance of an op for the tests: a module, the shape of its input, and the axis with the units."""

    module: nn.Module
    shape: tuple[int, ...]
    axis: int = 1


@dataclass(frozen=True, slots=True)
class Moved:
    """What is left of a movement's value.

    `source`, `result`: per axis the surviving indices, None where all survive (for several results, one such tuple
    each). `shape`: the shape that is left of a single result; `has_units`: which of its axes have units. `number`:
    what a node among the arguments that computes a number gives after removal.
    """

    source: tuple[torch.Tensor | None, ...]
    result: tuple[torch.Tensor | None, ...] | tuple[tuple[torch.Tensor | None, ...], ...]
    shape: tuple[int, ...]
    has_units: tuple[bool, ...]
    number: Callable[[fx.Node], Any]


@dataclass(frozen=True, slots=True)
class Size:
    """In the arguments of a `Replacement`: one size of a shape that a node holds."""

    shape: fx.Node
    axis: int


@dataclass(frozen=True, slots=True)
class Share:
    """In the arguments of a `Replacement`: a computed number, as in batch · heads, less what goes of it.

    `live`: what is left of the number that it is for the example inputs.
    """

    number: fx.Node
    live: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """A call that replaces a node's: None keeps the target. Arguments, and sequences of them, may hold `Size`s and
    `Share`s."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Callable[..., Any] | str | None = None


@dataclass(frozen=True, slots=True)
class Folding:
    """A subclass of a module's class that takes its gate as further arguments of `forward`.

    `parameters`: names of one-dimensional parameters along the output's axis 1. `forward` receives them multiplied by
    the gate, in this order; those of all modules are multiplied at once. With none it receives the gate itself.
    """

    subclass: type[nn.Module]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counting:
    """A form of an op whose statistics count live units only: it takes their gate as the keyword argument `gate`.

    `target`: a subclass of the module's class, or a function. `labels`: of the axes that the statistics run over, of
    any shape; the gate has the same.
    """

    target: Callable[..., Any]
    labels: torch.Tensor


class Rule:
    """What fxcat knows about one op. Subclass it, register it with `rule(...)`."""

    zero: Zero = Zero.BREAKS
    movement: bool = False
    """The op only moves elements: its output labels are found by running it on the input labels."""

    views: bool = False
    """The result may be in the memory of the first input."""

    keeps_infinity: bool = False
    """What is infinite in an input is so in the output."""

    equivariant: bool = False
    """With its channels in another order, in all inputs and all parameters that have them, the result is the same in
    that order: nothing depends on which of them lie beside each other."""

    affine: bool = False
    """The module has a `weight` and perhaps a `bias`, and is affine in its first input; the channels of what it reads
    and gives lie along axis 1 − (dimensions of the weight)."""

    parameters: tuple[str, ...] = ()
    """Parameters and buffers of the module that `flow` binds to axes; a module that lacks one is opaque."""

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        """The output's example value for a module with one input, where it is known without running the module.

        Running a meta kernel costs up to a millisecond; None runs it.
        """
        return None

    def infer_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The same for a module with several inputs, or with others than tensors."""
        return None

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The same for a function."""
        return None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        """Labels of the output; unites what must be removed together, freezes what cannot be removed."""
        raise NotImplementedError

    def groups(self, node: fx.Node, module: nn.Module | None) -> int:
        """Of a convolution: how many groups of channels it takes by themselves. `module`: what a node calls, if any."""
        return 1

    def returns_input(self, node: fx.Node, module: nn.Module | None, training: bool) -> bool:
        """Whether the result is the input itself, and not a new tensor."""
        return False

    def zero_at(self, node: fx.Node) -> Zero:
        """`zero` for one node, where it depends on the arguments."""
        return self.zero

    def equivariant_at(self, flow: Flow, node: fx.Node) -> bool:
        """`equivariant` for one node, where it depends on the module."""
        return self.equivariant

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        """The inputs whose zeros `zero` speaks of; not conditions, positions, or what only gives a shape."""
        return tuple(node.all_input_nodes)

    def infinite_at(self, flow: Flow, node: fx.Node) -> bool:
        """Whether the result may hold infinities, which no gate makes zero: gates go behind what takes them."""
        return False

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parameters among the arguments of a function whose axes `flow` binds one by one, as a module's."""
        return ()

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The arguments that may be weights: parameters, or computed from them, with units along every axis."""
        return ()

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        """The inputs in which a dead unit has to be exactly zero (the op mixes units)."""
        return ()

    def carriers(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """Those of `zero_from` that are zero for a dead unit wherever the result has to be; None compares labels."""
        return None

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...] | None:
        """Multiply-adds for one example, as `torch.utils.flop_counter` counts them (2 FLOPs each).

        None has them counted on the example values, for a node whose units are all frozen.
        """
        return ()

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        """The form that counts live units, for an op whose statistics run over labelled axes.

        What it returns is zero for dead units, and does not depend on what they hold in the input.
        """
        return None

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        """Set the attributes that state a size after the module's parameters were sliced.

        `entering`: shape of the first input after removal.
        """

    def folding(self, module: nn.Module, shape: torch.Size) -> Folding | None:
        """How a gate on the output folds into the module's affine parameters.

        `shape` is that of the output; None when folding is impossible or dearer than multiplying the output.
        """
        return None

    def folding_call(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parameters among a function's arguments that its gate folds into; none when folding is impossible."""
        return ()

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        """New arguments for a movement whose numbers state sizes, or None to keep it as it is."""
        return None

    def samples(self) -> tuple[Sample, ...]:
        """Small instances that the parametrised test runs."""
        return ()
