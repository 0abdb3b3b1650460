"""The symbolic tracer of models: what their Python calls, reads and makes becomes a graph.

In: a *meta twin* of a model (same modules, parameters without data) and example inputs. Out: an `fx.Graph` whose
nodes hold their example values (`graph/meta.py`), and the guards: Python branches that were resolved from
example values.
"""

from __future__ import annotations

import inspect
import operator
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import fx, nn
from torch.overrides import is_tensor_method_or_property
from torch.utils._pytree import tree_map

from fxcat.errors import CaptureError
from fxcat.network.module_state import named_once
from fxcat.passes.capture.attributes import state_error
from fxcat.passes.capture.interception import intercepted
from fxcat.passes.capture.mode_watch import Modes
from fxcat.passes.capture.node_tracer import NodeTracer
from fxcat.passes.capture.numbers_of_tensors import in_torch
from fxcat.passes.capture.picked import check_none_left, with_places
from fxcat.passes.capture.proxy import ExampleProxy, instruction, is_tensor
from fxcat.passes.capture.stand_ins import stand_ins
from fxcat.passes.capture.tensor_methods import instead_of_method
from fxcat.passes.capture.texts import forget
from fxcat.passes.capture.true_places import TruePlaces, asks_for_places, tells_unknown_number, unknown_number
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.meta import CHANGES, HOOKED, SAME, VALUE, value_of
from fxcat.passes.graph.nested import leaves
from fxcat.passes.rules.leaves import is_leaf, is_of_torch
from fxcat.passes.rules.table import find_decomposition, function_decomposition, function_rule, has_hooks, module_rule


