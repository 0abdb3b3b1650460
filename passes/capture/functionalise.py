"""In-place ops of a captured graph as what they do to values: whoever reads a changed value reads the op's result.

In: a graph in the order in which the model's Python ran. Its nodes hold example values, which tell views from copies.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from fxcat.errors import CaptureError
from fxcat.passes.capture.assignments import assigned
from fxcat.passes.capture.picked import check_none_left
from fxcat.passes.graph.meta import CHANGES, CONSTANT, NO_GRAD, VALUE, path_of, stand_beside, take_all, value_of
from fxcat.passes.nodes.effects import (
    INPLACE_OPERATORS,
    changed_part_of,
    copy_first,
    is_inplace,
    is_view,
    make_plain,
    may_be_view,
)

_FACTS = (int, float, torch.Size, torch.dtype, torch.device)


def functionalise(graph: fx.Graph) -> None:
    """What reads a value after an in-place op changed it reads the op's result instead.

    Assignments to slices become values too; other changes of a part stay as they are: see `effects`.
    """
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is operator.setitem:
            _assign(node, order)
        elif is_inplace(node) and isinstance(node.args[0], fx.Node):
            _read_result(node, node.args[0], order)
    check_none_left(graph)


def _read_result(node: fx.Node, changed: fx.Node, order: dict[fx.Node, int]) -> None:
    """What comes after an in-place op reads its result; where nobody sees the change of anything else, it is none."""
    base = changed_part_of(node)
    _check_gradients(node, changed, base)
    is_seen = base is not None and base.op != "get_attr" and _is_read(base, order, order[node], but=changed)
    if base is not None and is_seen and _scatter_what_is_seen(node, changed, base, order):
        return
    _redirect(changed, node, order, order[node])
    if base is not None and base.op == "get_attr":
        _detach_what_enters(node, base)
        return
    kinds = {value_of(i).dtype for i in node.all_input_nodes if isinstance(value_of(i), torch.Tensor)}
    if base is None and may_be_view(changed):
        _make_private(node)  # where one unit is left, what was a copy may be a view
    unseen = base is not None and not _is_read(base, order, order[node])
    keeps_type = base is None and node.target in INPLACE_OPERATORS and len(kinds) == 1
    if unseen or keeps_type:
        make_plain(node)


def _check_gradients(node: fx.Node, changed: fx.Node, base: fx.Node | None) -> None:
    """Gradients of what is changed without them are those of the value before."""
    if NO_GRAD.has(node) and (base is None or base.op != "get_attr") and not NO_GRAD.has(changed):
        raise CaptureError(
            "a value is changed in place under torch.no_grad()",
            where=f"module {path_of(node) or '(root)'!r}",
            remedy="use an op that makes a new value",
        )


def _make_private(node: fx.Node) -> None:
    """Let an in-place op change a value that is nobody else's."""
    if node.op != "call_module":
        make_plain(node)
        return
    copy_first(node)


def _detach_what_enters(node: fx.Node, base: fx.Node) -> None:
    """A buffer lives longer than the graph of a step's gradients, which gates begin behind a `detach` too."""
    if CONSTANT.has(base) or isinstance(value_of(base), torch.nn.Parameter):
        raise CaptureError(
            f"{base.target!r}, a parameter or a tensor that is no buffer, is changed in place in forward",
            where=f"module {path_of(node) or '(root)'!r}",
            remedy="change it outside of forward, or make it a buffer",
        )
    for source in node.all_input_nodes[1:]:
        value = value_of(source)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and source.op != "get_attr":
            with node.graph.inserting_before(node):
                detached = node.graph.call_method("detach", (source,))
            take_all(detached, source, but=(CHANGES,))
            node.replace_input_with(source, detached)


def _redirect(old: fx.Node, new: fx.Node, order: dict[fx.Node, int], after: int) -> None:
    """Let what comes later read `new` in place of `old`, and views of `new` in place of earlier ones of `old`."""
    earlier = [v for v in _views(old) if v is not new and order.get(v, after) <= after and _is_read(v, order, after)]
    for user in list(old.users):
        if order.get(user, after) > after:
            user.replace_input_with(old, new)
    for view in earlier:
        with new.graph.inserting_after(new):
            again = new.graph.node_copy(view, lambda n: new if n is old else n)
        stand_beside(again, new)
        order[again] = after
        _redirect(view, again, order, after)


