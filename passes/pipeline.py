"""The compiler's steps, one after another: what each needs and gives is checked, and one may look in between.

A step is a function from what is known of a network to that and more. After one that rewrites the graph this is whole:
`graph.lint()`, every node has an example value, and every function and method that is called exists.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import fx

from fxcat.errors import FxcatError
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import VALUE, value_of

_log = logging.getLogger("fxcat.passes")


class State(Protocol):
    """What is known of a network on its way through the steps; fields that are not known yet are None."""

    @property
    def name(self) -> str:
        """The model's class, for people."""
        ...

    @property
    def graph(self) -> fx.Graph:
        """The graph as it is now; asked for once there is one."""
        ...


S = TypeVar("S", bound=State)
T = TypeVar("T", bound=State, contravariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """`needs`: fields that are known before it; `gives`: those that are known after it. `rewrites`: whether the graph
    may be another one after it, which computes what it did; where it is not, the step returns what it was given."""

    name: str
    run: Callable[[S], S]
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    rewrites: bool = False


class Observer(Protocol[T]):
    """Looks at a network between two steps."""

    def __call__(self, step: Step[Any], state: T) -> None:
        """`step` has been made, and this is known now."""
        ...


def run(steps: Sequence[Step[S]], state: S, failed: type[FxcatError], observers: Sequence[Observer[S]] = ()) -> S:
    """Make all steps. fxcat's own errors stay as they are; any other becomes one of the kind `failed`, which names the
    step, and those that were made before it."""
    made: list[str] = []
    for step in steps:
        began = time.perf_counter()
        try:
            _check_known(state, step.needs, f"{step.name} needs")
            before, state = state, step.run(state)
            _check_known(state, step.gives, f"{step.name} gives")
            if step.rewrites and state is not before:
                check_graph(state.graph)
        except (FxcatError, MemoryError):
            raise
        except Exception as error:
            raise failed(
                f"the step {step.name!r} failed: {type(error).__name__}: {error}",
                where=f"{state.name}, after {', '.join(made) or 'no other step'}",
                remedy="report it with the model; prepare(verify='each step', dump=folder) shows how far it came",
            ) from error
        made.append(step.name)
        if _log.isEnabledFor(logging.DEBUG):
            spent = 1000 * (time.perf_counter() - began)
            _log.debug("%s: %s, %d nodes, %.1f ms", state.name, step.name, len(state.graph.nodes), spent)
        for observer in observers:
            observer(step, state)
    return state


def _check_known(state: State, fields: Sequence[str], said: str) -> None:
    missing = [name for name in fields if getattr(state, name) is None]
    assert not missing, f"{said} {missing[0]}"


def check_graph(graph: fx.Graph) -> None:
    """Raise `AssertionError` or `RuntimeError` if a graph is not whole."""
    graph.lint()
    for node in graph.nodes:
        assert node.op == "output" or VALUE.has(node), f"{place(node)} has no example value"
        if node.op == "call_function":
            assert callable(node.target), f"{node.target} at {place(node)} cannot be called"
        elif node.op == "call_method":
            owner: Any = node.args[0] if node.args else None
            value = value_of(owner) if isinstance(owner, fx.Node) else owner
            known = hasattr(torch.Tensor, str(node.target)) or hasattr(value, str(node.target))
            assert known, f"there is no method {node.target} at {place(node)}"
