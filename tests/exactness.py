"""The invariants of the compiler (I1–I4), checked on one model; used by the tests and by `benchmarks/exactness.py`."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from differences import (
    DOUBLE_TOLERANCE,
    SINGLE_TOLERANCE,
    Inputs,
    allowed_by_rounding,
    difference,
    drawn,
    fixed_seed,
    well_posed,
)
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fxcat
from fxcat.gated import GatedModule
from fxcat.passes.graph.flops import flop_counter
from fxcat.passes.graph.meta import value_of
from fxcat.passes.graph.nested import fill
from fxcat.passes.rules.boundary import region_input
from fxcat.records import Pinned

Shapes = tuple[int, ...] | tuple[tuple[int, ...], ...]


@dataclass
class Report:
    """Worst relative differences, and the failures as text."""

    model: str
    groups: int = 0
    units: int = 0
    sections: int = 0
    regions: int = 0
    coverage: float = 0.0
    prepare_seconds: float = 0.0
    pinned: tuple[Pinned, ...] = ()
    open_eval: float = 0.0
    open_train: float = 0.0
    removal: float = 0.0
    failures: list[str] = field(default_factory=list[str])

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            self.failures.append(text)


def randomise(model: nn.Module, seed: int) -> None:
    """Well-scaled random weights, norm parameters and running statistics: default initialisation hides errors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std + mean)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    normal(parameter, (2.0 / max(1, parameter[0].numel())) ** 0.5)
                elif name == "weight":
                    uniform(parameter, 0.5, 1.5)
                else:
                    normal(parameter, 0.3)
            for name, buffer in module.named_buffers(recurse=False):
                if not buffer.is_floating_point():
                    continue
                if name == "running_mean":
                    normal(buffer, 0.3)
                elif name in ("running_var", "weight"):
                    uniform(buffer, 0.5, 1.5)
                elif name == "bias":
                    normal(buffer, 0.3)


def calibrate(model: nn.Module, inputs: Inputs) -> None:
    """Running statistics from data: with random ones activations grow from layer to layer, and single precision alone
    (PyTorch against itself in double) then differs by as much as an exporter may."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def random_gates(net: GatedModule, seed: int, units: float = 0.5, sections: float = 1 / 3) -> None:
    """Close units and sections at random; no value is emptied."""
    generator = torch.Generator().manual_seed(seed)
    for gate in net.gates.values():
        dead = torch.rand(gate.count, generator=generator) < (units if gate.kind == "units" else sections)
        gate.set((~dead).to(gate.theta.dtype))
    theta = net.gate_vector.theta.detach()
    number, required = net.structure.required.long()
    for members in required.split(number.unique_consecutive(return_counts=True)[1].tolist()):
        if not bool((theta[members] > 0.5).any()):
            theta[members[int(torch.randint(len(members), (1,), generator=generator))]] = 1.0


def counted_macs(module: nn.Module, inputs: Inputs, named: dict[str, Any] | None = None) -> int:
    """Multiply-adds that PyTorch's own counter sees, and those of `ElementwiseEinsums`."""
    counter = flop_counter()
    with without_gradients(module), counter, ElementwiseEinsums(counter) as einsums, torch.no_grad():
        module(*inputs, **(named or {}))
    return counter.get_total_flops() // 2 + einsums.macs


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """PyTorch's counter fails under `no_grad` where a layer is given a parameter as its input."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


class ElementwiseEinsums(TorchFunctionMode):
    """Counts what PyTorch's counter misses: einsum multiplies entry by entry where the contracted axis has one."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.macs = counter, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if func is torch.einsum and len(args) > 2 and self.counter.get_total_flops() == before:
            letters = args[0].replace(" ", "").split("->")[0].split(",")
            if min(map(len, letters)) < 2:
                return result  # a factor of every entry, as in any other product
            shapes = [operand.shape for operand in args[1:]]
            sizes = {
                a: n for axes, shape in zip(letters, shapes, strict=True) for a, n in zip(axes, shape, strict=True)
            }
            self.macs += math.prod(sizes.values())
        return result