def detach_without_grad(graph: fx.Graph) -> None:
    """What a model computes under `torch.no_grad()` passes no gradient on: what leaves the block is detached."""
    for node in list(graph.nodes):
        value = VALUE.get(node)
        outside = [u for u in node.users if not NO_GRAD.has(u)]
        if not NO_GRAD.has(node) or not outside:
            continue
        if isinstance(value, torch.Tensor):
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            stand_beside(detached, node)
            VALUE.set(detached, value)
            for user in outside:
                user.replace_input_with(node, detached)
        elif isinstance(value, tuple | list):
            for user in outside:
                NO_GRAD.set(user, True)  # an element


def _views(value: fx.Node) -> list[fx.Node]:
    return [u for u in value.users if u.all_input_nodes[0] is value and is_view(u)]


def _is_read(value: fx.Node, order: Mapping[fx.Node, int], after: int, but: fx.Node | None = None) -> bool:
    """Whether a value, or a view of it (`but` through one), is read after some place; its sizes do not count."""
    later = any(order.get(u, after) > after and not isinstance(VALUE.get(u), _FACTS) for u in value.users)
    return later or any(_is_read(view, order, after, but) for view in _views(value) if view is not but)


def _assign(node: fx.Node, order: dict[fx.Node, int]) -> None:
    """Item assignment: to a part of a buffer as it is, of a value as another value where it has such a form."""
    base, changed = changed_part_of(node), node.args[0]
    if not isinstance(changed, fx.Node):
        return
    _check_gradients(node, changed, base)
    value = node.args[2]
    if base is None or base.op != "get_attr" or CONSTANT.has(base):
        _scatter(node, order)
    elif isinstance(value, fx.Node) and value.target in INPLACE_OPERATORS:
        node.graph.erase_node(node)  # the sum in place has written it
    else:
        _detach_what_enters(node, base)


def _scatter(node: fx.Node, order: dict[fx.Node, int]) -> None:
    """`base[index] = value` as a new value; `base[index] += x` has computed the value by an in-place sum."""
    base, index, value = node.args
    if not isinstance(base, fx.Node) or (is_view(base) and not _is_last_of(node, base, order)):
        return
    result = assigned(node, base, index, value, order)
    if result is None:
        return
    if isinstance(value, fx.Node) and value.target in INPLACE_OPERATORS and changed_part_of(value) is base:
        make_plain(value)
    _redirect(base, result, order, order[node])
    node.graph.erase_node(node)


def _is_last_of(node: fx.Node, view: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether nobody but a view reads the value that it is one of, from a change of the view on."""
    whole = changed_part_of(node)
    own = whole is not None and whole.op in ("call_function", "call_method", "call_module")
    return own and whole is not None and not _is_read(whole, order, order[node], but=view)


def _scatter_what_is_seen(node: fx.Node, changed: fx.Node, base: fx.Node, order: dict[fx.Node, int]) -> bool:
    """A change of a value through slices of it (`base[index].add_(x)`) as a new value. Returns whether it is one."""
    if node.op == "call_module" or changed.target is not operator.getitem or changed.args[0] is not base:
        return False
    index = changed.args[1]
    if any(u.target is operator.setitem and u.args == (base, index, node) for u in node.users):
        return False  # by an assignment
    result, after = assigned(node, base, index, node, order), order[node]
    if result is None:
        return False
    make_plain(node)
    later = [u for u in node.users if order.get(u, after) > after]
    if later:
        with node.graph.inserting_after(result):
            seen = node.graph.node_copy(changed, lambda n: result if n is base else n)
        stand_beside(seen, node)
        order[seen] = after
        for user in later:
            user.replace_input_with(node, seen)
    _redirect(base, result, order, after)
    return True
