"""All steps of `zoo.py` for one model. Each is reported as soon as it is known: a process that is stopped, too, says
how far it came."""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import library
from differences import DOUBLE_TOLERANCE, SINGLE_TOLERANCE, difference, fixed_seed
from exactness import check_on, randomise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from zoo_models import PACKAGES, Built, TooLarge, takes

import fxcat
from fxcat.gated import GatedModule

LARGE = 150_000_000
SETTINGS = 2
DOUBLE = "double"

Row = dict[str, Any]
Report = Callable[[Row], None]
LIBRARY = library()
"""Of what was imported: files may change while the models run."""


def attempt(package: str, name: str, onnx: bool, send: Report) -> None:
    """What fxcat does with one model."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: Row = {"library": LIBRARY, "step": "build"}

    def report(found: Row) -> None:
        row.update(found)
        send(row | {"memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})

    report({})
    try:
        precision, (model, example, others) = _ready(PACKAGES[package][1](name))
    except Exception as error:
        report({"step": "left out" if _lacks_memory(error) else "not built", "reason": _line(error)})
        return
    state = {k: v.clone() for k, v in model.state_dict().items()}
    params = sum(p.numel() for p in model.parameters())
    own = 10 * _of_rounding(model, state, others) if precision == DOUBLE else SINGLE_TOLERANCE
    tolerance = float(f"{min(max(DOUBLE_TOLERANCE, own), SINGLE_TOLERANCE):.1e}")
    report({"step": "prepare", "parameters": params, "precision": precision, "tolerance": tolerance})
    begin = time.perf_counter()
    try:
        net = fxcat.prepare(model, example, verify=False, verbose=False)
    except Exception as error:
        raw = "" if isinstance(error, fxcat.FxcatError) else "raw error: "
        step = {"step": "left out"} if _lacks_memory(error) else {"step": "refused", "prepared": False}
        report(step | {"reason": raw + _line(error)})
        return
    report({"step": "check", "prepared": True, "prepare s": round(time.perf_counter() - begin, 2)} | _found(net))
    report(_checked(model, net, state, (example, others), tolerance))
    if onnx and row.get("exact"):
        report({"step": "onnx"})
        row["onnx"] = _exported(model.float().eval(), tree_map(_single, example))
    report({"step": "done" if "exact" in row else "left out", "seconds": round(time.perf_counter() - start, 1)})


def _ready(built: Built) -> tuple[str, Built]:
    """With random weights, and in double precision if it is not too large for that and takes it."""
    model, example, others = built
    precision, in_double = DOUBLE, tree_map(_doubled, (example, others))
    with Narrowings() as narrowings:
        if sum(p.numel() for p in model.parameters()) <= LARGE and takes(model.double(), in_double[0]):
            example, others = in_double
        else:
            model, precision = model.float(), "single"
            if not takes(model, example):
                raise ValueError("it does not run on the example")
    if precision == DOUBLE and narrowings.found:
        precision = "single inside"
    randomise(model, 0)
    model.train()
    return precision, (model, example, others if takes(model, others) else example)  # or it takes one image only


def _of_rounding(model: nn.Module, state: Row, inputs: tuple[Any, ...]) -> float:
    """How much of a model's result depends on the last digit of inputs and weights: it is no more exact than that."""
    generator = torch.Generator().manual_seed(0)

    def rounded(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dtype != torch.float64:
            return leaf
        signs = torch.randint(2, leaf.shape, generator=generator).double() * 2 - 1
        return leaf * (1 + torch.finfo(torch.float64).eps * signs)

    model.eval()
    with torch.no_grad(), fixed_seed(0):
        expected = model(*inputs)
    model.load_state_dict({k: rounded(v) for k, v in state.items()})
    with torch.no_grad(), fixed_seed(0):
        found = difference(model(*tree_map(rounded, inputs)), expected)
    model.load_state_dict(state)
    return found


class Narrowings(TorchDispatchMode):
    """Finds whether an op makes values of single precision from others of double precision: some models do so in their
    norms, and are no more exact than that."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.found and torch.float32 in _dtypes(result):
            self.found = torch.float64 in _dtypes((args, kwargs))
        return result


def _dtypes(value: Any) -> set[torch.dtype]:
    return {leaf.dtype for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)}


def _found(net: GatedModule) -> Row:
    structure = net.structure
    return {
        "share": round(structure.coverage, 4),
        "sections": len(structure.sections),
        "units": sum(g.units for g in structure.groups),
        "pinned": _reasons(structure.pinned),
    }


def _checked(
    model: nn.Module,
    net: GatedModule,
    state: Row,
    inputs: tuple[tuple[Any, ...], tuple[Any, ...]],
    tolerance: float,
) -> Row:
    """Whether it is exact with true costs, in training too if the model trains on these inputs.

    `state`: what the model held before it was prepared.
    """
    example, others = inputs
    unchanged = all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    try:
        with torch.no_grad():
            model.train()(*others)
        training = others
    except Exception:
        training = None
    model.load_state_dict(state)
    try:
        report = check_on(
            model, "", example, others, training, settings=SETTINGS, net=net, tolerance=tolerance, conditioning=True
        )
    except Exception as error:
        return {"reason": _line(error)} | ({} if _lacks_memory(error) else {"exact": False, "costs": False})
    failures = report.failures + ([] if unchanged else ["prepare changed the caller's model"])
    costs = [f for f in failures if f.startswith("I3")]
    row: Row = {"exact": len(costs) == len(failures), "costs": not costs, "trained": training is not None}
    return row | ({"reason": failures[0]} if failures else {})


def _exported(model: nn.Module, example: tuple[Any, ...]) -> bool | str:
    net = fxcat.prepare(model, example, verify=False, verbose=False)
    for gate in net.gates.values():
        if gate.kind == "units":
            gate.theta[1::2] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        try:
            fxcat.export_onnx(fxcat.finalize(net), Path(folder) / "model.onnx", example)
        except fxcat.FxcatError as error:
            return _line(error)
    return True


def attempt_peer(package: str, name: str, _: bool, send: Report) -> None:
    """torch-pruning: half of every group, and a forward pass."""
    from peers import TorchPruning

    row: Row = {"step": "build"}
    try:
        built = PACKAGES[package][1](name)
        model, example = built[0], built[1]
        before = sum(p.numel() for p in model.parameters())
        runner = TorchPruning(model.eval(), example)
        for step in ("build", "prune", "forward"):
            row["step"] = step
            getattr(runner, step)()
        row |= {"step": "done", "pruned": sum(p.numel() for p in runner.model.parameters()) < before}
    except Exception as error:
        row["reason"] = _line(error)
    send(row)


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether there was too little memory, also where another error came of that."""
    while error is not None:
        if isinstance(error, MemoryError | TooLarge) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: Exception) -> str:
    where = f" [{error.where}]" if isinstance(error, fxcat.FxcatError) and error.where else ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}{where}"[:300]


def _reasons(pinned: Any) -> dict[str, int]:
    """How many indices each reason keeps, most first."""
    counts: Counter[str] = Counter()
    for p in pinned:
        counts[p.reason] += p.count
    counts.pop("output of the network", None)
    return dict(counts.most_common(8))
