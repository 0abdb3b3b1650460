"""A symbolic tracer whose nodes have example values and say where they come from."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.capture.numbers_of_tensors import plain_number
from fxcat.passes.capture.proxy import ExampleProxy, is_tensor
from fxcat.passes.capture.source_lines import innermost_line, running_line
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.invocations import Calls
from fxcat.passes.graph.meta import CALL, CONSTANT, LINE, NO_GRAD, PATH, UNCAST, VALUE, value_of
from fxcat.passes.nodes.known import known_value
from fxcat.passes.rules.execute import run_module, run_node


class NodeTracer(fx.Tracer):
    """Makes nodes, and computes every node's example value on the meta device."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the model and its inputs are."""
        super().__init__(param_shapes_constant=False)
        self.device = device
        self.guards: list[Guard] = []
        self.calls = Calls()
        self._is_executing = False
        self._thread = threading.get_ident()
        self._path = ""
        self._names: dict[Any, str] = {}
        self.uncast: list[tuple[str, torch.dtype | None]] = []
        """The types of devices for which the model has switched autocast where it is now, and to what that casts."""

    @property
    def is_executing(self) -> bool:
        """Whether what runs now is not traced: example values are computed, or another thread runs a model."""
        return threading.get_ident() != self._thread or self._is_executing

    def note_place(self, node: fx.Node) -> None:
        """Note which module makes a node."""
        PATH.set(node, self._path)
        LINE.set(node, running_line())
        if self.calls.innermost is not None:
            CALL.set(node, self.calls.innermost)

    def location(self, error: BaseException | None = None) -> str:
        """Module path and source line of the innermost frame of the user's code."""
        return f"module {self._path or '(root)'!r}, {innermost_line(error)}"

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        if name is None:  # what the graph would take; there are many calls of few functions
            name = self._names.get(target)
            if name is None:
                name = self._names[target] = self.graph._target_to_str(target)
        # not by the base class, which looks in every node for what only torch.compile keeps
        # args given afterwards: the graph would look through them for symbolic integers, which a trace has none of
        node = self.graph.create_node(kind, target, None, None, name, type_expr)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        if kind == "get_attr":
            VALUE.set(node, self._run(node))
            path, _, name = str(target).rpartition(".")
            owner = self.root.get_submodule(path)
            if name not in owner._parameters and name not in owner._buffers:
                CONSTANT.set(node, True)
        elif not torch.is_grad_enabled():
            NO_GRAD.set(node, True)
        if self.uncast and kind.startswith("call"):
            device, dtype = self.uncast[-1]
            UNCAST.set(node, (None if device == self.device.type else device, dtype))
        return node

    def _run(self, node: fx.Node, module: nn.Module | None = None) -> Any:
        """The node's example value. `module`: what the node calls, if it is at hand."""
        with self.executing():
            if module is not None:
                return run_module(module, thaw(node.args), thaw(node.kwargs))
            try:
                return run_node(node, self.root)
            except RuntimeError:
                if not self._take_numbers(node):
                    raise
            return run_node(node, self.root)

    def run_or_erase(self, node: fx.Node, module: nn.Module | None = None) -> Any:
        """The same of a new node. One that fails is no part of the graph: if Python goes on from there, it does so for
        these sizes."""
        try:
            return self._run(node, module)
        except Exception:
            inputs = [i for i in node.all_input_nodes if isinstance(value_of(i), int | float | torch.Tensor)]
            self.graph.erase_node(node)
            for given in inputs:
                asked: Any = self.proxy(given)
                asked = asked.shape.node if is_tensor(asked) else given
                self.guards.append(Guard(asked, value_of(asked)))
            raise

    def _take_numbers(self, node: fx.Node) -> bool:
        """Put numbers in the place of tensors of one entry that are the same in every pass, where a function may want
        numbers (`x.new_full(sizes, self.strides[0])`); returns whether there are any."""
        numbers: dict[fx.Node, Any] = {}
        owner = node.args[0] if node.op == "call_method" else None
        for source in (n for n in node.all_input_nodes if n is not owner):
            value = value_of(source)
            known = known_value(source, self.root) if isinstance(value, torch.Tensor) and value.numel() == 1 else None
            if known is not None:
                numbers[source] = known.value.item()
                self.guards += [Guard(n, value_of(n)) for n in known.sizes]
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda n: numbers.get(n, n))
        return bool(numbers)

    def plain_number(self, proxy: ExampleProxy) -> Any:
        """The number that a tensor holds. Raises `CaptureError` if it is not known."""
        return plain_number(proxy)

    def executing(self) -> AbstractContextManager[None]:
        """What runs is not traced."""
        return _Executing(self)


class _Executing:
    """No generator and not `torch.no_grad`, as every node enters it."""

    __slots__ = ("_functions", "_gradients", "_outer", "_tracer")

    def __init__(self, tracer: NodeTracer) -> None:
        self._tracer = tracer
        self._functions = torch._C.DisableTorchFunction()  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> None:
        self._outer, self._tracer._is_executing = self._tracer._is_executing, True
        # in this order: a change of the mode of gradients would itself be dispatched
        self._functions.__enter__()
        self._gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # pyright: ignore[reportPrivateUsage]

    def __exit__(self, *error: Any) -> None:
        torch._C._set_grad_enabled(self._gradients)  # pyright: ignore[reportPrivateUsage]
        self._functions.__exit__(*error)
        self._tracer._is_executing = self._outer