def counted_region_macs(net: GatedModule, small: nn.Module) -> int:
    """What PyTorch counts on every region alone, for tensors of the shapes that it got in the example run."""
    program: Any = net.program
    analysis, count = program.analysis, net.gate_vector.unit_count
    hard = net.gate_vector.hard()
    graph = program.plan(net.network, hard[:count], hard[count:]).graph
    total = 0
    for number, region in enumerate(analysis.regions):
        entering = [n for n in graph.nodes if n.target is region_input and n.args[1] == number]
        values = {n.args[2]: torch.randn(value_of(n).shape, dtype=value_of(n).dtype) for n in entering}
        total += counted_macs(small.get_submodule(region.path), (), fill(region.arguments, values))
    return total


def operators(module: nn.Module) -> Counter[str]:
    """Lines of the generated forward, by the kind of call."""
    kinds: Counter[str] = Counter()
    for name in ("forward", "_forward_inference", "_forward_training"):
        function = getattr(type(module), name, None)
        if function is None or not function.__code__.co_filename.startswith("<fxcat"):
            continue
        kinds[name] = len([line for line in inspect.getsource(function).splitlines() if "=" in line])
    return kinds


def tensors(shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    several = (shapes,) if isinstance(shapes[0], int) else shapes
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in several)  # pyright: ignore[reportArgumentType, reportCallIssue]


def check(
    model: nn.Module,
    name: str,
    shape: Shapes,
    other: Shapes,
    *,
    settings: int = 2,
    train: bool = True,
) -> Report:
    """Check one model with example inputs of `shape` (or shapes), and on inputs of another shape `other`."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    example, inputs = (tensors(s, dtype, generator) for s in (shape, other))
    return check_on(model, name, example, inputs, inputs if train else None, settings=settings)


def check_on(
    model: nn.Module,
    name: str,
    example: Inputs,
    inputs: Inputs,
    training: Inputs | None,
    *,
    settings: int = 2,
    net: GatedModule | None = None,
    tolerance: float | None = None,
    conditioning: bool = False,
) -> Report:
    """The same with inputs of any kind; `training`: those that the model takes in train mode (None: it has none);
    `settings`: how many random ones are removed at once, and how many in place, one after another; `net`: the model
    prepared, if it is already; `tolerance`: by default that of the parameters' precision; `conditioning`: running
    statistics are put back after the training pass, and a smaller network whose own result depends on the last digits
    of its layers' by more than a tenth of the tolerance has ten times that for one."""
    report = Report(name)
    if tolerance is None:
        tolerance = SINGLE_TOLERANCE if next(model.parameters()).dtype == torch.float32 else DOUBLE_TOLERANCE
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = time.perf_counter()
    if net is None:
        net = fxcat.prepare(model, example, verbose=False)
    report.prepare_seconds = time.perf_counter() - start
    report.pinned = net.structure.pinned
    report.groups, report.sections = len(net.structure.groups), len(net.structure.sections)
    report.units = sum(g.units for g in net.structure.groups)
    program: Any = net.program
    report.regions = len(program.analysis.regions)
    report.coverage = net.structure.coverage
    base = Counter(type(m).__name__ for m in model.modules())
    statistics = {name: buffer.clone() for name, buffer in net.network.named_buffers()}
    _check_open(report, model, net, {"eval": inputs, "train": training}, tolerance)
    if conditioning:
        for name, buffer in net.network.named_buffers():
            buffer.copy_(statistics[name])
    net.eval()
    given = inputs
    for seed in range(settings):
        random_gates(net, seed)
        with torch.no_grad():
            small = fxcat.finalize(net)
            given = well_posed(net, inputs, tolerance)
            found = difference(drawn(small, given), drawn(net, given))
            allowed = allowed_by_rounding(small, given, tolerance) if conditioning else tolerance
        report.removal = max(report.removal, found)
        report.require(found <= allowed, f"I2 setting {seed}: {found:.1e}")
        _check_costs(report, net, small, example, seed)
        _check_clean(report, small, base, seed)
        if training is not None and seed == 0:
            _check_trainable(report, small, training)
    _check_shrink(report, net, given, tolerance, settings, conditioning=conditioning)
    report.require(
        all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the caller's model was changed"
    )
    return report


