"""What has to hold for a random network: `exactness.py`, and what is checked now and then."""

from __future__ import annotations

import copy
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from differences import DOUBLE_TOLERANCE, difference, fixed_seed
from exactness import check_on, counted_macs, random_gates, randomise
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import fxcat

LARGEST = 1e4
"""Networks whose results are larger, or are not finite, say nothing."""


def broken(
    make: Callable[[], nn.Module], example: tuple[Any, ...], others: tuple[Any, ...], seed: int, *, onnx: bool = False
) -> str:
    """What is wrong with a network, empty if nothing is; `nothing` if there is nothing to prune."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
        randomise(model, seed)
        if not _is_tame(model, others):
            return "nothing"
        model.train()
        try:
            report = check_on(model, "random", example, others, others, settings=2)
            if not report.failures:
                (_check_files, _check_gradients, _check_few_left)[seed % 3](model, make, example, others, seed)
            if not report.failures and onnx:
                _check_onnx(model, example)
        except fxcat.NothingToPruneError:
            return "nothing"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:300]} ({Path(frame.filename).name}:{frame.lineno})"
    return report.failures[0] if report.failures else ""


def _is_tame(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    with torch.no_grad(), fixed_seed(0):
        results = [copy.deepcopy(model).train(mode)(*inputs) for mode in (True, False)]
    return all(bool((v.abs() < LARGEST).all()) for v in tree_leaves(results) if v is not None)


Make = Callable[[], nn.Module]
Inputs = tuple[Any, ...]


def _check_files(model: nn.Module, make: Make, example: Inputs, others: Inputs, seed: int) -> None:
    """Shrunk twice, saved, and loaded into a network of the same source."""
    net = fxcat.prepare(model, example, verbose=False).eval()
    random_gates(net, seed, 0.3)
    net.shrink()
    random_gates(net, seed + 1, 0.3)
    small = fxcat.finalize(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        fxcat.save(small, path)
        torch.manual_seed(seed)  # what a constructor draws is a part of the model: a permutation of channels
        loaded = fxcat.load(path, make()).eval()
    with torch.no_grad():
        found = difference(loaded(*others), small(*others))
    assert found <= DOUBLE_TOLERANCE, f"loaded: {found:.1e}"
    _check_parts(small, others)


def _check_gradients(model: nn.Module, make: Make, example: Inputs, others: Inputs, seed: int) -> None:
    """With open gates every parameter has the gradient that it has in the model, up to ten times what the last digits
    of the inputs make of the model's own."""
    reference = copy.deepcopy(model).eval()
    net = fxcat.prepare(model, example, verbose=False).eval()
    _check_hooked(reference, net, others)
    wanted = _gradients(reference, others)
    nudged = _gradients(reference, tree_map(lambda x: x * (1 + 4 * torch.finfo(x.dtype).eps), others))
    found = _gradients(net.network, others, run=net)
    for name, value in wanted.items():
        allowed = max(1e-8, 10 * difference(nudged[name], value))
        assert difference(found[name], value) <= allowed, f"gradient of {name}: {difference(found[name], value):.1e}"


def _gradients(network: nn.Module, inputs: Inputs, run: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Of the sum of squares of all that a network returns, by parameter. `run`: what is called in its place."""
    network.zero_grad()
    with torch.enable_grad():
        results = [v for v in tree_leaves((run or network)(*inputs)) if v is not None]
        sum(((v * v).sum() for v in results), torch.zeros(())).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


@contextmanager
def _watched(module: nn.Module, run: Callable[[], Any]) -> Generator[dict[str, list[tuple[Any, Any, Any]]]]:
    """Copies of what every module was called with and returned, in the order of calls; those without hooks are out."""
    seen: dict[str, list[tuple[Any, Any, Any]]] = {}
    given: list[Any] = []
    handles: list[Any] = []
    for path, part in list(module.named_modules())[1:]:

        def before(_: Any, args: Any, kwargs: Any) -> None:
            given.append(_copied((args, kwargs)))

        def after(_m: Any, _a: Any, _k: Any, result: Any, path: str = path) -> None:
            seen.setdefault(path, []).append((*given.pop(), _copied(result)))

        with suppress(fxcat.InputError):  # the network does not call it
            handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(part.register_forward_hook(after, with_kwargs=True))
    try:
        with torch.no_grad():
            run()
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    """With copies of the tensors in it; what is one tensor stays one."""
    known: dict[int, torch.Tensor] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = leaf.detach().clone()
        return known[id(leaf)]

    return tree_map(copied, value)


def _check_parts(small: nn.Module, inputs: Inputs) -> None:
    """Modules of the small network, called by themselves, return what they return in it."""
    with _watched(small, lambda: small(*inputs)) as seen:
        pass
    for path, calls in seen.items():
        for args, kwargs, result in calls:
            with torch.no_grad():
                taken = (_copied((args, kwargs)) for _ in range(2))
                again = [small.get_submodule(path)(*a, **k) for a, k in taken]
            if difference(*again) == 0:  # else it draws, or counts its calls
                assert difference(again[0], result) <= DOUBLE_TOLERANCE, f"{path} by itself"


def _check_hooked(model: nn.Module, net: fxcat.GatedModule, inputs: Inputs) -> None:
    """With open gates hooks on the network's modules see what those on the model's see, where both are called."""
    with _watched(model, lambda: model(*inputs)) as wanted, _watched(net.network, lambda: net(*inputs)) as seen:
        pass
    for path in wanted.keys() & seen.keys():
        results = [[result for *_, result in calls[path]] for calls in (wanted, seen)]
        assert difference(*results) <= 1e-8, f"a hook on {path}"


def _check_few_left(model: nn.Module, make: Make, example: Inputs, others: Inputs, seed: int) -> None:
    """One unit of every group, and no section where the other gates allow it."""
    net = fxcat.prepare(model, example, verbose=False).eval()
    for number, gate in enumerate(net.gates.values()):
        live = torch.zeros(gate.count)
        if gate.kind == "units":
            live[(seed + number) % gate.count] = 1
        gate.set(live)
    theta = net.gate_vector.theta.detach()
    number, required = net.structure.required.long()
    for members in required.split(number.unique_consecutive(return_counts=True)[1].tolist()):
        if not bool((theta[members] > 0.5).any()):
            theta[members[seed % len(members)]] = 1.0
    small = fxcat.finalize(net)
    with torch.no_grad():
        found = difference(small(*others), net(*others))
    assert found <= DOUBLE_TOLERANCE, f"few left: {found:.1e}"
    said, counted = net.hard_cost(), counted_macs(small, example)
    assert said.macs == counted, f"few left: {said.macs} MACs said, {counted} counted"
    params = sum(p.numel() for p in small.parameters())
    assert said.params == params, f"few left: {said.params} parameters said, {params} counted"


def _check_onnx(model: nn.Module, example: Inputs) -> None:
    inputs = tree_map(lambda x: x.float(), example)
    net = fxcat.prepare(model.float(), inputs, verbose=False).eval()
    random_gates(net, 0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        fxcat.export_onnx(fxcat.finalize(net), Path(folder) / "small.onnx", inputs)
