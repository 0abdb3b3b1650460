"""A symbolic tracer whose proxies carry example values.

In: a *meta twin* of a model (same modules, parameters without data) and example inputs. Out: an `fx.Graph` whose
nodes hold their example value in `node.meta["value"]`, and the guards: Python branches that were resolved from
example values.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import CheckpointFunction

from fxcat.errors import CaptureError
from fxcat.passes.arguments import thaw
from fxcat.passes.effects import CHANGES, CONSTANT, INPLACE_OPERATORS, NO_GRAD, SAME
from fxcat.passes.execute import run_module, run_node
from fxcat.passes.proxy import ExampleProxy, Guard, instruction
from fxcat.passes.rules.table import (
    HOOKED,
    autograd_call,
    find_decomposition,
    function_rule,
    has_hooks,
    is_leaf,
    is_of_torch,
    module_rule,
)
from fxcat.passes.stand_ins import stand_ins


class _Dispatch(TorchFunctionMode):
    """Lets calls whose only proxies are sizes become nodes too, such as `torch.eye(n)` and `constant.repeat(n, 1)`."""

    def __init__(self, tracer: ExampleTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.is_executing:
            return func(*args, **kwargs)
        if not _has_proxy((args, kwargs)):
            given = args, kwargs
            args, kwargs = tree_map(self.tracer.read, given)
            if not _has_proxy((args, kwargs)):
                return func(*given[0], **given[1])
        if getattr(func, "__name__", "") == "__get__":
            return getattr(args[0], func.__self__.__name__)
        name = getattr(func, "__name__", "")
        if name in _METHODS and func is getattr(torch.Tensor, name):
            return self.tracer.create_proxy("call_method", name, args, kwargs)
        if func is torch.Tensor.__getitem__:
            return self.tracer.create_proxy("call_function", operator.getitem, args, kwargs)
        return fx.Proxy.__torch_function__(func, types, args, kwargs)


_METHODS = ("expand", "view", "reshape", "repeat")
"""Methods of tensors that have stand-ins, and so are not known to torch.fx."""


def _has_proxy(value: Any) -> bool:
    """Whether there is a proxy among arguments, or inside of them."""
    if isinstance(value, tuple | list):
        return any(_has_proxy(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return any(_has_proxy(v) for v in value.values())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, slice):
        return _has_proxy((value.start, value.stop, value.step))
    return isinstance(value, fx.Proxy)


def _python_modules(root: nn.Module) -> set[str]:
    """Names of the Python modules whose code runs: those of the layers' classes, and of functions that layers hold."""
    traced = [m for m in root.modules() if not is_leaf(m)]
    names = {c.__module__ for cls in {type(m) for m in traced} for c in cls.__mro__}
    for module in traced:
        held = (v.func if isinstance(v, functools.partial) else v for v in vars(module).values())
        names |= {f.__module__ for f in held if isinstance(f, types.FunctionType)}
    return {n for n in names if n and n.partition(".")[0] not in sys.stdlib_module_names}


_APPLY: Any = vars(torch.autograd.Function)["apply"]