def _check_open(
    report: Report, model: nn.Module, net: GatedModule, of_mode: dict[str, Inputs | None], tolerance: float
) -> None:
    reference = copy.deepcopy(model)
    for mode, inputs in of_mode.items():
        if inputs is None:
            continue
        reference.train(mode == "train")
        net.train(mode == "train")
        with torch.no_grad(), fixed_seed(7):
            expected = reference(*inputs)
        with torch.no_grad(), fixed_seed(7):
            found = difference(net(*inputs), expected)
        setattr(report, f"open_{mode}", found)
        report.require(found <= tolerance, f"I1 {mode}: {found:.1e}")
    buffers = dict(reference.named_buffers())
    for key, buffer in net.network.named_buffers():
        if key in buffers:
            report.require(difference(buffer, buffers[key]) <= tolerance, f"I1 buffer {key}")


def _check_shrink(
    report: Report, net: GatedModule, inputs: Inputs, tolerance: float, times: int, *, conditioning: bool
) -> None:
    """Removal in place, as during training: first as the gates are, then little by little; and from what has shrunk."""
    with torch.no_grad():
        for seed in (None, *range(97, 96 + times)):
            if seed is not None:
                random_gates(net, seed, units=0.15, sections=0.15)
            expected = drawn(net, inputs)
            net.shrink()
            found = difference(drawn(net, inputs), expected)
            allowed = allowed_by_rounding(net, inputs, tolerance) if conditioning else tolerance
            report.require(found <= allowed, f"I2 shrunk in place ({seed}): {found:.1e}")
        random_gates(net, 99)
        found = difference(drawn(fxcat.finalize(net), inputs), drawn(net, inputs))
        allowed = allowed_by_rounding(net, inputs, tolerance) if conditioning else tolerance
        report.require(found <= allowed, f"I2 after shrinks: {found:.1e}")


def _check_trainable(report: Report, small: nn.Module, inputs: Inputs) -> None:
    """The small network still trains: in-place ops must not have hit values that autograd needs."""
    try:
        with torch.enable_grad():
            outputs = [o for o in tree_leaves(small.train()(*inputs)) if isinstance(o, torch.Tensor)]
            sum(o.sum() for o in outputs if o.requires_grad).backward()  # pyright: ignore[reportAttributeAccessIssue]
    except RuntimeError as error:
        report.require(False, f"the small network does not train: {error}")


def _check_costs(report: Report, net: GatedModule, small: nn.Module, example: Inputs, seed: int) -> None:
    said = net.hard_cost()
    params = sum(p.numel() for p in small.parameters())
    # how often a detector's heads run depends on what it sees
    macs = counted_region_macs(net, small) if isinstance(example[0], list) else counted_macs(small, example)
    report.require(said.params == params, f"I3 setting {seed}: {said.params} parameters said, {params} counted")
    report.require(said.macs == macs, f"I3 setting {seed}: {said.macs} MACs said, {macs} counted")


def _check_clean(report: Report, small: nn.Module, base: Counter[str], seed: int) -> None:
    for path, module in small.named_modules():
        report.require(not type(module).__module__.startswith("fxcat"), f"I4 setting {seed}: {path} is fxcat code")
    left = Counter(type(m).__name__ for m in small.modules())
    report.require(not left - base, f"I4 setting {seed}: new modules {left - base}")
