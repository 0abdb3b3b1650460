"""The optimizers that train a network's weights: which there are, and whether they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.network.weight_checks import PLAIN, is_flat

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

NAMES = "param_names"
"""What torch calls the names in a group whose optimizer was given `named_parameters()`."""


def as_list(optimizers: Any) -> list[torch.optim.Optimizer]:
    """All optimizers that there are: one or several, and those inside of others (Lookahead, SAM) and of what trainers
    wrap round them; of several with one state the innermost.

    Raises `InputError` where there is none.
    """
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]
    by_state: dict[int, torch.optim.Optimizer] = {}
    for each in given:  # pyright: ignore[reportUnknownVariableType]
        found = _all_in(each)
        if not found:
            raise InputError(
                f"a {type(each).__name__} is no torch.optim.Optimizer",  # pyright: ignore[reportUnknownArgumentType]
                remedy="pass the optimizer of the weights, or a list of several",
            )
        _check_undivided(found)
        by_state |= {id(o.state): o for o in found}
    if not by_state:
        raise InputError("there is no optimizer", remedy="pass the optimizer of the weights, or a list of several")
    return list(by_state.values())


def _check_undivided(found: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` for an optimizer that leaves a part of its weights to other processes, whose place there is
    fixed (`ZeroRedundancyOptimizer`). `found`: it, and those inside of it."""
    outer, *inner = found
    inner = [o for o in inner if o.state is not outer.state]
    whole, parts = _held([outer]), _held(inner)
    if inner and parts < whole:
        raise InputError(
            f"{type(outer).__name__} updates {len(parts)} of {len(whole)} weights itself and leaves the others to "
            "other processes: it cannot follow when they become smaller",
            remedy="use its inner optimizer by itself, a whole one in every process",
        )


def _held(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    return {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}


def _all_in(value: Any) -> list[torch.optim.Optimizer]:
    """Optimizers in an object, the outermost first. Some wrappers were never initialised as one."""
    return [o for o in _nested(value) if isinstance(o, torch.optim.Optimizer) and hasattr(o, "state")]


def _nested(value: Any, depth: int = 3) -> list[Any]:
    """An object, and what has groups of parameters inside of it."""
    inside: list[Any] = list(_own_attributes(value).values())
    inside += [x for v in inside if isinstance(v, list | tuple) for x in v]
    found = [v for v in inside if hasattr(v, "param_groups")] if depth else []
    return [value, *(o for v in found for o in _nested(v, depth - 1))]


def _own_attributes(value: Any) -> dict[str, Any]:
    """Of an optimizer those that not every one has."""
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    return {k: v for k, v in attributes.items() if k not in ("state", "param_groups", "defaults")}


def check_kept_elsewhere(net: GatedModule, optimizers: Any) -> None:
    """Raise `InputError` for an optimizer that keeps tensors in the shapes of weights in attributes of its own (slow
    weights, moments in a list): nothing there says what belongs to which weight when weights become smaller.

    Vectors are let pass: an optimizer may have tables of a few numbers."""
    given: Sequence[Any] = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    found = [o for each in given for o in _nested(each)]
    states = {id(o.state) for o in found if hasattr(o, "state")}  # some are wrapped round the state of others
    weights = {p.shape for p in net.network.parameters() if p.dim() > 1}
    for optimizer in found:
        for name, value in _own_attributes(optimizer).items():
            leaves: list[Any] = [] if id(value) in states else tree_leaves(value)
            kept = (x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, torch.nn.Parameter))
            shape = next((tuple(x.shape) for x in kept if x.shape in weights), None)
            if shape is not None:
                raise InputError(
                    f"{type(optimizer).__name__} keeps tensors in the shapes of weights, such as {list(shape)}, in its "
                    f"attribute {name!r}: these cannot shrink with the weights",
                    remedy="keep them in the optimizer's state, by parameter: optimizer.state[p][name] = tensor",
                )


def wrappers_of(optimizers: Any, inner: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """What trainers have wrapped round an optimizer, among what a user passed."""
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]
    return [o for each in given for o in _all_in(each) if o.state is inner.state and o is not inner]


def keep_in(group: dict[str, Any], stays: Callable[[Any], bool]) -> None:
    """Take parameters out of a group of an optimizer, and their names, where it was given some."""
    found = [stays(p) for p in group["params"]]
    if NAMES in group:  # a list of its own: states that were taken before hold this one
        group[NAMES] = [name for name, there in zip(group[NAMES], found, strict=False) if there]
    # in place: some optimizers hold the list itself (LBFGS)
    group["params"][:] = [p for p, there in zip(group["params"], found, strict=True) if there]


def holding(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Those that hold weights of the network: others (of a discriminator beside it) say nothing of its gates. All where
    none does: its weights are frozen, and what is beside it is trained."""
    own = {id(p) for p in net.network.parameters()}
    found = [o for o in optimizers if any(id(p) in own for group in o.param_groups for p in group["params"])]
    return found or list(optimizers)


def check_weights(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` unless they hold all weights that are trained."""
    tensors = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    held = {id(p) for p in tensors}
    trained = {n: p for n, p in net.network.named_parameters() if p.requires_grad}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if len(missing) == len(trained) and missing and is_flat(tensors, list(trained.values())):
        raise InputError("the optimizer holds flat tensors, and none of the gated network's weights", remedy=PLAIN)
    if missing:
        how_many = "none" if len(missing) == len(trained) else f"{len(trained) - len(missing)} of {len(trained)}"
        raise InputError(
            f"the optimizer holds {how_many} of the gated network's weights that are trained",
            where=missing[0],
            remedy="make it after prepare(): torch.optim.SGD(net.weight_parameters(), lr=…); pass several in a list; "
            "what shall not be trained: requires_grad_(False)",
        )


def check_held(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` if weights of a network were replaced by others that no optimizer holds, all of them: a way
    over the meta device does so. Quick where that is not so."""
    first = next((p for p in net.network.parameters() if p.requires_grad), None)
    if first is None or any(p is first for o in optimizers for group in o.param_groups for p in group["params"]):
        return
    net.check_weights()
    held = _held(optimizers)
    if not any(id(p) in held for p in net.network.parameters() if p.requires_grad):
        check_weights(net, optimizers)
