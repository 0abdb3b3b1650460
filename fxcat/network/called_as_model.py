"""A network with gates is called as the model that it was made from: its forward, its methods, its attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.decorators import skip
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from fxcat.errors import InputError
from fxcat.network.apart import call_whole
from fxcat.network.ddp import Wrappers
from fxcat.network.gates import SAMPLES, GateSamples, GateVector
from fxcat.network.methods import Methods, Turns
from fxcat.network.program import Program
from fxcat.network.weight_checks import check_whole

_PLAIN = "fxcat draws gates in plain Python: compile without fullgraph=True, the network is one graph anyway"


def _around(method: Callable[..., Any]) -> Any:
    """A method that torch.compile leaves as it is, unlike the network that it calls: compiled code of it would be made
    anew for every structure and mode, so often that torch gives up, and with it whatever it calls."""
    found: Any = skip(method)
    found._torchdynamo_disable_msg = _PLAIN
    return found


# a random generator and generated code: torch.compile shall see the network alone
_apart: Any = torch.compiler.disable(reason=_PLAIN)


class CalledAsModel(nn.Module):
    """What `GatedModule` inherits. Every pass, of `forward` or of another method, has gates of its own draw.

    Modules, parameters, buffers and hooks that are registered on it are registered on the model inside: they are in
    what `finalize` returns."""

    gate_vector: GateVector
    network: nn.Module
    program: Program
    wrappers: Wrappers
    _methods: Methods
    _turns: Turns

    def install(self) -> None:
        """Make the graph the network's `forward`, unless it is."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("network")
            if network is None or name.startswith("__"):
                raise
        value = getattr(network, name)
        if getattr(value, "__self__", None) is not network:
            return value
        self.install()  # generated classes have methods of their own
        return self._gated(getattr(network, name))

    def _is_own(self, name: str) -> bool:
        """Whether an attribute is not the model's; before it is made all are."""
        own = self.__dict__.get("_own")
        return own is None or name in own or hasattr(type(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_own(name):
            super().__setattr__(name, value)
        elif isinstance(value, nn.Module | nn.Parameter) or hasattr(self.network, name):
            setattr(self.network, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.network, name)

    # what is registered here is the model's, and stays where the gates leave

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if self._is_own(name):  # put in its place again, by what replaces modules inside (SyncBatchNorm)
            super().add_module(name, module)
        else:
            self.network.add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self.network.register_parameter(name, param)

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        self.network.register_buffer(name, tensor, persistent)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self.network.register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self.network.register_forward_hook(*args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self.network.register_full_backward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self.network.register_full_backward_hook(*args, **kwargs)

    def _gated(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the model that finds this network, with its gates, where it calls `self` or `self.forward`."""
        network = self.network

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._methods.is_inside:  # called by another one
                return method(*args, **kwargs)
            said = f"the model's method {method.__name__}"
            with self._methods.entered(network, self._run):
                return call_whole(method, args, kwargs, of=network, layers=self.program.layers, said=said)

        return call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)

    @_around
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `forward` does, whatever signature it shows."""
        return self._run(self.network, args, kwargs)

    @_around
    def _run(self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.training:
            with self._turns:
                return self._pass(network, args, kwargs)
        return self._pass(network, args, kwargs)

    @_around
    def _pass(self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._fill((*args, *kwargs.values()))
        try:
            return network(*args, **kwargs)
        finally:
            self._clear()

    @_apart
    def _fill(self, arguments: tuple[Any, ...]) -> None:
        """Give the gates values for a pass."""
        values = self._draw(arguments)
        self._samples.fill(values, self.network)

    @_apart
    def _clear(self) -> None:
        self._samples.clear()

    @property
    def _samples(self) -> GateSamples:
        samples = self.network.get_submodule(SAMPLES)
        assert isinstance(samples, GateSamples)
        return samples

    def _draw(self, arguments: tuple[Any, ...]) -> torch.Tensor:
        if "_is_replica" in self.__dict__:
            raise InputError(
                "nn.DataParallel runs copies of the network, of which each would draw gates of its own",
                remedy="train through torch.nn.parallel.DistributedDataParallel(net), a process per device",
            )
        self.install()
        self.wrappers.note()
        if is_traceable_wrapper_subclass(self.gate_vector.theta):
            check_whole(self)
        values: torch.Tensor = self.gate_vector(arguments)
        weight = next(self.network.parameters(), values)
        if not weight.is_meta:
            return values
        if any(isinstance(a, torch.Tensor) and not a.is_meta for a in tree_leaves(arguments)):
            check_whole(self.network)
        return values.to(weight.device)