class ExampleTracer(fx.Tracer):
    """Trace `root` with the given example inputs; every node's example value is computed on the meta device."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.proxy_buffer_attributes = True
        self.guards: list[Guard] = []
        self._inputs: Mapping[str, Any] = {}
        self._call: Callable[..., Any] | None = None
        self._training = False
        self.is_executing = False
        self._path = ""
        self._tensors: dict[int, str] = {}
        self._read: dict[str, fx.Proxy] = {}
        self.asked: list[object] = []
        """The instructions that asked for integers since the last node."""

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
            with (
                torch.enable_grad(),
                patch.object(_symbolic_trace, "_create_wrapped_func", self._descending),
                patch.object(torch.autograd.Function, "apply", classmethod(self._apply)),
                patch.object(nn.Module, "__setattr__", _assigning(nn.Module.__setattr__)),
                patch.object(torch.autocast, "__enter__", self._entering(torch.autocast.__enter__)),
            ):
                graph = self.trace(root)
            for tensor, name in self.tensor_attrs.items():
                if isinstance(tensor, torch.Tensor) and tensor._version:
                    raise _state_error(str(name), type(root).__name__)
            return graph
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model cannot be captured: {type(error).__name__}: {error}",
                where=self.location(error),
                remedy="check that the model itself accepts the example inputs; if it does, rewrite that line with "
                "tensor operations whose shapes do not depend on tensor values",
            ) from error
        finally:
            # the base class leaves a reference cycle: what it knows need not wait for the garbage collector
            self.__dict__ = {"guards": self.guards}

    def _descending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What calls of a function that was given to `torch.fx.wrap` do: they are traced through where possible."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_executing or not _has_proxy((args, kwargs)):
                return function(*args, **kwargs)
            result = NotImplemented
            if isinstance(function, types.FunctionType) and function_rule(function) is None:
                result = self._attempt(function, args, kwargs)
            return self.create_proxy("call_function", function, args, kwargs) if result is NotImplemented else result

        return call

    def _entering(self, enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What entering autocast does: no graph says that a part of it has a precision of its own."""

        def refuse(context: torch.autocast) -> Any:
            if self.is_executing:
                return enter(context)
            raise CaptureError(
                "autocast is switched in the forward pass",
                where=self.location(),
                remedy="switch it outside of the model, or only around calls of its modules",
            )

        return refuse

    def _apply(self, function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        """What `function.apply` does: one node, since its backward pass may be anything."""
        if self.is_executing or not _has_proxy((args, kwargs)):
            return _APPLY.__get__(None, function)(*args, **kwargs)
        if function is CheckpointFunction:  # a way to compute gradients with less memory
            call, _, *inputs = args
            return call(*inputs)
        if any(isinstance(a, nn.Module | types.FunctionType | types.MethodType | functools.partial) for a in args):
            raise CaptureError(
                f"{function.__name__} takes a function",
                where=self.location(),
                remedy="list the module in ignore=",
            )
        return self.create_proxy("call_function", autograd_call(function), args, kwargs)

    def _attempt(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a function returns; NotImplemented if its Python cannot do with proxies: then the graph is as before."""
        last, guards, path = next(reversed(self.graph.nodes)), len(self.guards), self._path
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
            return NotImplemented

    def location(self, error: BaseException | None = None) -> str:
        """Module path and source line of the innermost frame of the user's code."""
        frames = (
            [f for f, _ in _walk_traceback(error)] if error is not None else [f.frame for f in inspect.stack()[::-1]]
        )
        place = "unknown line"
        for frame in frames:
            owner = frame.f_locals.get("self")
            name = frame.f_globals.get("__name__", "")
            if isinstance(owner, nn.Module) and not name.startswith(("torch.", "fxcat.")):
                line = frame.f_lineno
                if error is not None:
                    line = next(n for f, n in _walk_traceback(error) if f is frame)
                place = f"{frame.f_code.co_filename}:{line}"
        return f"module {self._path or '(root)'!r}, {place}"

    def create_node(self, kind: str, target: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **more)
        if kind == "get_attr":
            node.meta["value"] = self._run(node)
            path, _, name = str(target).rpartition(".")
            owner = self.root.get_submodule(path)
            if name not in owner._parameters and name not in owner._buffers:
                node.meta[CONSTANT] = True
        elif not torch.is_grad_enabled():
            node.meta[NO_GRAD] = True
        return node

    def _run(self, node: fx.Node, module: nn.Module | None = None) -> Any:
        """The node's example value; what runs is not traced. `module`: what the node calls, if it is at hand."""
        outer, self.is_executing = self.is_executing, True
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
                if module is not None:
                    return run_module(module, thaw(node.args), thaw(node.kwargs))
                return run_node(node, self.root)
        finally:
            self.is_executing = outer

    # fx hooks -------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ExampleProxy(node, self)

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        with stand_ins(_python_modules(root)), _Dispatch(self):
            return super().trace(root, concrete_args)

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
        # not the base class's: its module stacks on nodes say in ten times the memory what "path" says
        outer, self._path = self._path, self.path_of_module(m)
        instead = find_decomposition(m)
        result = NotImplemented if instead is None else instead(m, *args, **kwargs)
        if instead is None and not is_leaf(m):
            result = self._attempt(forward, args, kwargs) if is_of_torch(m) else forward(*args, **kwargs)
        if result is NotImplemented:
            result = super().create_proxy("call_module", self._path, args, kwargs)
            result.node.meta["value"] = self._run(result.node, m)
            result.node.meta["path"] = self._path
            if getattr(m, "inplace", False):
                result.node.meta[CHANGES] = True
            rule = module_rule(m)
            if has_hooks(m):
                result.node.meta[HOOKED] = True
                self._check_hooks(result.node, m, forward)
            elif rule is not None and rule.returns_input(result.node, m, self._training):
                result.node.meta[SAME] = True
        self._path = outer
        return result

    def _check_hooks(self, node: fx.Node, module: nn.Module, call: Callable[..., Any]) -> None:
        """Hooks of a module that is a node of the graph stay with it; example values are found without them."""
        outer, self.is_executing = self.is_executing, True
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
                found = call(*thaw(node.args), **thaw(node.kwargs))
        except Exception:  # what a hook does with the data of a tensor
            return
        finally:
            self.is_executing = outer
        if tree_map(_shape_of, found) != tree_map(_shape_of, node.meta["value"]):
            raise CaptureError(
                "a forward hook changes the shape of a result",
                where=self.location(),
                remedy="do that in the forward pass",
            )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.is_executing else self.read(attr_val)

    def read(self, value: Any) -> Any:
        """A proxy for a parameter or a buffer, however the model came by it (`next(self.parameters())`)."""
        if not isinstance(value, torch.Tensor):
            return value
        if not self._tensors:  # the base class looks through all of them every time
            known = (*self.root.named_buffers(), *self.root.named_parameters())
            self._tensors = {id(tensor): name for name, tensor in known}
        name = self._tensors.get(id(value))
        if name is None:
            return value
        if name not in self._read:  # not the base class's cache: what is taken back must go from it
            self._read[name] = self.create_proxy("get_attr", name, (), {})
        return self._read[name]

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if kind in _PLAIN:  # most arguments are, and the base class asks a dozen questions first
            return a
        if kind in (list, tuple):
            return kind(self.create_arg(x) for x in a)
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Proxy:
        if kind == "call_function" and not args and "input" in kwargs and _takes_input_first(target, kwargs):
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)  # where rules look for it
        if isinstance(kwargs.get("out"), fx.Proxy):
            raise CaptureError("out= is not supported", where=self.location(), remedy="use the result instead")
        if kind == "call_method" and target in _RESHAPING and type(args[0]) is ExampleProxy:
            # the proxy stands for the same tensor in its new shape
            args[0].node = self.create_proxy(kind, target.removesuffix("_"), args, kwargs).node
            return args[0]
        asked, self.asked = self.asked, []
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        if asked:
            self._forget_what_was_parsed(node, asked)
        if kind == "placeholder":
            node.meta["value"] = self._inputs[target]
        elif kind not in ("output", "get_attr"):
            node.meta["value"] = self._run(node)
        rule = function_rule(target) if kind == "call_function" else None
        if rule is not None and rule.returns_input(node, None, self._training):
            node.meta[SAME] = True
        if kind not in ("placeholder", "output"):
            node.meta["path"] = self._path
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


_RESHAPING = ("unsqueeze_", "squeeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
"""Methods that give a tensor another shape."""

_PLAIN = (int, float, bool, str, type(None))


def _shape_of(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else None


def _takes_input_first(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether `input` is the name of a function's first parameter."""
    if isinstance(function, types.FunctionType):
        return next(iter(inspect.signature(function).parameters)) == "input"
    return "condition" not in arguments  # what is built into torch has no signature, but only `where` differs


def _carries_state(old: torch.Tensor, new: Any) -> bool:
    """Whether a tensor seems to be replaced by what it is in the next forward pass: not by itself in another place or
    type, or by one of another shape."""
    if isinstance(new, torch.Tensor):
        return new is not old
    if not isinstance(new, ExampleProxy) or new.node.target in ("to", "type", "type_as", "float", "double", "half"):
        return False
    return bool(old.numel()) and isinstance(new.example, torch.Tensor) and new.example.shape == old.shape


def _state_error(name: str, where: str) -> CaptureError:
    return CaptureError(
        f"the tensor {name!r}, which is no buffer, is changed from one forward pass to the next",
        where=where,
        remedy="register it as a buffer",
    )


def _assigning(assign: Callable[[nn.Module, str, Any], None]) -> Callable[[nn.Module, str, Any], None]:
    """`module.buffer = value` as a change of the buffer that the module has; a proxy cannot become one."""

    def call(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in module._buffers:
            buffer = getattr(module, name)
            changed = value.node.target in INPLACE_OPERATORS and value.node.args[0] is buffer.node
            if not changed:
                buffer.copy_(value)
            return
        old = vars(module).get(name)
        if isinstance(old, torch.Tensor) and _carries_state(old, value):
            raise _state_error(name, type(module).__name__)
        assign(module, name, value)

    return call


def _walk_traceback(error: BaseException) -> list[tuple[Any, int]]:
    frames: list[tuple[Any, int]] = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames
