"""A network with gates becomes as small as the one that a state was taken from, and what trains it follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import ref

import torch

from fxcat.errors import InputError
from fxcat.network.program import Shrunk
from fxcat.network.recipe import Gates, Recipe, check_gates

KEY = "fxcat"
"""In an optimizer's state: how small the network was."""


class Leader(Protocol):
    """What removes gates from a network and all that must follow (`GateController`)."""

    steps: int
    total_steps: int

    @property
    def phase(self) -> str:
        """Where the next step belongs; "plain" once the gates are decided."""
        ...

    def shrink(self, keep: torch.Tensor, *, loaded: bool = False) -> Shrunk:
        """Remove what `keep` (0/1, shape (gates,)) leaves out; `loaded`: as a state says that is being loaded."""
        ...


class Led:
    """The leader of a network, if it has one that is still there. A copy of the network has none."""

    def __init__(self, leader: Leader | None = None) -> None:
        self._leader = None if leader is None else ref(leader)

    @property
    def by(self) -> Leader | None:
        return None if self._leader is None else self._leader()

    @property
    def is_fresh(self) -> bool:
        """Whether the network never had one."""
        return self._leader is None

    def check_free(self) -> None:
        """Raise `InputError` while a leader is in the midst of it: two would undo what the other does."""
        if self.by is not None and self.by.steps > 0 and self.by.phase != "plain":
            raise InputError(
                "another GateController trains the gates of this network, and has begun",
                remedy="end it with its finish(), or go on from its state_dict() with a network that is prepared anew",
            )

    def check_by(self, leader: Leader) -> None:
        """Raise `InputError` if it is another one by now."""
        if self.by is not leader:
            raise InputError(
                "another GateController was made for this network since",
                remedy="call the step() of that one, and only of that one",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Led, ()


def described(recipe: Recipe, *, unfinished: bool = False) -> torch.Tensor:
    """How small a network is, and whether something trains its gates and has not ended, as bytes: files of tensors can
    hold it. As many of a copy, whatever trains that: averages go through states value by value."""
    stage = recipe[-1]
    content = {"gates": stage.gates, "closed": stage.closed, "biases": stage.biases, "unfinished": int(unfinished)}
    text = json.dumps(content)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def parsed(description: Any) -> tuple[Gates, list[tuple[int, ...]], tuple[str, ...], bool]:
    """Gates at the start, the numbers of those that were closed shrink after shrink, layers with new biases, and
    whether something trained its gates and had not ended.

    Raises `InputError` for anything that `described` did not give."""
    try:
        content = json.loads(bytes(torch.as_tensor(description).to(torch.uint8).tolist()))
        gates = tuple((str(name), int(count)) for name, count in content["gates"])
        closed = [tuple(int(g) for g in each) for each in content["closed"]]
        return gates, closed, tuple(str(path) for path in content["biases"]), bool(content.get("unfinished"))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the state does not say how small its network was: {error}") from error


def left_to_close(recipe: Recipe, gates: Gates, closed: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What a network has still to lose to become as small as another one of the same model.

    Raises `InputError` if it was prepared in another way, or is smaller already."""
    stage = recipe[-1]
    check_gates(stage.gates, gates)
    found = [tuple(each) for each in closed]
    if tuple(found[: len(stage.closed)]) != stage.closed:
        raise InputError(
            "the network has lost other gates than the one in the state: it may be smaller already",
            remedy="load it into a network that has just been prepared: prepare() the model again",
        )
    return found[len(stage.closed) :]
