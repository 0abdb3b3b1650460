"""Whether two networks compute the same: run both on the same inputs, with the same random numbers.

The networks and the random generators are afterwards what they were: copies run, which share the parameters. A
difference that rounding explains is none: where a network is as far from itself when every layer's result is
rounded differently (a detector with two boxes of the same score), nothing can be said.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxcat.checks import check_module
from fxcat.errors import CaptureError, InputError, VerificationError
from fxcat.gated import GatedModule
from fxcat.network.gates import SAMPLES, GateSamples
from fxcat.passes.capture.default_inputs import argument_forms
from fxcat.passes.codegen.install import is_silent
from fxcat.passes.graph.copy_model import private_copy
from fxcat.passes.graph.nested import map_leaves
from fxcat.utils.random_state import random_states, set_random_states

CHEAP = 400_000_000
"""MACs of a forward pass that takes some hundredths of a second: so long as a capture."""

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by position and by name."""

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
_REMEDY = "ignore= the module at fault, and report it; verify=False skips this check"


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest one between two results: by how much relative to max(1, max |expected|), and in which part."""

    size: float = 0.0
    where: str = ""
    text: str = ""


def verify_open(net: GatedModule, model: nn.Module, example_inputs: Any) -> tuple[str, ...]:
    """Check that with all gates open a network computes what its model computes, in `eval()` and in `train()`.

    Returns the modes in which the model itself runs on the example. Raises `CaptureError` where the network does not
    run, or gives or leaves behind (running statistics) something else.
    """
    with undisturbed():
        found = Runner(net, torch.ones_like(net.gate_vector.theta.detach()))
        return compare(found, Runner(model), call_of(model, example_inputs), type(model).__name__)


def compare(
    found: Runner, expected: Runner, call: Call, name: str, when: str = "with all gates open"
) -> tuple[str, ...]:
    """Check that two networks compute the same in `eval()` and in `train()`, and leave the same behind.

    Returns the modes in which the expected one runs on the example. `name`, `when`: what is said of the other one in
    the `CaptureError` that is raised where it does not, or computes something else.
    """
    checked: list[str] = []
    for mode in ("eval", "train"):
        training = mode == "train"
        try:
            wanted = expected(call, training)
        except Exception:
            continue  # it takes other inputs in this mode, or other values
        try:
            given = found(call, training)
        except Exception as error:
            what = f"{when} it does not run in {mode}(): {type(error).__name__}: {error}"
            raise CaptureError(what, where=name, remedy=_REMEDY) from error
        known, own = expected.buffers(), found.buffers()
        saved = found.module.state_dict().keys()
        # a buffer that is not saved, and has another shape now, is made anew in every pass
        left = {k: v for k, v in known.items() if k in own and (k in saved or v.shape == own[k].shape)}
        worst = max(
            difference(given, wanted),
            difference({key: own[key] for key in left}, left, "state"),
            key=lambda d: d.size,
        )
        if worst.size > _tolerance(expected.module) and not _is_rounding(worst, wanted, expected, call, training):
            place = _first_place(found, expected, call, training)
            what = f"{when} it computes something else in {mode}(): {worst.text}"
            raise CaptureError(what, where=f"{name}, first in {place}" if place else name, remedy=_REMEDY)
        checked.append(mode)
    return tuple(checked)


def verify(found: nn.Module, expected: nn.Module, inputs: Any) -> float:
    """Raise `VerificationError` if two networks do not compute the same in `eval()`; return how far they are apart.

    For example what `finalize` returned and the network with gates, or what `prepare` returned and the model. `inputs`:
    a tensor, a tuple with the arguments of `forward`, or a dict of them. The difference is relative to max(1,
    max |expected|); up to 1e-10 in double and 1e-4 in single precision it is none, nor where rounding explains it.
    Neither network changes.

    Raises `InputError` for inputs on which the expected network itself does not run.
    """
    check_module(found, "verify()")
    check_module(expected, "verify()")
    call = call_of(expected, inputs)
    names = type(found).__name__, type(expected).__name__
    with undisturbed():
        reference = Runner(expected)
        try:
            wanted = reference(call, False)
        except Exception as error:
            what = f"{names[1]} does not run on the inputs: {type(error).__name__}: {error}"
            raise InputError(what, remedy="give inputs that it takes, as to prepare()") from error
        try:
            given = Runner(found)(call, False)
        except Exception as error:
            what = f"{names[0]} does not run where {names[1]} does: {type(error).__name__}: {error}"
            raise VerificationError(what, remedy="report it with the model and the gates") from error
        worst = difference(given, wanted)
        if worst.size > _tolerance(expected) and not _is_rounding(worst, wanted, reference, call, False):
            what = f"{names[0]} computes something else than {names[1]}: {worst.text}"
            raise VerificationError(what, where=worst.where, remedy="report it with the model and the gates")
    return worst.size


class Runner:
    """A copy of a network that can be run, with these gates (by default as they are in `eval()`) if it has any."""

    def __init__(self, module: nn.Module, gates: torch.Tensor | None = None) -> None:
        self._gates = gates
        self._states = random_states()
        if isinstance(module, GatedModule):
            module.install()
            self._gates = module.gate_vector.hard() if gates is None else gates
            module = module.network
        self.module = private_copy(module)

    def __call__(self, call: Call, training: bool) -> Any:
        """What it gives; every time with the same random numbers."""
        set_random_states(self._states)
        self.module.train(training)
        if self._gates is not None:
            samples = self.module.get_submodule(SAMPLES)
            assert isinstance(samples, GateSamples)
            samples.fill(self._gates, self.module)
        args, kwargs = map_leaves(call, lambda a: a.clone() if isinstance(a, torch.Tensor) else a)
        return self.module(*args, **kwargs)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Its running statistics and what else it remembers."""
        return dict(self.module.named_buffers())

    def cast_to(self, call: Call, training: bool) -> set[torch.dtype]:
        """The types of lower precision to which it casts values."""
        with Casts() as casts:
            self(call, training)
        return casts.types

    def observed(self, call: Call, training: bool) -> dict[str, torch.Tensor]:
        """The first result of every layer, in the order of their calls."""
        seen: dict[str, torch.Tensor] = {}

        def note(path: str, result: Any) -> None:
            if isinstance(result, torch.Tensor):
                seen.setdefault(path, result.detach().clone())

        with _hooked(self.module, note):
            self(call, training)
        return seen

    def rounded(self, call: Call, training: bool, seed: int) -> Any:
        """What it gives when every layer's result is rounded differently."""
        generator = torch.Generator().manual_seed(seed)

        def jitter(path: str, result: Any) -> Any:
            if not isinstance(result, torch.Tensor) or not result.is_floating_point():
                return None
            noise = torch.randn(result.shape, generator=generator).to(result)
            return result * (1 + 4 * torch.finfo(result.dtype).eps * noise)

        with _hooked(self.module, jitter):
            return self(call, training)


