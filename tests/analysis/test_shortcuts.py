"""What is found out the short way is what the long way gives: shapes, dominators, what can never count."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import networkx as nx
import pytest
import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from fxcat.passes.analysis.sections import dominators
from fxcat.passes.capture.watch_tensors import never_counts
from fxcat.passes.rules import table
from fxcat.passes.rules.elementwise import Elementwise

X = torch.empty(2, 3, 4, device="meta")
CALLS: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = (
    (torch.einsum, ("b i d, b d j -> j b i", X, X.mT), {}),
    (torch.einsum, ("bij,bij->b", X, X), {}),
    (torch.matmul, (X, X.mT), {}),
    (operator.matmul, (X[0], X[1].mT), {}),
    (torch.roll, (X.mT, 1, 0), {}),
    (torch.roll, (X,), {"shifts": (1, 2), "dims": (1, 2)}),
)


@pytest.mark.parametrize("function, args, kwargs", CALLS)
def test_shapes_are_those_of_the_op(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    rule = table.function_rule(function)
    assert rule is not None
    found, expected = rule.infer_call(args, kwargs), function(*args, **kwargs)
    assert found is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize(
    "equation, operands",
    [("...i,ij->...j", (X, X[0].mT)), ("bii->bi", (torch.empty(2, 3, 3, device="meta"), X)), ("bij,bij", (X, X))],
)
def test_other_sums_are_left_to_the_op(equation: str, operands: tuple[torch.Tensor, ...]) -> None:
    rule = table.function_rule(torch.einsum)
    assert rule is not None and rule.infer_call((equation, *operands), {}) is None


@pytest.mark.filterwarnings("ignore")
def test_elementwise_functions() -> None:
    answered = 0
    functions = [(function, r) for function, r in table._FUNCTIONS.items() if isinstance(r, Elementwise)]
    calls = ((X, 2.0), (X, 3), (X.mT, 0.5), (X.half(), 2), (X.double(), 1.5), (X, X))
    for (function, rule), args in itertools.product(functions, calls):
        found = rule.infer_call(args, {})
        try:
            expected = function(*args)
        except Exception:  # it does not take these
            continue
        if found is not None:
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (function, args)
            answered += 1
    assert answered > 50


@pytest.mark.parametrize("seed", range(5))
def test_dominators(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = fx.Graph()
    nodes = [graph.placeholder("x"), graph.placeholder("y")]
    for _ in range(30):
        chosen = torch.randint(max(0, len(nodes) - 5), len(nodes), (2,), generator=generator).tolist()
        nodes.append(graph.call_function(torch.add, tuple(nodes[i] for i in chosen)))
    flow: nx.DiGraph[Any] = nx.DiGraph([(i, n) for n in graph.nodes for i in n.all_input_nodes or ["entry"]])
    expected = nx.immediate_dominators(flow, "entry")
    assert dominators(graph, ()) == {n: expected[n] for n in nodes if expected[n] != "entry"}


def test_what_never_counts_has_no_operations() -> None:
    a = torch.ones(4, 4)
    for name in ("add", "__mul__", "__getitem__", "exp", "permute", "__eq__", "sum"):
        assert never_counts(getattr(torch.Tensor, name)), name
    for function in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.einsum, torch.nn.functional.linear):
        assert not never_counts(function), function
    functions: tuple[Any, ...] = (torch.add, torch.stack, torch.cat, torch.mm, torch.bmm, torch.conv1d)
    for function in functions:
        with FlopCounterMode(display=False) as counter:
            if function in (torch.stack, torch.cat):
                function([a, a])
            elif function in (torch.bmm, torch.conv1d):
                function(a[None], a[None].mT if function is torch.bmm else a[:, :, None])
            else:
                function(a, a)
        assert not (never_counts(function) and counter.get_total_flops()), function
