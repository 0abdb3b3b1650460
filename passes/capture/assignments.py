"""`value[index] = other` as another value: `slice_scatter`, what a mask picks (`picked`), or a `cat` of what stays and
what is new, along an axis that may have units.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fxcat.passes.capture.picked import Call, Picked
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.meta import NEW, NO_GRAD, VALUE, stand_beside, value_of


def assigned(after: fx.Node, base: fx.Node, index: Any, value: Any, order: dict[fx.Node, int]) -> fx.Node | None:
    """What an assignment makes of `base`, computed behind the node `after`; None if it has no such form.

    `order`: places of nodes in the model's Python, where new ones get that of `after`.
    """
    if not (isinstance(value, int | float) or _is_tensor(value)):
        return None
    graph, picked, listed = after.graph, Picked.of(base, index), _listed(index)
    cuts = None if picked or listed else _cuts(index, value_of(base).dim())
    chosen = picked.takes(value) if picked else listed is not None and _fits(listed, base, value)
    if cuts is None and not chosen:
        return None

    def call(target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        method = isinstance(target, str)
        new = graph.call_method(target, args, kwargs) if method else graph.call_function(target, args, kwargs)
        function: Any = getattr(torch.Tensor, target) if method else target
        stand_beside(new, after)
        VALUE.set(new, function(*thaw(args), **thaw(kwargs)))
        if NO_GRAD.has(after):
            NO_GRAD.set(new, True)
        order[new] = order[after]
        return new

    if isinstance(listed, tuple) and isinstance(listed[1], list):
        return _one_by_one(after, base, *listed, value, order, call)
    with graph.inserting_before(after.next):
        if picked is not None:
            result = picked.put(call, value)
        elif isinstance(listed, tuple):
            result = call("index_copy" if _is_tensor(value) else "index_fill", base, *listed, value)
        else:
            result = _cut(call, base, index, value, cuts or {})
    VALUE.set(result, value_of(base))
    NEW.set(result, True)  # views of the one are views of the other
    return result


def _cut(call: Call, base: fx.Node, index: Any, value: Any, cuts: Mapping[int, slice | int]) -> fx.Node:
    """A value with another one in the place of what an index cuts out of it."""
    parts = [base]
    for axis, cut in cuts.items():
        parts.append(call(operator.getitem, parts[-1], (*[slice(None)] * axis, _as_slice(cut))))
    numbers = [axis for axis, cut in cuts.items() if isinstance(cut, int)]
    part = parts.pop()
    result = _fitted(call, part, base, index, value, numbers)
    for part, (axis, cut) in zip(parts[::-1], list(cuts.items())[::-1], strict=True):
        result = _put(call, part, axis, _as_slice(cut), result)
    return result


_MOST = 16
"""So many listed places are written one by one."""


def _listed(index: Any) -> tuple[int, Any] | None:
    """The axis along which an index lists places, all along the others, and the list, or a tensor that holds it."""
    entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
    axis = next((a for a, e in enumerate(entries) if e != slice(None)), 0)
    places = entries[axis]
    if any(e != slice(None) for e in entries[axis + 1 :]):
        return None
    if isinstance(places, list | tuple):
        several = 0 < len(places) <= _MOST and all(type(p) is int for p in places)
        return (axis, list(places)) if several and len({*places}) == len(places) else None
    is_list = _is_tensor(places) and value_of(places).dtype == torch.int64 and value_of(places).dim() == 1
    return (axis, places) if is_list else None


def _fits(listed: tuple[int, Any], base: fx.Node, value: Any) -> bool:
    """Whether a value has one entry for every place that is listed, or is one number for all."""
    if not _is_tensor(value):
        return True
    axis, places = listed
    shape = list(value_of(base).shape)
    shape[axis] = len(places) if isinstance(places, list) else len(value_of(places))
    found = value_of(value)
    return list(found.shape) == shape and found.dtype == value_of(base).dtype


def _one_by_one(
    after: fx.Node, base: fx.Node, axis: int, places: list[int], value: Any, order: dict[fx.Node, int], call: Call
) -> fx.Node:
    """Places of an axis, one after the other."""
    before, last, result = (slice(None),) * axis, after, base
    for i, place in enumerate(places):
        part = value
        if _is_tensor(value):
            with after.graph.inserting_before(last.next):
                last = part = call(operator.getitem, value, (*before, i))
        written = assigned(last, result, (*before, place), part, order)
        assert written is not None
        last = result = written
    return result


def _cuts(index: Any, dims: int) -> Mapping[int, slice | int] | None:
    """The axes that an index cuts, with slices or numbers; None if there is anything else in it."""
    entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if sum(e is Ellipsis for e in entries) == 1:
        place = next(i for i, e in enumerate(entries) if e is Ellipsis)
        entries[place : place + 1] = [slice(None)] * (dims - len(entries) + 1)
    slices = all(type(e) is int or isinstance(e, slice) for e in entries)
    return {a: e for a, e in enumerate(entries) if e != slice(None)} if slices else None


def _as_slice(cut: slice | int) -> slice:
    return cut if isinstance(cut, slice) else slice(cut, None if cut == -1 else cut + 1)


def _fitted(call: Call, part: fx.Node, base: fx.Node, index: Any, value: Any, numbers: list[int]) -> fx.Node:
    """The value with the axes, shape and type of the part that it replaces. `numbers`: axes that it does not have."""
    whole = value_of(part)
    if not isinstance(value, fx.Node):
        return call(torch.full_like, part, value) if value else call(torch.zeros_like, part)
    if value_of(value).dtype != whole.dtype:
        value = call("to", value, whole.dtype)
    shape = [n for a, n in enumerate(whole.shape) if a not in numbers]
    while value_of(value).dim() > len(shape):
        value = call("squeeze", value, 0)
    if list(value_of(value).shape) != shape or (whole.shape[0] == 1 and _is_constant(value)):
        value = call("expand_as", value, call(operator.getitem, base, index))
    for axis in numbers:
        value = call(torch.unsqueeze, value, axis)
    return value


def _put(call: Call, part: fx.Node, axis: int, cut: slice, value: fx.Node) -> fx.Node:
    """A value with some slices replaced by another one."""
    whole = value_of(part)
    if cut.step not in (None, 1):
        return _scattered(call, part, value, axis, cut)
    if axis == 1 or (axis == whole.dim() - 1 < 3):
        before = (*[slice(None)] * axis, slice(None, cut.start))
        after = (*[slice(None)] * axis, slice(cut.stop, None))
        pieces = [value]
        if cut.start not in (None, 0):
            pieces.insert(0, call(operator.getitem, part, before))
        if cut.stop is not None:
            pieces.append(call(operator.getitem, part, after))
        if all(value_of(p).shape[axis] for p in pieces):
            return call(torch.cat, pieces, axis) if len(pieces) > 1 else value
    return _scattered(call, part, value, axis, cut)


def _scattered(call: Call, part: fx.Node, value: fx.Node, axis: int, cut: slice) -> fx.Node:
    """By `slice_scatter`; of complex numbers as pairs, since for those it has no gradient."""
    bounds = (cut.start, cut.stop, *([] if cut.step in (None, 1) else [cut.step]))
    if not value_of(part).is_complex():
        return call(torch.slice_scatter, part, value, axis, *bounds)
    pairs = [call(torch.view_as_real, call("resolve_conj", x)) for x in (part, value)]
    return call(torch.view_as_complex, call(torch.slice_scatter, *pairs, axis, *bounds))


def _is_constant(value: fx.Node) -> bool:
    """Whether a value is none of the examples of a batch, but the same for all."""
    stack, seen = [value], set[fx.Node]()
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            return False
        seen.add(node)
        stack += [i for i in node.all_input_nodes if _is_tensor(i) and i not in seen]
    return True


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value_of(value), torch.Tensor)
