"""What stays of the label analysis: it answers for as long as the network with gates is there, and holds no network."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxcat
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.labelling import Labelling


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 4)
        self.third = nn.Linear(4, 6)
        self.third.weight = self.first.weight
        self.last = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.third(self.second(self.first(x).relu()).relu()).relu())


def labelling(net: fxcat.GatedModule) -> Labelling:
    program: Any = net.program
    return program.analysis.labels


def test_it_answers_after_preparation() -> None:
    net = fxcat.prepare(Tied(), torch.randn(2, 4), verbose=False)
    labels = labelling(net)
    calls = {str(n.target): n for n in labels.values if n.op == "call_module"}
    assert labels.of(calls["first"]).shape == (1, 6)
    assert labels.one(calls["first"]).shape == (1, 6)
    assert labels.rules[calls["second"]] is not None
    assert labels.names.of_module(calls["third"], "weight") == "first.weight"
    assert labels.names.of_module(calls["third"], "bias") == "third.bias"


def test_it_is_frozen_and_can_be_pickled() -> None:
    net = fxcat.prepare(Tied(), torch.randn(2, 4), verbose=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(labelling(net), "values", {})  # noqa: B010
    again: fxcat.GatedModule = pickle.loads(pickle.dumps(net))
    before, after = labelling(net), labelling(again)
    assert [n.name for n in after.values] == [n.name for n in before.values]
    assert after.names == before.names


def test_the_state_of_the_analysis_is_gone() -> None:
    """It held the modules; what is left must be true of every copy of them."""
    net = fxcat.prepare(Tied(), torch.randn(2, 4), verbose=False)
    stack: list[object] = [net.program]
    seen = set[int]()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (str, int, float, torch.Tensor, fx.Graph)):
            continue
        seen.add(id(thing))
        assert not isinstance(thing, LabelFlow)
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            stack += [getattr(thing, f.name) for f in dataclasses.fields(thing)]
        elif isinstance(thing, (dict, list, tuple)):
            held: Any = thing
            stack += [*held, *held.values()] if isinstance(thing, dict) else held
