"""Finding regions: run a model's Python once, and capture every call that can be traced.

In: a model whose `forward` cannot be traced as a whole, and example inputs. Out: its `Regions`. Tensors of the right
shapes take the place of what a region would compute; so little more than the code between the regions is executed,
unless that decides by values: then all is executed. That code is watched: what it does with a region's results, other
than to pass them on, pins their units.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.regions import Call, Pin, Regions, Tracing
from fxcat.passes.capture.watch_tensors import Watch, is_wrapped, unwrapped
from fxcat.passes.graph.copy_model import meta_twin, share
from fxcat.passes.graph.meta import HOOKED, PATH, VALUE, value_of
from fxcat.passes.graph.nested import CONSTANTS, Slot, fill, leaves
from fxcat.passes.rules.base import Zero
from fxcat.passes.rules.boundary import NO_REGION, region_output
from fxcat.passes.rules.execute import infer
from fxcat.passes.rules.leaves import is_leaf, is_of_torch
from fxcat.passes.rules.table import has_hooks, module_rule


class _CalledAgain(Exception):
    """A region was called in another way than before, or something inside it was called by itself."""


class _Decides(Exception):
    """Code that cannot be captured decides by the values of tensors, after some were stand-ins."""


def find_regions(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Tracing, python: Sequence[str] = ()
) -> Regions:
    """Run `model` (its tensors are not changed) and capture what can be captured.

    `python`: paths of modules that are neither captured as a region nor as a part of one.

    Raises `CaptureError` when the model does not run on the example inputs.
    """
    repeated: set[str] = set()
    in_full = False
    while True:
        run = _Run(model, trace, repeated, python, in_full=in_full)
        try:
            return run.execute(args, kwargs)
        except _CalledAgain as again:
            repeated.add(str(again))
        except _Decides:
            in_full = True
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model does not run on the example inputs: {type(error).__name__}: {error}",
                remedy="check that the model itself accepts them, in eval mode",
            ) from error


class _Run:
    """One execution of a model's Python."""

    def __init__(
        self, model: nn.Module, trace: Tracing, repeated: set[str], python: Sequence[str], *, in_full: bool
    ) -> None:
        """`in_full`: regions compute what they return."""
        self._in_full = in_full
        self._has_stand_ins = False
        self.found = Regions()
        self.paused = False
        self.macs = 0
        self._model = model
        self._runner = share(model).eval()
        self._trace = trace
        self._repeated = repeated
        self._python = python
        self._paths = {id(m): path for path, m in self._runner.named_modules()}
        self._known: dict[int, tuple[torch.Tensor, fx.Node, int]] = {}
        self._captured: dict[str, tuple[int, Call]] = {}
        self._executed: set[str] = {""}
        self._read: set[str] = set()
        """Paths of modules of which Python has read a weight (a table of queries is never called)."""
        self._places: list[str] = []
        self._generator = torch.Generator().manual_seed(0)

    def execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Regions:
        original, attribute = nn.Module.__call__, nn.Module.__getattr__

        def read(module: nn.Module, name: str) -> Any:
            value = attribute(module, name)
            if isinstance(value, nn.Parameter) and not self.paused and id(module) in self._paths:
                self._read.add(self._paths[id(module)])
            return value

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self._paths.get(id(module))
            if path is None or self.paused:
                return original(module, *args, **kwargs)
            if not has_hooks(module) or is_leaf(module):
                return self._call(path, module, args, kwargs)

            def forward(*args: Any, **kwargs: Any) -> Any:
                del module.forward
                return self._call(path, module, args, kwargs)

            module.forward = forward  # hooks are run with what the region takes and returns
            return original(module, *args, **kwargs)

        self._own_tensors(self._runner)
        patched = patch.multiple(nn.Module, __call__=call, __getattr__=read)
        with torch.no_grad(), torch.random.fork_rng(), patched, Watch(self):
            result = self._runner.forward(*args, **kwargs)
        for tensor in _tensors(result):
            self.pin(tensor, None, "output of the network")
        self._pin_borders()
        self.found.macs = self.macs
        self.found.graph.output(())
        return self.found

    def _pin_borders(self) -> None:
        """Code that did not run this time may use whatever a region returns, if there is any such code."""
        idle = [
            path
            for path, module in self._runner.named_modules()
            if any(p is not None for p in module._parameters.values())
            and not any(path == c or path.startswith(c + ".") for c in self._captured)
            and path not in self._executed | self._read
            and not self._is_used_whole(path)
        ]
        if idle:
            reason = f"{idle[0]!r} did not run on the example inputs, and may use it"
            for node in list(self.found.graph.nodes):
                if node.target is region_output:
                    self.found.pins.append(Pin(node, None, reason))

    def _is_used_whole(self, path: str) -> bool:
        """Whether a module is a part of one of torch.nn that ran: that uses what it holds without calling it."""
        outer = [p for p in self._executed if p and path.startswith(f"{p}.")]
        return any(is_of_torch(self._runner.get_submodule(p)) for p in outer)

    def _call(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._pause():
            try:
                self._check_plain(path, module, (args, kwargs))
                call = Call.of(module, args, kwargs)
                return self._leaf(path, module, call) if is_leaf(module) else self._region(path, module, call)
            except CaptureError as error:
                if any(True for _ in module.parameters()) and not isinstance(error, _NotTried):
                    self.found.refused[path] = error
        self._executed.add(path)
        self._own_tensors(module)
        self._places.append(path)
        result = module.forward(*args, **kwargs)
        self._places.pop()
        return result

    def _check_plain(self, path: str, module: nn.Module, given: Any) -> None:
        """Raises `CaptureError` in a call with what a transform makes of tensors, or with weights that are not those
        of the module: what it reads is pinned, and its Python runs."""
        wrapped = [t for t in leaves(given) if is_wrapped(t)]
        replaced = [n for n, p in module.named_parameters() if not isinstance(p, nn.Parameter) or is_wrapped(p)]
        reason = "it is called within a transform of torch.func" if wrapped else "it is called with other weights"
        if not wrapped and not replaced:
            return
        for tensor in leaves(given):
            if isinstance(tensor, torch.Tensor):
                self.pin(unwrapped(tensor), None, f"{path}: {reason}")
        raise CaptureError(reason, where=path)

    def _own_tensors(self, module: nn.Module) -> None:
        """The module's Python is executed: what it may change in place must not be the caller's."""
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().clone(), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()

    def _region(self, path: str, module: nn.Module, call: Call) -> Any:
        weights = any(True for _ in module.parameters())
        if not call.is_plain or not (weights or any(id(t) in self._known for t in call.tensors)):
            raise _NotTried("its arguments are not tensors and flags", where=path)
        if any(f"{p}.".startswith(f"{path}.") for p in self._python):
            raise _NotTried("its Python is to be run as it is", where=path)
        if path in self._repeated:
            raise CaptureError("it is called in several ways, or by parts, by code that cannot be captured", where=path)
        sources = [self._source(t) for t in call.tensors]
        if path in self._captured and self._captured[path][1].is_like(call):
            number = self._captured[path][0]
            results = self.found.repeat(number, sources)
            return self._result(module, call, self.found.regions[number].results[0], results)
        self._check_overlap(path)
        if any(p.startswith(path + ".") for p in (*self._captured, *self._executed)):
            raise CaptureError("its parts were called by themselves before", where=path)
        traced = self._trace(self._model.get_submodule(path), call)
        if not weights and traced.guards:
            raise _NotTried("its branches depend on sizes", where=path)
        self._captured[path] = len(self.found.regions), call
        results = self.found.add(path, call, traced, sources)
        return self._result(module, call, traced.results[0], results)

    def _result(self, module: nn.Module, call: Call, pattern: Any, nodes: list[fx.Node]) -> Any:
        """What a region returns: what it computes, if that matters."""
        if not self._in_full:
            return fill(pattern, [self._stand_in(n) for n in nodes])
        for part in module.modules():
            self._own_tensors(part)
        args, kwargs = call.filled(call.tensors)
        values = [t.detach() for t in leaves(module.forward(*args, **kwargs)) if isinstance(t, torch.Tensor)]
        for value, node in zip(values, nodes, strict=True):
            self._know(value, node)
        return fill(pattern, values)

    def _check_overlap(self, path: str) -> None:
        for region in self._captured:
            if path == region or path.startswith(region + "."):
                raise _CalledAgain(region)

    def _leaf(self, path: str, module: nn.Module, call: Call) -> Any:
        """A node for a module that is called by code that was not captured: gates cannot be folded into it."""
        args, kwargs = call.filled(call.inputs)
        value = infer(module, args, kwargs)
        if value is None:
            try:
                value = meta_twin(module).forward(*args, **kwargs)
            except Exception as error:
                raise CaptureError(f"its result's shape cannot be found: {error}", where=path) from error
        strange = [a for a in leaves(call.arguments) if not isinstance(a, (Slot, *CONSTANTS))]
        if not isinstance(value, torch.Tensor) or strange:
            raise CaptureError("its arguments or results are not tensors", where=path)
        self._check_overlap(path)
        self._executed.add(path)
        node_args, node_kwargs = call.filled([self._source(t) for t in call.tensors])
        node = self.found.graph.call_module(path, node_args, node_kwargs)
        VALUE.set(node, value)
        PATH.set(node, path)
        rule = module_rule(module)
        if has_hooks(module):
            HOOKED.set(node, True)
        if rule is None or has_hooks(module) or rule.zero_at(node) is Zero.BREAKS:
            self.found.pins.append(Pin(node, None, "it is called by code that cannot be captured"))
        returned = self.found.node(region_output, (node, NO_REGION, 0, 0), value)
        return self._result(module, call, Slot(0), [returned])

    def _source(self, tensor: torch.Tensor) -> fx.Node:
        """The node that a tensor is the value of, or a placeholder for what comes from elsewhere."""
        known = self._known.get(id(tensor))
        if known is not None:
            if known[2] != tensor._version:
                self.pin(tensor, None, "changed in place by code that cannot be captured")
            return known[1]
        node = self.found.placeholder(torch.empty_like(tensor, device="meta"))
        self._know(tensor, node)
        return node

    def _stand_in(self, node: fx.Node) -> torch.Tensor:
        """A tensor for Python to go on with."""
        value = value_of(node)
        shape, few = value.shape, [n if a == 1 else 1 for a, n in enumerate(value.shape)]
        if value.is_floating_point():
            drawn = shape if value.numel() <= _FEW else few
            result = torch.randn(drawn, generator=self._generator, dtype=value.dtype).expand(shape).clone()
        else:
            result = torch.zeros(shape, dtype=value.dtype)
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        result = result.to(device)
        self._know(result, node)
        self._has_stand_ins = True
        return result

    def decides(self) -> None:
        if self._has_stand_ins:
            raise _Decides

    def _know(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._known[id(tensor)] = tensor, node, tensor._version

    def is_known(self, tensor: Any) -> bool:
        return id(tensor) in self._known

    def pin(self, tensor: torch.Tensor, axis: int | None, reason: str) -> None:
        known = self._known.get(id(tensor))
        if known is None or known[1].op == "placeholder":
            return
        if not any(p.node is known[1] and p.axis in (None, axis) for p in self.found.pins):
            self.found.pins.append(Pin(known[1], axis, reason))

    @property
    def place(self) -> str:
        return self._places[-1] if self._places else type(self._model).__name__

    @contextmanager
    def _pause(self) -> Generator[None]:
        outer, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = outer


_FEW = 1 << 20
"""Up to so many entries a stand-in is random everywhere, above along its channels only."""


class _NotTried(CaptureError):
    """A module that is no candidate: nothing to report."""


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """Tensors in a value: in containers, and in attributes of objects."""
    for leaf in leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth and not isinstance(leaf, type | nn.Module) and hasattr(leaf, "__dict__"):
            yield from _tensors(list(vars(leaf).values()), depth - 1)
