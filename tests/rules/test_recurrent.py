"""Recurrent layers between linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import check, randomise
from torch import nn


class Reader(nn.Module):
    """Reads sequences, and looks at what is given at every step and at the last states."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.enter, self.layer, self.more, self.out = nn.Linear(4, 8), layer, nn.Linear(width, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(torch.relu(self.enter(x)))
        return self.out(torch.relu(self.more(y)))


class States(Reader):
    """Reads the last states."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.layer(torch.relu(self.enter(x)))
        states = state if isinstance(state, tuple) else (state,)
        return self.out(torch.relu(self.more(y[:, -1] + sum(s[-1] for s in states))))


LAYERS: dict[str, tuple[nn.RNNBase, int, int]] = {
    "LSTM": (nn.LSTM(8, 6, batch_first=True), 6, 6),
    "LSTM, both directions": (nn.LSTM(8, 6, bidirectional=True, batch_first=True), 12, 6),
    "LSTM, layers": (nn.LSTM(8, 6, 2, bias=False), 6, 6),
    "LSTM, projected": (nn.LSTM(8, 6, 2, proj_size=4, bidirectional=True, batch_first=True), 8, 0),
    "GRU": (nn.GRU(8, 6, 2, bidirectional=True, batch_first=True), 12, 6),
    "RNN": (nn.RNN(8, 6, nonlinearity="relu", batch_first=True), 6, 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers(name: str) -> None:
    layer, width, units = LAYERS[name]
    model = Reader(layer, width).double()
    randomise(model, 0)
    report = check(model, name, (1, 5, 4), (3, 7, 4))
    assert (report.failures, report.units) == ([], 8 + units + 5)
    assert (report.coverage == 1.0) == bool(units)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_last_states(kind: Any) -> None:
    model = States(kind(8, 6, 2, batch_first=True), 6).double()
    randomise(model, 0)
    report = check(model, "states", (1, 5, 4), (3, 7, 4))
    assert (report.failures, report.units) == ([], 8 + 6 + 5)


class Stepping(nn.Module):
    """A cell over a fixed number of steps. `given`: its first state is made of a size that is written down."""

    def __init__(self, kind: Any, given: bool) -> None:
        super().__init__()
        self.enter, self.cell, self.out = nn.Linear(4, 8), kind(8, 6), nn.Linear(6, 3)
        self.given = given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.enter(x))
        state: Any = None
        if self.given:
            state = x.new_zeros(x.shape[0], 6)
            state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.out(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("given", [False, True])
def test_cells(kind: Any, given: bool) -> None:
    model = Stepping(kind, given).double()
    randomise(model, 0)
    report = check(model, "cell", (1, 3, 4), (3, 3, 4))
    assert (report.failures, report.units) == ([], 8 + 6)


def test_a_learned_state_has_the_hidden_units() -> None:
    class Starting(Reader):
        def __init__(self) -> None:
            super().__init__(nn.GRU(8, 6, 2, batch_first=True), 6)
            self.start = nn.Parameter(torch.randn(2, 1, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = self.start + x.new_zeros(1, x.shape[0], 1)
            y, _ = self.layer(torch.relu(self.enter(x)), start)
            return self.out(torch.relu(self.more(y)))

    model = Starting().double()
    randomise(model, 0)
    report = check(model, "starting", (1, 5, 4), (3, 7, 4))
    assert (report.failures, report.units) == ([], 8 + 6 + 5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_product_with_the_last_state(kind: Any) -> None:
    class Product(Reader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, state = self.layer(torch.relu(self.enter(x)))
            last = state[0] if isinstance(state, tuple) else state
            return self.out(torch.relu(self.more(y * last[-1][:, None])))

    model = Product(kind(8, 6, batch_first=True), 6).double()
    randomise(model, 0)
    report = check(model, "product", (1, 5, 4), (3, 7, 4))
    assert (report.failures, report.units) == ([], 8 + 6 + 5)
