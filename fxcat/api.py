"""The functions that users call: `prepare`, `finalize`, `find_bypasses` and `add_bypasses`."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxcat.checks import (
    as_names,
    check_choice,
    check_flag,
    check_integer,
    check_module,
    check_path,
    shown,
)
from fxcat.choosing.alignment import limits_with_blocks, note_of_blocks
from fxcat.choosing.widths import check_multiples
from fxcat.errors import CaptureError, InputError, NothingToPruneError
from fxcat.gated import GatedModule, Policy
from fxcat.gated_checks import check_gated
from fxcat.network.gates import SAMPLES
from fxcat.network.limits import GateLimits, Limits, check_limits
from fxcat.network.weight_checks import check_whole
from fxcat.passes import verification
from fxcat.passes.bypasses.insert import with_bypasses
from fxcat.passes.bypasses.place import Bypasses, place_bypasses
from fxcat.passes.capture.capture import Captured, capture
from fxcat.passes.capture.default_inputs import example_candidates
from fxcat.passes.compile import build
from fxcat.passes.each_step import EachStep
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.passes.graph.nested import leaves
from fxcat.passes.work import Options
from fxcat.summary import found_in_words

A = TypeVar("A")
R = TypeVar("R")
EACH_STEP = "each step"
_GATES = {"units+layers": (True, True), "units": (True, False), "layers": (False, True)}


@torch.inference_mode(False)  # within that mode nothing could be trained
def prepare(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    gates: Literal["units+layers", "units", "layers"] = "units+layers",
    policy: Policy = "bernoulli",
    ignore: Sequence[str] = (),
    round_to: int | None = None,
    limits: Mapping[str, Limits] | None = None,
    gate_inputs: bool = False,
    python: Sequence[str] = (),
    verify: bool | Literal["each step"] | None = None,
    dump: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> GatedModule:
    """Capture a model, find what can be removed from it, and insert gates. The model itself is not touched.

    `example_inputs`: a tensor (N, C, H, W), or a tuple with the arguments of `forward`, which may be dicts, tuples or
    lists of tensors; only shapes and types matter, unless the model's own Python cannot be traced. Found from the model
    if not given. `gates`: what may be removed. `policy`: how it is decided: `"bernoulli"` samples gates (arXiv
    2411.09127), `"ratio"` learns how much of every group remains (2010.12021), and has no gates for layers. `ignore`:
    paths of modules that stay as they are, with all they hold.
    `round_to`: training and `one_shot` leave multiples of so many channels in every group that has enough of them; by
    default of 8 where the model has depthwise or other grouped convolutions (1: any width), which inference libraries
    compute slowly at other widths.
    `limits`: how far groups and sections may shrink, by patterns (`fnmatch`) of their names in `summary()`, for example
    `{"*": Limits(keep=True), "layer4.*": Limits(least=8)}`; what a later pattern sets overrides earlier ones.
    `gate_inputs`: features of inputs of shape (N, features) are units too; the final network selects, at its entry,
    those that are left. `python`: paths of modules (`""`: the model) whose Python is run as it is, so that it can
    decide by attributes that are set later, such as `export`; the modules that it calls are captured, each by itself.
    `verify`: run the model and the network on the example, in `eval()` and in `train()`, and raise `CaptureError` if
    with all gates open they do not compute the same; by default where that is cheap (up to 0.4 G MACs in a forward
    pass). `"each step"`: after every step of the compiler that rewrites the graph; the error names the step at fault.
    `dump`: a folder that receives a text after every step; the environment variable `FXCAT_DUMP` names one for all that
    is prepared, shrunk and finalized. `verbose`: print what was found and what is left alone, and why.

    Raises `InputError`, `CaptureError` (module path, source line, reason) and `NothingToPruneError`.
    """
    check_module(model, "prepare()")
    _check_modules(model)
    check_choice(gates, "gates", _GATES)
    check_choice(policy, "policy", get_args(Policy))
    remedy = "give a whole number of channels, for example 8"
    check_integer(round_to, "round_to", least=1, kind="width", remedy=remedy, optional=True)
    check_limits(limits)
    for name, flag in (("gate_inputs", gate_inputs), ("verbose", verbose)):
        check_flag(flag, name)
    if not (isinstance(verify, str) and verify == EACH_STEP):
        check_flag(verify, "verify", optional=True)
    check_path(dump, "dump", optional=True)
    ignore, python = _checked_names(model, ignore), _checked_names(model, python, "python")
    units, sections = _GATES[gates]
    if policy == "ratio":
        if not units:
            raise InputError(f'policy="ratio" cannot prune gates={gates!r}', remedy="choose gates='units'")
        sections = False
    limits = {"*": Limits(multiple_of=round_to), **(limits or {})} if (round_to or 1) > 1 else limits or {}
    looking = {"watch": (EachStep,) if verify == EACH_STEP else (), "dump": dump}
    net, example = _build(model, example_inputs, Options(units, sections, ignore, gate_inputs, python), looking)
    if not net.structure.cost.macs and any(isinstance(x, torch.Tensor) and not x.numel() for x in leaves(example)):
        raise InputError("the example inputs are empty: no costs can be told", remedy="give at least one example")
    net.policy = policy
    net.limits = GateLimits.resolved(limits, net.structure.groups, net.structure.sections)
    if net.limits.aligned:
        check_multiples(net)
    unasked = round_to is None and net.program.has_grouped_convolutions(net.network)
    if unasked:
        net.limits = limits_with_blocks(net)
    unverified = False
    if verify or (verify is None and net.structure.cost.macs * _examples(example) <= verification.CHEAP):
        unverified = not verification.verify_open(net, model, example)
        if verify and unverified:
            raise InputError(
                f"nothing can be verified: {type(model).__name__} itself does not run on the example inputs",
                remedy="give inputs that it takes, or verify=False",
            )
    if verbose:
        lines = [
            found_in_words(net),
            *([note_of_blocks(net)] if unasked and net.limits.aligned else []),
            *(["  not verified: the model itself does not run on the example"] if unverified else []),
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    return net


def _check_modules(model: nn.Module) -> None:
    """Refuse what has no Python, or no shapes, that could be captured."""
    if any(SAMPLES in names for names in (vars(model), model._modules, model._parameters, model._buffers)):
        raise InputError(
            f"the model has an attribute {SAMPLES!r}, where its gates would be", remedy="give it another name"
        )
    for path, module in model.named_modules():
        where = path or type(model).__name__
        if isinstance(module, GatedModule):
            remedy = "to prune it further: prepare(finalize(net), example_inputs)"
            raise InputError("it has gates already", where=where, remedy=remedy)
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError("a scripted module cannot be captured", where=where, remedy="give the module it came from")
        if isinstance(module._modules.get("_orig_mod"), nn.Module):
            raise InputError("it is compiled", where=where, remedy="prepare the module itself, and compile the result")
        own = vars(module).get("forward")
        if own is not None and getattr(own, "__self__", None) is not module:
            remedy = "assign a method, types.MethodType(function, module), or make a subclass"
            raise InputError(
                "its forward was replaced by a function that is no method of it", where=where, remedy=remedy
            )
        weights = [p for p in module._parameters.values() if p is not None]
        if any(is_lazy(p) for p in weights):
            raise InputError("its weights have no shape yet", where=where, remedy="call the model once")
        if any(p.is_inference() for p in weights):
            remedy = "make the model outside of torch.inference_mode()"
            raise InputError(
                "its weights were made in inference mode, and cannot be trained", where=where, remedy=remedy
            )
    check_whole(model)


def _examples(inputs: Any) -> int:
    """Examples in the example inputs, of which costs are told for one."""
    tensors = [x for x in leaves(inputs) if isinstance(x, torch.Tensor) and x.dim() > 1]
    return max((len(x) for x in tensors), default=1)


def _build(model: nn.Module, example_inputs: Any, options: Options, looking: dict[str, Any]) -> tuple[GatedModule, Any]:
    """The network, and the example inputs that it was made with. `looking`: see `build`."""
    if example_inputs is not None:
        return build(model, example_inputs, options, **looking), example_inputs

    def attempt(candidate: tuple[bool, Any]) -> tuple[GatedModule, Any]:
        in_regions, inputs = candidate
        return build(model, inputs, options, in_regions=in_regions, **looking), inputs

    return _first_that_fits(attempt, itertools.product((False, True), example_candidates(model)), "prepare")


def _first_that_fits(attempt: Callable[[A], R], candidates: Iterable[A], function: str) -> R:
    """What `attempt` makes of the first candidate that it does not refuse; `function`: was given no example inputs.

    The error is that of the likeliest candidate, the first.
    """
    refused: list[CaptureError | InputError] = []
    for candidate in candidates:
        try:
            return attempt(candidate)
        except (CaptureError, InputError) as error:
            refused.append(error)
    first = refused[0]
    what = f"none of the example inputs that were tried fits; with the first: {first.what}"
    raise type(first)(what, where=first.where, remedy=f"call fxcat.{function}(model, example_inputs)") from first


def _checked_names(model: nn.Module, paths: Iterable[str], argument: str = "ignore") -> tuple[str, ...]:
    """Paths of modules that an argument names."""
    names = as_names(paths, argument)
    known = [path for path, _ in model.named_modules(remove_duplicate=False)] if names else []
    unknown = [path for path in names if path not in known]
    if unknown:
        raise InputError(
            f"{argument}= names {shown(unknown[0])}, which is no module of {type(model).__name__}",
            remedy="use the names of model.named_modules()",
        )
    return names


def finalize(net: GatedModule, *, verify: Any = None) -> nn.Module:
    """The plain, smaller module: what is closed (θ ≤ ½) is gone, and no gate is left. `net` stays as it is.

    The result computes what `net.eval()` computes; it is an instance of the model's own class (with a `forward` of its
    own), on the same device, in the same train or eval mode. Names and `state_dict` keys of what is left are unchanged.
    `verify`: inputs (a tensor, a tuple with the arguments of `forward`, or a dict of them) on which that is checked.

    Warns while a `GateController` is still training the gates, and if the network was trained without one.

    Raises `InputError` for anything but a `GatedModule`, `PlanError` if a group that is needed has no unit left, and
    `VerificationError` if the result computes something else than `net.eval()` on the inputs to verify it.
    """
    check_gated(net, "finalize()")
    if net.unfinished is not None:
        warnings.warn(
            f"{net.unfinished} has not ended{_stands(net)}: what is not decided stays; call controller.finish() before "
            "finalize()",
            stacklevel=2,
        )
    elif net.led.is_fresh and net.gate_vector.draws.reached and _is_untouched(net):
        warnings.warn(
            "the network was trained, but nothing decided on its gates: all of it stays; train it with fxcat.fit, a "
            "GateController, or the GateCallback of your trainer (fxcat.integrations)",
            stacklevel=2,
        )
    with torch.inference_mode(False):  # what is made within that mode cannot be trained
        small = net.finalized()
    if verify is not None:
        verification.verify(small, net, verify)
    return small


def _is_untouched(net: GatedModule) -> bool:
    """Whether nothing has left a network, and no gate is to close."""
    return bool((net.gate_vector.theta == 1).all()) and not net.recipe[-1].closed


def _stands(net: GatedModule) -> str:
    """How far what trains a network has come, as far as is known."""
    by = net.led.by
    return "" if by is None else f" (optimizers have made {by.steps} of {by.total_steps} steps)"


def find_bypasses(model: nn.Module, example_inputs: Any = None, *, ignore: Sequence[str] = ()) -> Bypasses:
    """What `add_bypasses` would put where, what it would cost, and which layers it would leave alone, and why.

    The arguments and errors are those of `add_bypasses`; that there is nothing to bypass is no error here.
    """
    return _find_bypasses(model, example_inputs, ignore)[1]


@torch.inference_mode(False)
def add_bypasses(
    model: nn.Module, example_inputs: Any = None, *, ignore: Sequence[str] = (), verbose: bool = True
) -> nn.Module:
    """A copy of a plain network with residual connections round its nonlinear sections, so that layers can be pruned.

    Guenter and Sideris, Concurrent Training and Layer Pruning of Deep Neural Networks (arXiv 2406.04549). A section is
    a convolution or linear layer with what follows up to its nonlinearity. To its result is added what enters it where
    the shapes agree; otherwise its average over windows like those of the section, mapped by a 1×1 convolution or
    linear layer if the number of channels changes. There is no bypass where that map would cost as much as the section,
    round the last layer, or where there is a residual connection already. The network computes something else then: it
    is to be trained from scratch, by `prepare` and `fit`, as any other. A section that is closed leaves its bypass.

    `example_inputs`: as for `prepare`; found from the model if not given. `ignore`: paths of modules that get none.
    `verbose`: print what goes where. The result has the model's class, device and mode, its parameters under their
    names (so `load_state_dict(…, strict=False)` takes what was saved of the plain network), and what the bypasses
    compute under `bypasses`, with random weights.

    Raises `InputError`, `CaptureError` where the model cannot be traced as a whole, and `NothingToPruneError` if no
    section can be bypassed.
    """
    check_flag(verbose, "verbose")
    captured, bypasses = _find_bypasses(model, example_inputs, ignore)
    if not bypasses.found:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in bypasses.left[:5])
        raise NothingToPruneError(
            f"{captured.name} has no section to bypass" + (f" ({reasons})" if reasons else ""),
            remedy="prepare the model itself: its units, and the sections that have bypasses, can be pruned",
        )
    if verbose:
        sys.stdout.write(bypasses.describe(8) + "\n")
    return with_bypasses(model, captured, bypasses)


def _find_bypasses(model: nn.Module, example_inputs: Any, ignore: Sequence[str]) -> tuple[Captured, Bypasses]:
    check_module(model, "add_bypasses()")
    if isinstance(model, GatedModule):
        raise InputError("the model has gates already", remedy="add bypasses first, then call fxcat.prepare")
    _check_modules(model)
    ignore = _checked_names(model, ignore)
    captured = _whole(model, example_inputs)
    return captured, place_bypasses(captured, meta_twin(model), ignore)


def _whole(model: nn.Module, example_inputs: Any) -> Captured:
    """Capture a model that can be traced as a whole."""

    def attempt(inputs: Any) -> Captured:
        return capture(model, inputs, in_regions=False)

    try:
        if example_inputs is not None:
            return attempt(example_inputs)
        return _first_that_fits(attempt, example_candidates(model), "add_bypasses")
    except CaptureError as error:
        remedy = "add bypasses to the part of the model that is plain, and put the result in its place"
        raise CaptureError(error.what, where=error.where, remedy=remedy) from error
