"""Graphs as statements: the code that somebody would write, and what it computes is what the graph computes."""

from __future__ import annotations

import builtins
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.codegen.generated import function_of
from fxcat.passes.codegen.statements import body_of
from fxcat.passes.graph import meta

VALUE = torch.arange(24.0).reshape(2, 3, 4)


def made(build: Any) -> fx.Graph:
    """A graph from a function of a graph and a placeholder; every node with its value."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(build(graph, x))
    known: dict[fx.Node, Any] = {x: VALUE}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            function: Any = getattr(type(args[0]), str(node.target)) if node.op == "call_method" else node.target
            known[node] = function(*args, **kwargs)
        meta.VALUE.set(node, known.get(node))
    return graph


def run(graph: fx.Graph) -> Any:
    return function_of(graph, "self", "def forward(self, x):", "nothing").defined()(nn.Identity(), VALUE.clone())


def lines(graph: fx.Graph) -> list[str]:
    body, returned, _ = body_of(graph, "self", ())
    return [*body, f"return {returned}"]


def test_a_value_takes_the_name_of_what_is_not_needed_any_more() -> None:
    def build(g: fx.Graph, x: fx.Node) -> Any:
        a = g.call_function(torch.relu, (x,))
        b = g.call_function(torch.neg, (a,))
        c = g.call_function(operator.add, (x, b))
        return g.call_function(operator.mul, (c, c))

    graph = made(build)
    assert lines(graph) == ["y = torch.relu(x)", "y = torch.neg(y)", "x = x + y", "x = x * x", "return x"]
    assert torch.equal(run(graph), (VALUE - VALUE.relu()) ** 2)


def test_sizes_are_computed_once_and_written_in_place() -> None:
    def size(g: fx.Graph, x: fx.Node, axis: int) -> fx.Node:
        return g.call_function(operator.getitem, (g.call_function(builtins.getattr, (x, "shape")), axis))

    def build(g: fx.Graph, x: fx.Node) -> Any:
        twice = [g.call_function(operator.floordiv, (size(g, x, 2), 2)) for _ in range(2)]
        y = g.call_method("reshape", (x, size(g, x, 0), -1, twice[0]))
        return g.call_method("mul", (y, twice[1]))

    graph = made(build)
    assert lines(graph) == [
        "number = x.shape[2] // 2",
        "x = x.reshape(x.shape[0], -1, number)",
        "x = x.mul(number)",
        "return x",
    ]
    assert torch.equal(run(graph), VALUE.reshape(2, -1, 2) * 2)


def test_a_size_does_not_keep_a_value_alive() -> None:
    def build(g: fx.Graph, x: fx.Node) -> Any:
        count = g.call_method("size", (x, 1))
        y = g.call_function(torch.flatten, (x,))
        return g.call_function(operator.mul, (y, count))

    assert lines(made(build)) == ["number = x.size(1)", "x = torch.flatten(x)", "x = x * number", "return x"]


OPERATORS: list[tuple[Any, str]] = [
    (lambda g, x: g.call_function(operator.pow, (g.call_function(operator.neg, (x,)), 2)), "(-x) ** 2"),
    (lambda g, x: g.call_function(operator.neg, (g.call_function(operator.pow, (x, 2)),)), "-x ** 2"),
    (lambda g, x: g.call_function(operator.sub, (3, g.call_function(operator.sub, (x, 1)))), "3 - (x - 1)"),
    (lambda g, x: g.call_function(operator.sub, (g.call_function(operator.sub, (x, 1)), 3)), "x - 1 - 3"),
    (lambda g, x: g.call_function(operator.mod, (g.call_function(operator.mul, (x, -2)), 5)), "x * -2 % 5"),
    (lambda g, x: g.call_function(operator.mul, (-2, g.call_function(operator.mod, (x, 5)))), "-2 * (x % 5)"),
    (lambda g, x: g.call_function(operator.eq, (g.call_function(operator.le, (x, 5)), False)), "not x <= 5"),
    (lambda g, x: g.call_function(operator.eq, (g.call_function(operator.lt, (x, 5)), True)), "(x < 5) == True"),
]


@pytest.mark.parametrize(("build", "text"), OPERATORS, ids=[t for _, t in OPERATORS])
def test_operators_take_the_parentheses_that_they_need(build: Any, text: str) -> None:
    """Written over the number of an axis, where they are nested."""

    def whole(g: fx.Graph, x: fx.Node) -> Any:
        return g.call_function(torch.add, (x, build(g, g.call_method("dim", (x,)))))

    graph = made(whole)
    code = text.replace("x", "x.dim()")
    assert lines(graph) == [f"x = torch.add(x, {code})", "return x"]
    assert torch.equal(run(graph), VALUE + eval(text, {"x": VALUE.dim()}))


ARGUMENTS: list[tuple[Any, str]] = [
    ((slice(None), None, slice(1, None, 2)), "x[:, None, 1::2]"),
    ((Ellipsis, -1), "x[..., -1]"),
    ((slice(0, 1),), "x[0:1,]"),
    ((), "x[()]"),
    ([0, 1], "x[[0, 1]]"),
]


@pytest.mark.parametrize(("index", "text"), ARGUMENTS, ids=[t for _, t in ARGUMENTS])
def test_indices(index: Any, text: str) -> None:
    graph = made(lambda g, x: g.call_function(operator.getitem, (x, index)))
    assert lines(graph) == [f"x = {text}", "return x"]
    assert torch.equal(run(graph), VALUE[index])


def test_arguments_that_a_function_has_by_default_are_left_out() -> None:
    def build(g: fx.Graph, x: fx.Node) -> Any:
        y = g.call_function(F.softmax, (x,), {"dim": -1, "_stacklevel": 3, "dtype": None})
        return g.call_method("to", (y,), {"dtype": torch.float64, "memory_format": torch.preserve_format})

    graph = made(build)
    assert lines(graph) == [
        "x = F.softmax(x, dim=-1)",
        "x = x.to(dtype=torch.float64, memory_format=torch.preserve_format)",
        "return x",
    ]
    assert torch.equal(run(graph), F.softmax(VALUE, -1).double())


def test_names_are_data() -> None:
    """Whatever modules, parameters and functions are called, they are found, and nothing in a name runs."""
    hostile = "a'); raise SystemExit(\"#"
    module = nn.Module()
    module.register_buffer(hostile, torch.ones(1))
    inner = module.class_ = nn.Module()
    inner.register_module("1 + 1", nn.ReLU())

    def F_(x: torch.Tensor) -> torch.Tensor:
        return x + 2

    F_.__name__ = "x"
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(F_, (x,))
    read = graph.create_node("get_attr", hostile)
    graph.output(graph.call_function(torch.mul, (graph.call_module("class_.1 + 1", (y,)), read)))
    code = function_of(graph, "self", "def forward(self, x):", "nothing")
    assert torch.equal(code.defined()(module, VALUE - 30), (VALUE - 28).relu())


def test_values_that_are_returned_keep_their_names() -> None:
    def build(g: fx.Graph, x: fx.Node) -> Any:
        a = g.call_function(torch.relu, (x,))
        b = g.call_function(torch.neg, (a,))
        return {"a": (a, b), "x": [x, None, 2.5]}

    graph = made(build)
    assert lines(graph)[-1] == "return {'a': (y, z), 'x': [x, None, 2.5]}"
    found = run(graph)
    assert torch.equal(found["a"][0], VALUE.relu()) and torch.equal(found["a"][1], -VALUE.relu())
    assert torch.equal(found["x"][0], VALUE)