class ExampleTracer(NodeTracer):
    """Trace `root` with the given example inputs; every node's example value is computed on the meta device."""

    def __init__(self, device: torch.device, modes: Modes) -> None:
        """`device`: where the model and its inputs are; `modes`: of its modules."""
        super().__init__(device)
        self._modes = modes
        self.proxy_buffer_attributes = True
        self._inputs: Mapping[str, Any] = {}
        self._call: Callable[..., Any] | None = None
        self._training = False
        self._tensors: dict[int, str] = {}
        self._read: dict[str, fx.Proxy] = {}
        self._stands_for: dict[int, tuple[torch.Tensor, fx.Proxy]] = {}
        """Tensors that are none of the graph, and what was drawn into them; those that a hook was given."""
        self._has_hooks = False
        """Whether a hook has run on example values."""
        self._made: dict[int, torch.Tensor] = {}
        """Constants that the model makes while it is traced."""
        self._computed_with: set[int] = set()
        """Tensors with which it computes without values of the graph."""
        self._versions: dict[int, int] = {}
        """How often they had been changed in place when they were first used."""
        self.held: Mapping[str, torch.Tensor] = {}
        """Values of buffers that no forward pass changes."""
        self.has_cast = False
        """Whether it has switched autocast on: example values then lack the types that values have."""
        self.asked: list[object] = []
        """The instructions that asked for integers since the last node."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ExampleProxy(node, self)

    def trace_module(
        self,
        root: nn.Module,
        inputs: Mapping[str, Any],
        call: Callable[..., Any] | None = None,
        *,
        training: bool = False,
    ) -> fx.Graph:
        """Trace `root`; `inputs` maps parameter names of its `forward` to example values.

        `call`, if given, is called with `forward`, the module and the inputs, which may then have names of their own.
        `training`: in which mode the layers are, whatever they say themselves.

        Once, and then only the guards are left. Raises `CaptureError` with module path and source line when the model
        cannot be traced.
        """
        self._inputs, self._call, self._training = inputs, call, training
        try:
            with torch.enable_grad(), stand_ins(root), intercepted(self):
                graph = self.trace(root)
            for tensor, name in self.tensor_attrs.items():
                if isinstance(tensor, torch.Tensor) and tensor._version > self._versions.get(id(tensor), 0):
                    raise state_error(str(name), type(root).__name__)
            return graph
        except CaptureError:
            raise
        except Exception as error:
            check_none_left(self.graph)
            if tells_unknown_number(error):
                raise unknown_number(self.location(error)) from error
            raise CaptureError(
                f"the model cannot be captured: {type(error).__name__}: {error}",
                where=self.location(error),
                remedy="check that the model itself accepts the example inputs; if it does, rewrite that line with "
                "tensor operations whose shapes do not depend on tensor values",
            ) from error
        finally:
            forget()
            # the base class leaves a reference cycle: what it knows need not wait for the garbage collector. Other
            # threads may still ask whether this one is executing
            kept = {"guards": self.guards, "calls": self.calls, "_thread": self._thread}
            self.__dict__ = {**kept, "_is_executing": True}

    def attempt(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a function returns; NotImplemented if its Python cannot do with proxies: then the graph is as before."""
        last, guards, path = next(reversed(self.graph.nodes)), len(self.guards), self._path
        calls = self.calls.mark()
        try:
            return function(*args, **kwargs)
        except Exception:
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                if node.op == "get_attr":
                    self._read.pop(str(node.target), None)
                self.graph.erase_node(node)
            del self.guards[guards:]
            self.asked.clear()
            self._path = path
            self.calls.forget(calls)
            return NotImplemented

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the inputs that are given; every other argument keeps its default."""
        signature = inspect.signature(root_fn)
        names = list(self._inputs)
        args: list[Any] = [self.root]
        args += [self.create_proxy("placeholder", name, (), {}) for name in names]
        positional = [
            p.name
            for p in list(signature.parameters.values())[1:]
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        direct = names == positional[: len(names)] or signature.parameters.keys().isdisjoint(names)

        def call(module: nn.Module, *values: Any) -> Any:
            if self._call is not None:
                return self._call(root_fn, module, *values)
            if direct:
                return root_fn(module, *values)
            return root_fn(module, **dict(zip(names, values, strict=True)))

        return call, args

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.is_executing:
            return forward(*args, **kwargs)
        if not has_hooks(m) and self._is_passing(m):
            return forward(*args, **kwargs)
        # not the base class's: its module stacks on nodes say in ten times the memory what "path" says
        outer, self._path = self._path, self.path_of_module(m)
        result = self._inside(m, forward, args, kwargs)
        if result is NotImplemented:
            result = super().create_proxy("call_module", self._path, args, kwargs)
            VALUE.set(result.node, self.run_or_erase(result.node, m))
            self.note_place(result.node)
            if getattr(m, "inplace", False):
                CHANGES.set(result.node, True)
            rule = module_rule(m)
            if has_hooks(m):
                HOOKED.set(result.node, True)
                self._check_hooks(result, forward)
            elif rule is not None and rule.returns_input(result.node, m, self._training):
                SAME.set(result.node, True)
        self._path = outer
        return result

    def _inside(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a module returns whose Python is captured; NotImplemented for one that is a node of the graph."""
        instead = find_decomposition(m)
        if is_leaf(m):
            result = NotImplemented if instead is None else instead(m, *args, **kwargs)
            return forward(*args, **kwargs) if self._modes.use(m) else result
        calls = self.calls.mark()
        self.calls.enter(self._path, args, kwargs)
        try:
            if instead is not None:
                result = instead(m, *args, **kwargs)
            else:
                result = self.attempt(forward, args, kwargs) if is_of_torch(m) else forward(*args, **kwargs)
        except Exception:  # which the model may know what to do with
            self.calls.forget(calls)
            raise
        if result is NotImplemented:
            self.calls.forget(calls)
        else:
            self.calls.leave(result, hooked=has_hooks(m))
        return result

    def _is_passing(self, module: nn.Module) -> bool:
        """Whether a module is none of the model's, but made in its forward pass (`nn.CrossEntropyLoss()(y, t)`,
        `self.stages[1:]`): only what it holds may be the model's."""
        try:
            self.path_of_module(module)
        except NameError:
            held = is_leaf(module)
            return not any(True for _ in (*module.parameters(held), *module.buffers(held)))
        return False

    def _check_hooks(self, result: fx.Proxy, call: Callable[..., Any]) -> None:
        """Hooks of a module that is a node of the graph stay with it; example values are found without them.

        What a hook has kept, of what the module gets or gives, the model may read: that is then the node's."""
        node = result.node
        try:
            with self.executing():
                found = call(*thaw(node.args), **thaw(node.kwargs))
        except Exception:  # what a hook does with the data of a tensor
            return
        if tree_map(_shape_of, found) != tree_map(_shape_of, value_of(node)):
            raise CaptureError(
                "a forward hook changes the shape of a result",
                where=self.location(),
                remedy="do that in the forward pass",
            )
        known = [(value_of(source), self.proxy(source)) for source in node.all_input_nodes]
        self._stands_for |= {id(v): (v, p) for v, p in (*known, (found, result)) if isinstance(v, torch.Tensor)}
        self._has_hooks = True

    def _check_kept(self, value: torch.Tensor) -> None:
        """What a hook makes of example values is not there in a forward pass."""
        if self._has_hooks and value.is_meta and self.read(value) is value:
            raise CaptureError(
                "the model reads what a hook has computed in the forward pass",
                where=self.location(),
                remedy="let the hook keep what it gets, and compute with that in forward",
            )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.is_executing else self.read(attr_val)

    def read(self, value: Any) -> Any:
        """A proxy for a parameter or a buffer, however the model came by it (`next(self.parameters())`)."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in self._stands_for:
            return self._stands_for[id(value)][1]
        if not self._tensors:  # the base class looks through all of them every time
            modules = list(self.root.named_modules())
            held = [(path, own) for path, m in modules for own in (m._parameters, m._buffers)]
            self._tensors = {id(tensor): name for name, tensor in named_once(held)}
        name = self._tensors.get(id(value))
        if name is None:
            return value
        if name not in self._read:  # not the base class's cache: what is taken back must go from it
            self._read[name] = self.create_proxy("get_attr", name, (), {})
        return self._read[name]

    def draw(self, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Proxy:
        """A node for what draws random numbers without a value of the graph: it draws anew in every pass."""
        name = function.__name__
        method = is_tensor_method_or_property(function)
        kind, target = ("call_method", name) if method else ("call_function", function)
        if not name.endswith("_"):
            return self.create_proxy(kind, target, args, kwargs)
        first, *rest = args or (kwargs["tensor"],)
        copied = self.create_proxy("call_method", "clone", (first,), {})
        kwargs = {k: v for k, v in kwargs.items() if v is not first}
        result = self.create_proxy(kind, target, (copied, *rest), kwargs)
        self._stands_for[id(first)] = first, result
        return result

    def has_read(self, tensor: torch.Tensor) -> bool:
        """Whether the graph reads a tensor that is none of the module's parameters and buffers."""
        name = self.tensor_attrs.get(tensor)
        read = name is not None and any(n.op == "get_attr" and n.target == name for n in self.graph.nodes)
        return read or id(tensor) in self._computed_with

    def made(self, result: Any, given: Any) -> Any:
        """The result of a call without values of the graph; what is none of the arguments is a new constant."""
        tensors = [g for g in leaves(given) if isinstance(g, torch.Tensor)]
        self._computed_with |= {id(t) for t in tensors}
        if isinstance(result, torch.Tensor) and all(result is not t for t in tensors):
            self._made[id(result)] = result
        return result

    def create_arg(self, a: Any) -> Any:
        kind: type[Any] = type(a)
        if kind in _PLAIN:  # most arguments are, and the base class asks a dozen questions first
            return a
        if kind in (list, tuple):
            return kind([self.create_arg(x) for x in a])
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):  # functions take it for a tuple
            return tuple(self.create_arg(x) for x in a)
        if kind is ExampleProxy:
            return a.node
        if kind is dict and not a:
            return {}
        if id(a) in self._stands_for:
            return self._stands_for[id(a)][1].node
        if isinstance(a, numpy.generic):
            return a.item()
        if isinstance(a, numpy.ndarray):
            return super().create_arg(torch.from_numpy(a))
        if id(a) in self._made:  # what has changed it so far is a part of making it
            self._versions.setdefault(id(a), a._version)
        if isinstance(a, torch.Tensor):
            self._check_kept(a)
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def _written(self, kind: str, target: Any, args: Any, kwargs: dict[str, Any]) -> fx.Proxy:
        """What a function writes into the tensor that it is given as `out`, without gradients: the same, copied."""
        out = kwargs.pop("out")
        refused = CaptureError("out= is not supported", where=self.location(), remedy="use the result instead")
        if torch.is_grad_enabled():
            raise refused
        result = self.create_proxy(kind, target, args, kwargs)
        if not is_tensor(result) or value_of(result.node).shape != value_of(out.node).shape:
            raise refused
        return self.create_proxy("call_method", "copy_", (out, result), {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Proxy:
        if kind == "call_function" and not args and "input" in kwargs and _takes_input_first(target, kwargs):
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)  # where rules look for it
        if kind == "call_function" and not args and getattr(target, "__module__", None) == nn.init.__name__:
            kwargs = dict(kwargs)
            args = (kwargs.pop("tensor"),)
        if asks_for_places(target, args, kwargs):
            return TruePlaces(args[0], self.location())  # pyright: ignore[reportReturnType]
        if target is torch._assert and is_tensor(args[0]):  # pyright: ignore[reportPrivateUsage]
            target = torch._assert_async  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        if isinstance(kwargs.get("out"), fx.Proxy):
            return self._written(kind, target, args, dict(kwargs))
        if kind != "get_attr":
            result = instead_of_method(target, args, kwargs) if kind == "call_method" else in_torch(target, args)
            if result is not NotImplemented:
                return result
        function: Any = target if kind == "call_function" else None
        if kind == "call_method":
            function = getattr(torch.Tensor, target, None)
        instead = function_decomposition(function)
        if instead is not None:
            result = instead(*tree_map(self.read, tuple(args)), **tree_map(self.read, dict(kwargs)))
            if result is not NotImplemented:
                return result
        if target in (operator.getitem, operator.setitem) and is_tensor(args[0]):
            args = (args[0], with_places(args[1], self), *args[2:])
        asked, self.asked = self.asked, []
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        if asked:
            self._forget_what_was_parsed(node, asked)
        if kind == "placeholder":
            VALUE.set(node, self._inputs[target])
        elif kind not in ("output", "get_attr"):
            VALUE.set(node, self.run_or_erase(node))
        rule = function_rule(target) if kind == "call_function" else None
        if rule is not None and rule.returns_input(node, None, self._training):
            SAME.set(node, True)
        if kind not in ("placeholder", "output"):
            self.note_place(node)
        return proxy

    def _forget_what_was_parsed(self, node: fx.Node, asked: list[object]) -> None:
        """PyTorch asks for the integers among its arguments before it lets a proxy take the call: that is no guard."""
        frame = sys._getframe(1)
        asking = [instruction(frame)]
        while frame.f_back is not None and frame.f_globals["__name__"].startswith(("torch.fx.", "fxcat.passes.")):
            frame = frame.f_back
            asking.append(instruction(frame))
        given = set(node.all_input_nodes)
        while asked and asked.pop() in asking:
            known = self.guards[-1].node
            if known not in given and given.isdisjoint(known.all_input_nodes):  # neither an argument nor a part of one
                break
            self.guards.pop()


_PLAIN = (int, float, bool, str, type(None))


def _shape_of(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else None


def _takes_input_first(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether `input` is the name of a function's first parameter."""
    if isinstance(function, types.FunctionType):
        return next(iter(inspect.signature(function).parameters)) == "input"
    return "condition" not in arguments  # what is built into torch has no signature, but only `where` differs
