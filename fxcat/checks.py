"""Checks of what users pass: one for every kind of value, the same at all public borders.

Each returns nothing, or the value in the form that is worked with, and raises `InputError` otherwise. `name` is how the
message calls a value: the argument ("lr"), or "Target(flops)" for one of a record.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fxcat.errors import FxcatError, InputError

_LONGEST = 60
"""Characters of a value in a message."""
_LARGEST = 2**53
"""No whole number of anything is larger: floating-point numbers and tensors could not hold it."""
_PLAIN = (bool, numbers.Number, str, bytes, type(None), list, tuple, dict, set)


def check_instance(
    value: Any,
    kinds: type[Any] | tuple[type[Any], ...],
    name: str,
    *,
    remedy: str | None = None,
    optional: bool = False,
) -> None:
    """An instance of one of these classes (`optional`: or None)."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    is_class = isinstance(value, type)  # it has what a protocol asks of its instances
    if (isinstance(value, kinds) and not is_class) or (optional and value is None):
        return
    wanted = " or ".join(map(_class_name, kinds))
    if is_class and issubclass(value, tuple(k for k in kinds if not getattr(k, "_is_protocol", False))):
        remedy = f"make an instance of it: {value.__name__}(…)"
    raise InputError(
        f"{_got(name)} {_kind_of(value)}, not {_article(wanted)} {wanted}",
        remedy=remedy or f"give {_article(wanted)} {wanted}",
    )


def check_module(value: Any, name: str) -> None:
    """A model."""
    check_instance(value, nn.Module, name)


def check_callable(value: Any, name: str, *, remedy: str | None = None, optional: bool = False) -> None:
    """A function, or an object that can be called; no class, of which a call would make an instance."""
    if (optional and value is None) or (callable(value) and not isinstance(value, type)):
        return
    if isinstance(value, type):
        remedy = f"make an instance of it: {value.__name__}(…)"
    raise InputError(f"{_got(name)} {_kind_of(value)}, not a function", remedy=remedy or "give a function")


def check_op(value: Any, name: str) -> None:
    """What a graph can call: a class or a function, but no module."""
    if not callable(value) or isinstance(value, nn.Module):
        raise InputError(
            f"{name} got {shown(value)}, which is no op",
            remedy="give the class of a module, a function, or the name of a tensor method",
        )


def check_number(
    value: Any,
    name: str,
    *,
    least: float = -math.inf,
    above: float | None = None,
    most: float = math.inf,
    kind: str | None = None,
    error: type[FxcatError] = InputError,
    remedy: str | None = None,
    optional: bool = False,
) -> None:
    """A finite number within [least, most], or (above, most]; no bool. `error`: for a number outside."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{_given(name, value)} is no {kind or 'number'}", remedy=remedy or "give a number")
    low = least if above is None else above
    try:
        inside = math.isfinite(value) and low <= float(value) <= most and value != above
    except OverflowError:  # an integer beyond all floating-point numbers
        inside = False
    if not inside:
        left = "[" if above is None and math.isfinite(low) else "("
        interval = f"{left}{_bound(low)}, {_bound(most)}{']' if math.isfinite(most) else ')'}"
        what = f"is outside {interval}" if kind is None else f"is no {kind}"
        raise error(f"{_given(name, value)} {what}", remedy=remedy or f"give a number in {interval}")


def plain_number(value: float | None) -> float | None:
    """A number that was checked, as one of Python's own, which can be stored and read without NumPy; None stays."""
    return None if value is None else float(value)


def check_integer(
    value: Any,
    name: str,
    *,
    least: int | None = None,
    most: int | None = None,
    kind: str = "whole number",
    remedy: str | None = None,
    optional: bool = False,
) -> None:
    """A whole number, not below `least` or above `most`; no bool, and no float."""
    if optional and value is None:
        return
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_whole and most is None and abs(int(value)) > _LARGEST:
        raise InputError(
            f"{_given(name, value)} is too large", remedy=remedy or "give an integer that a float can hold"
        )
    if not is_whole or (least is not None and int(value) < least) or (most is not None and int(value) > most):
        limits = ("" if least is None else f" ≥ {least}") + ("" if most is None else f" ≤ {most}")
        raise InputError(f"{_given(name, value)} is no {kind}", remedy=remedy or f"give an integer{limits}")


