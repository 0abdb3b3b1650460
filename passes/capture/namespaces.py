"""In which namespaces of Python the code of a model runs, and what of Python's own names it uses there."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from torch import nn


def python_modules(traced: Sequence[nn.Module]) -> frozenset[str]:
    """Names of the Python modules whose code runs: those of the layers' classes, and of functions that layers hold."""
    names = {c.__module__ for cls in {type(m) for m in traced} for c in cls.__mro__}
    for module in traced:
        held = (v.func if isinstance(v, functools.partial) else v for v in vars(module).values())
        names |= {f.__module__ for f in held if isinstance(f, types.FunctionType)}
    return frozenset(n for n in names if n and n.partition(".")[0] not in sys.stdlib_module_names)


def loose_namespaces(traced: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Globals of the layers' code that are no Python module's: of source that was executed in a dict."""
    classes = {c for cls in {type(m) for m in traced} for c in cls.__mro__}
    methods = [f for c in classes for f in vars(c).values() if isinstance(f, types.FunctionType)]
    spaces = {id(f.__globals__): f.__globals__ for f in methods}
    strange = [s for s in spaces.values() if getattr(sys.modules.get(s.get("__name__", "")), "__dict__", None) is not s]
    if not strange:
        return []
    known = {id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)}
    return [space for space in strange if id(space) not in known]


def with_helpers(modules: frozenset[str]) -> frozenset[str]:
    """Python modules, and those from which they have functions and classes, unless these belong to Python, or to a
    package from which traced code has no function."""
    present = {name: len(vars(sys.modules[name])) for name in modules if name in sys.modules}
    return _found_helpers(frozenset(present.items()))


@cache
def _found_helpers(modules: frozenset[tuple[str, int]]) -> frozenset[str]:
    packages = {name.partition(".")[0] for name, _ in modules}
    packages |= {
        name.partition(".")[0]
        for module, _ in modules
        for name in taken_from(vars(sys.modules[module]), _codes(module))
    }
    found = {name for name, _ in modules if not name.startswith("torch.")}
    stack = list(found)
    while stack:
        for value in list(vars(sys.modules[stack.pop()]).values()):
            if not isinstance(value, types.ModuleType | types.FunctionType | type):
                continue  # not asked for anything: what stands in for a missing package raises
            name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if not isinstance(name, str) or name in found or name not in sys.modules:
                continue
            package = name.partition(".")[0]
            if package != "torch" and (package in packages or _is_loose(name)):
                found.add(name)
                stack.append(name)
    return frozenset(found)


def taken_from(known: dict[str, Any], codes: list[types.CodeType]) -> Iterator[str]:
    """The Python modules of other packages whose functions code with these globals uses."""
    for name in _names_used(codes):
        value = known.get(name)
        if isinstance(value, types.FunctionType):
            owner = value.__module__
        elif isinstance(value, types.ModuleType):
            owner = value.__name__
        else:
            continue
        if owner and owner.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "numpy", "fxcat"}:
            yield owner


def _names_used(codes: list[types.CodeType]) -> set[str]:
    """The names in code of functions and methods, wherever these are."""
    used: set[str] = set()
    stack = [c for code in codes for c in (code.co_consts if code.co_name == "<module>" else (code,))]
    while stack:
        code = stack.pop()
        if isinstance(code, types.CodeType):
            used |= set(code.co_names)
            stack += code.co_consts
    return used


def builtins_used(module: str, names: frozenset[str]) -> frozenset[str]:
    """Of some names of Python those that the code of a Python module uses, or may: its code is not at hand as a whole,
    or runs other code."""
    used = _names_used_in(module, len(vars(sys.modules[module])))
    return names if used is None or used & {"eval", "exec"} else used & names


@cache
def _names_used_in(module: str, size: int) -> frozenset[str] | None:
    """The names in the code of a Python module with so many globals; None if that is not at hand."""
    whole = _whole_code(module)
    return None if whole is None else frozenset(_names_used([whole, *codes_in(vars(sys.modules[module]))]))


@cache
def only_calls_in(module: str, name: str) -> bool:
    """Whether the code of a Python module does nothing with a global but call it."""
    return only_called(_codes(module), name)


def only_called(codes: list[types.CodeType], name: str) -> bool:
    codes = list(codes)
    while codes:
        code = codes.pop()
        is_run = code.co_flags & inspect.CO_OPTIMIZED  # not what was run when it was imported
        for step in dis.get_instructions(code) if is_run and name in code.co_names else ():
            # the lowest bit of a global's number: it is about to be called
            called = step.opname == "LOAD_GLOBAL" and step.arg is not None and step.arg & 1
            if step.argval == name and not called and step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                return False
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return sys.version_info >= (3, 11)


def _codes(module: str) -> list[types.CodeType]:
    """The code of a Python module, or where that is not at hand (a notebook), that of its functions and methods."""
    whole = _whole_code(module)
    return codes_in(vars(sys.modules[module])) if whole is None else [whole]


def _whole_code(module: str) -> types.CodeType | None:
    loader = getattr(sys.modules[module], "__loader__", None)
    try:
        whole = loader.get_code(module)  # pyright: ignore[reportOptionalMemberAccess]
    except (AttributeError, ImportError, SyntaxError):
        return None
    return whole if isinstance(whole, types.CodeType) else None


def codes_in(known: dict[str, Any]) -> list[types.CodeType]:
    """The code of functions and methods that have these globals."""
    values = list(known.values())
    values += [v for c in values if isinstance(c, type) for v in vars(c).values()]
    return [v.__code__ for v in values if isinstance(v, types.FunctionType) and v.__globals__ is known]


def _is_loose(name: str) -> bool:
    """Whether a Python module is not installed: a script's, or one beside it."""
    file = getattr(sys.modules[name], "__file__", None) or "site-packages"
    return "site-packages" not in file and name.partition(".")[0] not in {*sys.stdlib_module_names, "fxcat"}
