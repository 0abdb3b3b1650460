"""Texts that a model makes of sizes as keys of what it keeps (`self.grids[f"{h}x{w}"]`), while it is traced.

Such a text holds a mark in the place of each size, so that the dict finds the sizes again: another size is another key.
Only where a text can be nothing but a key: anywhere else it is what it is for the example, which is a guard.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

_MARKED: list[Any] = []
_MARK = re.compile("\ue000([0-9]+)\ue001")


def marked(proxy: Any) -> str:
    """A text that stands for a number, until `forget`."""
    _MARKED.append(proxy)
    return f"\ue000{len(_MARKED) - 1}\ue001"


def forget() -> None:
    """Forget the numbers that texts stand for."""
    _MARKED.clear()


def sizes_in(key: object) -> Any:
    """A key that is a marked text as a tuple of texts and numbers; any other as it is."""
    if not isinstance(key, str) or "\ue000" not in key:
        return key
    parts = _MARK.split(key)  # texts and numbers of marks, by turns
    return tuple(_MARKED[int(part)] if i % 2 else part for i, part in enumerate(parts))


def is_key(frame: types.FrameType) -> bool:
    """Whether a text that a frame is about to make can be nothing but a key of dicts that `takes_texts` of the module
    whose method it is."""
    names = _keyed(frame.f_code, frame.f_lineno)
    module = frame.f_locals.get(frame.f_code.co_varnames[0]) if names else None
    return bool(names) and all(getattr(getattr(module, name, None), "takes_texts", False) for name in names)


@cache
def _keyed(code: types.CodeType, line: int) -> frozenset[str]:
    """The attributes of which all texts that are made in some line of a method are keys; none if they are more."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return frozenset()
    method = tree.body[0]
    if not isinstance(method, ast.FunctionDef) or not code.co_argcount:
        return frozenset()
    line -= code.co_firstlineno - 1
    above = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
    expressions = [n for n in ast.walk(method) if isinstance(n, ast.expr) and _is_text(n)]
    made = [n for n in expressions if n.lineno <= line <= (n.end_lineno or 0)]
    outer = [n for n in made if not any(a in made for a in _above(n, above))]
    found = [name for n in outer for name in _used(n, method, above, code.co_varnames[0])]
    return frozenset() if None in found else frozenset(n for n in found if n is not None)


def _is_text(node: ast.AST) -> bool:
    """Whether an expression makes a text."""
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in ("str", "repr")
        return named or (isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join"))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod))


def _above(node: ast.AST, above: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in above:
        node = above[node]
        yield node


def _used(node: ast.AST, method: ast.AST, above: dict[ast.AST, ast.AST], this: str) -> list[str | None]:
    """The attributes of which an expression is a key; with None if it is used otherwise, too."""
    owner = above[node]
    if not isinstance(owner, ast.Assign) or owner.value is not node:
        return [_key_of(node, owner, this)]
    target = owner.targets[0]
    if len(owner.targets) > 1 or not isinstance(target, ast.Name):
        return [None]
    named = [n for n in ast.walk(method) if isinstance(n, ast.Name) and n.id == target.id and n is not target]
    read = [_key_of(n, above[n], this) if isinstance(n.ctx, ast.Load) else None for n in named]
    return [*read] or [None]


def _key_of(node: ast.AST, owner: ast.AST, this: str) -> str | None:
    """The attribute of the module of which an expression is a key where it stands."""
    held: ast.AST | None = None
    if isinstance(owner, ast.Subscript) and owner.slice is node:
        held = owner.value
    elif isinstance(owner, ast.Compare) and owner.left is node and len(owner.ops) == 1:
        held = owner.comparators[0] if isinstance(owner.ops[0], ast.In | ast.NotIn) else None
    elif isinstance(owner, ast.Call) and owner.args[:1] == [node] and isinstance(owner.func, ast.Attribute):
        held = owner.func.value if owner.func.attr in ("get", "setdefault", "pop") else None
    of_module = isinstance(held, ast.Attribute) and isinstance(held.value, ast.Name) and held.value.id == this
    return held.attr if of_module else None  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