def check_flag(value: Any, name: str, *, optional: bool = False) -> None:
    """True or False (or 1 or 0); a text would count as True."""
    if (optional and value is None) or (isinstance(value, int) and value in (0, 1)):
        return
    raise InputError(f"{_given(name, value)} is neither True nor False", remedy=f"write {name}=True or {name}=False")


def check_text(value: Any, name: str, *, remedy: str | None = None, optional: bool = False) -> None:
    """A text."""
    if not isinstance(value, str) and not (optional and value is None):
        raise InputError(f"{_given(name, value)} is no text", remedy=remedy or "give a text, or leave it out")


def check_texts(value: Any, name: str, *, optional: bool = False) -> None:
    """Texts by their names, in a mapping."""
    if optional and value is None:
        return
    remedy = f'write {name}={{"accuracy": "76.1 %"}}'
    check_instance(value, Mapping, name, remedy=remedy)
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise InputError(f"{name}= holds {shown({key: text})}, and wants texts", remedy=remedy)


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """One of these texts."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{_given(name, value)} is unknown", remedy=f"choose one of {', '.join(map(repr, choices))}")


def check_path(value: Any, name: str = "path", *, optional: bool = False) -> None:
    """A path that a file or folder may have."""
    if optional and value is None:
        return
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{_given(name, value)} is no path", remedy="give a text or a pathlib.Path")
    text = os.fspath(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{_given(name, text)} is no path", remedy="give a text that is not empty, without zero bytes")


def as_path(value: Any, name: str = "path") -> Path:
    """A path, checked."""
    check_path(value, name)
    return Path(value)


def as_names(value: Any, name: str) -> tuple[str, ...]:
    """Several texts."""
    if isinstance(value, str):
        raise InputError(f"{_given(name, value)} is one string", remedy=f"write {name}=[{value!r}]")
    if not isinstance(value, Iterable) or isinstance(value, torch.Tensor | nn.Module):
        raise InputError(f"{_given(name, value)} is no list of names", remedy=f"write {name}=[…], or leave it out")
    return tuple(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def check_batches(value: Any, name: str, *, optional: bool = False) -> None:
    """Something that yields batches; a tensor would yield its examples, a dict its keys, a text its letters."""
    if optional and value is None:
        return
    yields = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    if not yields or isinstance(value, torch.Tensor | np.generic | np.ndarray | Mapping | str | bytes | nn.Module):
        raise InputError(
            f"{_got(name)} {_kind_of(value)}, not batches",
            remedy="give a data loader, or a list of batches: [(inputs, targets), …]",
        )


def check_device(value: Any, name: str = "device", *, remedy: str = 'give "cpu"', optional: bool = False) -> None:
    """A device that this machine has, and that holds values."""
    if optional and value is None:
        return
    try:
        if isinstance(value, bool) or torch.empty(0, device=value).is_meta:
            raise ValueError("it holds no values")
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # the last: PyTorch was built without it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{_given(name, value)} cannot be used: {reason}", remedy=remedy) from error


def check_gradients(function: str) -> None:
    """Gradients can be taken."""
    if not torch.is_grad_enabled():
        raise InputError(
            f"{function} was called where gradients are off",
            remedy="call it outside of torch.no_grad() and torch.inference_mode()",
        )


def shown(value: Any) -> str:
    """A value in a message: as it is written if that is short, else by its kind."""
    if isinstance(value, _PLAIN) and not _holds_tensor(value) and len(text := repr(value)) <= _LONGEST:
        return text
    return _kind_of(value)


def _holds_tensor(value: Any) -> bool:
    inside: Any = value.values() if isinstance(value, dict) else value
    return isinstance(value, list | tuple | dict | set) and any(not isinstance(v, _PLAIN) for v in inside)


def _kind_of(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{_article(name)} {name}"


def _class_name(kind: type[Any]) -> str:
    own = {nn.Module: "torch.nn.Module", torch.optim.Optimizer: "torch.optim.Optimizer"}
    return own.get(kind, kind.__name__)


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"


def _given(name: str, value: Any) -> str:
    """An argument as it was given: `lr=-1`, `Target(flops=2)`."""
    return f"{name[:-1]}={shown(value)})" if name.endswith(")") else f"{name}={shown(value)}"


def _got(name: str) -> str:
    """How a sentence begins on what a function (`fit()`) or an argument got."""
    return f"{name} got" if name.endswith("()") else f"{name}= is"


def _bound(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "−∞" if value < 0 else "∞"