def difference(found: Any, expected: Any, name: str = "result") -> Difference:
    """How far two results are apart: nested values and objects with tensors in them."""
    given, wanted = dict(_tensors(found, name)), dict(_tensors(expected, name))
    if given.keys() != wanted.keys():
        lacks, has = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        text = f"it lacks {lacks[0]}" if lacks else f"it has {has[0]} besides"
        return Difference(float("inf"), (lacks + has)[0], text)
    parts = (_part(where, given[where], y) for where, y in wanted.items())
    return max(parts, key=lambda d: d.size, default=Difference())


def _part(where: str, x: torch.Tensor, y: torch.Tensor) -> Difference:
    infinite = float("inf")
    if x.shape != y.shape:
        return Difference(infinite, where, f"{where} has the shape {tuple(x.shape)}, not {tuple(y.shape)}")
    if x.dtype != y.dtype:
        return Difference(infinite, where, f"{where} holds {x.dtype}, not {y.dtype}")
    if torch.equal(x, y) or not y.numel():
        return Difference()
    if not y.is_floating_point() and not y.is_complex():
        return Difference(infinite, where, f"{where} differs in {int((x != y).sum())} of {y.numel()} entries")
    finite = y.isfinite()
    if not torch.equal(x.isfinite(), finite) or not torch.equal(x[~finite].nan_to_num(), y[~finite].nan_to_num()):
        return Difference(infinite, where, f"{where} is not finite in other entries")
    if not bool(finite.any()):
        return Difference()
    scale = max(1.0, float(y[finite].abs().max()))
    size = float((x[finite] - y[finite]).abs().max()) / scale
    return Difference(size, where, f"{where} is off by {size:.1e}, relative to {scale:.3g}")


def _tensors(value: Any, path: str, depth: int = 6) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value.detach()
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}[{key!r}]", depth - 1)
    elif depth and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{path}[{i}]", depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        for key, item in vars(value).items():
            yield from _tensors(item, f"{path}.{key}", depth - 1)
    elif depth and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{path}.{field.name}", depth - 1)


def _is_rounding(found: Difference, wanted: Any, expected: Runner, call: Call, training: bool) -> bool:
    """Whether it computes in a lower precision itself, is about as far from itself when it is rounded differently, or
    gives something else each time."""
    if found.size <= max(map(_of_type, expected.cast_to(call, training)), default=0.0):
        return True
    jumps = [difference(expected(call, training), wanted).size]
    jumps += [difference(expected.rounded(call, training, seed), wanted).size for seed in range(2)]
    return found.size <= 10 * max(jumps)


def _first_place(found: Runner, expected: Runner, call: Call, training: bool) -> str:
    """The first layer that gives something else; empty if there is none, or its results cannot be had."""
    try:
        wanted, given = expected.observed(call, training), found.observed(call, training)
    except Exception:
        return ""
    tolerance = _tolerance(expected.module)
    return next((p for p, y in wanted.items() if p in given and _part(p, given[p], y).size > tolerance), "")


def _tolerance(module: nn.Module) -> float:
    return max(map(_of_type, {p.dtype for p in module.parameters() if p.is_floating_point()} or {torch.float32}))


def _of_type(dtype: torch.dtype) -> float:
    return _TOLERANCES.get(dtype, 8 * torch.finfo(dtype).eps)


class Casts(TorchDispatchMode):
    """Notes to which types of lower precision values are cast."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CASTING and isinstance(result, torch.Tensor) and result.is_floating_point():
            given = next(a for a in reversed(args) if isinstance(a, torch.Tensor))
            if given.is_floating_point() and torch.finfo(given.dtype).eps < torch.finfo(result.dtype).eps:
                self.types.add(result.dtype)
        return result


_CASTING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def call_of(module: nn.Module, inputs: Any) -> Call:
    """The arguments of a call, on the network's device; random values for those that only have a shape."""
    module = module.network if isinstance(module, GatedModule) else module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def on_device(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_meta:
            return leaf.detach().to(device)
        generator = torch.Generator().manual_seed(0)
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(device)
        return torch.zeros(leaf.shape, dtype=leaf.dtype, device=device)

    return map_leaves(argument_forms(module, inputs)[0], on_device)


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """No gradients, no warnings a second time, and random generators that go on from where they were."""
    states = random_states()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_random_states(states)


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Generator[None, None, None]:
    """`hook(path, result)` after every layer that holds no other."""
    handles = [
        part.register_forward_hook(lambda _, __, result, path=path: hook(path, result))
        for path, part in module.named_modules()
        if not part._modules and not isinstance(part, GateSamples) and not is_silent(part)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
