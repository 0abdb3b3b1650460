"""Recurrent layers: their input features, and their hidden units.

A layer has one hidden size, so the units at one position of all its layers and directions go together. The gated form
closes the rows of a unit in all weights: then its state is zero at every step, and nothing is added from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels, along, frozen, leaves
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Rule, Sample, Zero
from fxcat.passes.rules.contraction import consumed
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Term
from fxcat.utils.made_classes import gated_class

_BLOCKS = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many blocks of rows a weight has, one for each gate of the kind, and one for the candidate."""


class _Recurrent(Rule):
    """Base of the rules below."""

    zero = Zero.BREAKS

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def counting(self, flow: Flow, node: fx.Node) -> Counting | None:
        return Counting(_gated(type(flow.module(node))), self.hidden(flow, node))

    def hidden(self, flow: Flow, node: fx.Node) -> torch.Tensor:
        """Labels of the hidden units."""
        raise NotImplementedError

    @staticmethod
    def entering(flow: Flow, node: fx.Node) -> torch.Tensor:
        """Labels of the input features, 1-D."""
        found, outer = consumed(flow, node, -1)
        if outer is not None:
            flow.freeze(outer, node, "units along the time axis, or a value without a batch axis")
        return found

    @staticmethod
    def meet_state(flow: Flow, node: fx.Node, hidden: torch.Tensor) -> None:
        """A state that the layer is given has its hidden units."""
        for state in node.all_input_nodes[1:]:
            for labels in leaves(flow.values[state]):
                if labels.shape[-1] > 1:
                    flow.unite(labels, hidden)
                else:
                    flow.freeze((labels, hidden), node, "it is given a state without units")


@rule(nn.LSTM, nn.GRU, nn.RNN)
class Recurrent(_Recurrent):
    """Over whole sequences. An LSTM with projections keeps its hidden units: they must be more than what it gives."""

    parameters = ("weight_ih_l0", "weight_hh_l0")

    def hidden(self, flow: Flow, node: fx.Node) -> torch.Tensor:
        module = self._module(flow, node)
        found = flow.bound(node, "weight_hh_l0", 1)
        if module.proj_size:
            return frozen((module.hidden_size,))
        return flow.fresh(module.hidden_size, str(node.target)) if found is None else found

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        module = self._module(flow, node)
        entering, hidden = self.entering(flow, node), self.hidden(flow, node)
        given = frozen((module.proj_size,)) if module.proj_size else hidden
        directions = 2 if module.bidirectional else 1
        rows = hidden.repeat(_blocks(module))
        for layer in range(module.num_layers):
            for suffix in ("", "_reverse")[:directions]:
                end = f"_l{layer}{suffix}"
                flow.bind(node, f"weight_ih{end}", 0, rows)
                flow.bind(node, f"weight_ih{end}", 1, given.repeat(directions) if layer else entering)
                flow.bind(node, f"weight_hh{end}", 0, rows)
                flow.bind(node, f"weight_hh{end}", 1, given)
                if module.bias:
                    flow.bind(node, f"bias_ih{end}", 0, rows)
                    flow.bind(node, f"bias_hh{end}", 0, rows)
        self.meet_state(flow, node, given)
        result, state = value_of(node)
        out = along(given.repeat(directions), -1, result.dim())
        if isinstance(state, torch.Tensor):
            return out, along(given, -1, state.dim())
        return out, (along(given, -1, state[0].dim()), along(hidden, -1, state[1].dim()))

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        module, value = self._module(flow, node), flow.one(node)[0]
        directions = 2 if module.bidirectional else 1
        steps = value.shape[:-1].numel() * _blocks(module)
        entering = flow.parameters[flow.parameter_name(node, "weight_ih_l0")][1]
        hidden = self.hidden(flow, node)
        given = flow.parameters[flow.parameter_name(node, "weight_hh_l0")][1]
        inner = steps * directions * (module.num_layers + directions * (module.num_layers - 1))
        terms = Term(steps * directions, (entering, hidden)), Term(inner, (given, hidden))
        if not module.proj_size:
            return terms
        return *terms, Term(steps // _blocks(module) * directions * module.num_layers, (given, hidden))

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.RNNBase)
        weight = module.get_parameter("weight_ih_l0")
        module.hidden_size, module.input_size = weight.shape[0] // _blocks(module), weight.shape[1]
        module.flatten_parameters()

    @staticmethod
    def _module(flow: Flow, node: fx.Node) -> nn.RNNBase:
        module = flow.module(node)
        assert isinstance(module, nn.RNNBase)
        return module


@rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
class RecurrentCell(_Recurrent):
    """One step."""

    parameters = ("weight_ih", "weight_hh")

    def hidden(self, flow: Flow, node: fx.Node) -> torch.Tensor:
        module: Any = flow.module(node)
        found = flow.bound(node, "weight_hh", 1)
        return flow.fresh(module.hidden_size, str(node.target)) if found is None else found

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        entering, hidden = self.entering(flow, node), self.hidden(flow, node)
        rows = hidden.repeat(_blocks(flow.module(node)))
        for name, columns in (("ih", entering), ("hh", hidden)):
            flow.bind(node, f"weight_{name}", 0, rows)
            flow.bind(node, f"weight_{name}", 1, columns)
            flow.bind(node, f"bias_{name}", 0, rows)
        self.meet_state(flow, node, hidden)
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            return along(hidden, -1, value.dim())
        return tuple(along(hidden, -1, v.dim()) for v in value)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        value = flow.one(node)
        value = value if isinstance(value, torch.Tensor) else value[0]
        steps = value.shape[:-1].numel() * _blocks(flow.module(node))
        entering = flow.parameters[flow.parameter_name(node, "weight_ih")][1]
        hidden = self.hidden(flow, node)
        return Term(steps, (entering, hidden)), Term(steps, (hidden, hidden))

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.RNNCellBase)
        module.input_size = module.weight_ih.shape[1]
        module.hidden_size = module.weight_ih.shape[0] // _blocks(module)

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.GRUCell(6, 4), (2, 6), axis=-1), Sample(nn.RNNCell(6, 4, bias=False), (2, 6), axis=-1))


def _blocks(module: nn.Module) -> int:
    kind = next(c.__name__ for c in type(module).__mro__ if c.__module__ == "torch.nn.modules.rnn")
    return _BLOCKS[kind.removesuffix("Cell")]


@cache
def _gated(base: type[nn.Module]) -> type[nn.Module]:
    """The class with its gate, of shape (hidden units,), as a keyword argument: closed rows, and no state of theirs."""
    forward = _gated_cell if issubclass(base, nn.RNNCellBase) else _gated_sequence
    return gated_class(base, forward, (_gated, (base,)))


def _gated_sequence(self: Any, input: torch.Tensor, hx: Any = None, *, gate: torch.Tensor) -> Any:
    self._update_flat_weights()
    plain = self._flat_weights
    rows = gate.repeat(_blocks(self))
    self._flat_weights = [_closed(weight, rows) for weight in plain]
    try:
        return type(self).__bases__[0].forward(self, input, _closed_state(hx, gate))
    finally:
        self._flat_weights = plain


def _closed_state(state: Any, gate: torch.Tensor) -> Any:
    if state is None:
        return None
    return tuple(s * gate for s in state) if isinstance(state, tuple) else state * gate


def _closed(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return weight * rows.reshape(-1, *(1,) * (weight.dim() - 1))


def _gated_cell(self: Any, input: torch.Tensor, hx: Any = None, *, gate: torch.Tensor) -> Any:
    rows = gate.repeat(_blocks(self))
    given = {name: _closed(p, rows) for name, p in self.named_parameters(recurse=False)}
    step: Callable[..., Any] = torch.lstm_cell if isinstance(self, nn.LSTMCell) else torch.gru_cell
    if isinstance(self, nn.RNNCell):
        step = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
    hx = _closed_state(hx, gate)
    if hx is None:
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        hx = (zeros, zeros) if isinstance(self, nn.LSTMCell) else zeros
    weights = (given.get(n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return step(input, hx, *weights)
