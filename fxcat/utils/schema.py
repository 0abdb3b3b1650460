"""What plain data from a file may be: one check per kind of value, put together to a schema. Everything is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Check = Callable[[Any, str], None]
"""Raises `ValueError` for a value that is not of its kind; the text says where the value is."""


def anything(value: Any, where: str) -> None:
    """No check."""


def flag(value: Any, where: str) -> None:
    """True or False."""
    _expect(isinstance(value, bool), where, "true or false")


def text(value: Any, where: str) -> None:
    """A text that is not too long for a name or a line."""
    _expect(isinstance(value, str) and len(value) <= 10_000, where, "a text of at most 10,000 characters")


def number(value: Any, where: str) -> None:
    """A finite number, or a flag."""
    _expect(isinstance(value, int | float) and math.isfinite(value), where, "a finite number")


def tensor(value: Any, where: str) -> None:
    """A tensor."""
    _expect(isinstance(value, torch.Tensor), where, "a tensor")


def integer(most: int, least: int = 0) -> Check:
    """A whole number between two others."""

    def check(value: Any, where: str) -> None:
        _expect(type(value) is int and least <= value <= most, where, f"a whole number from {least} to {most}")

    return check


def choice(*choices: Any) -> Check:
    """One of some values."""

    def check(value: Any, where: str) -> None:
        _expect(any(type(value) is type(c) and value == c for c in choices), where, "one of those that there are")

    return check


def optional(inner: Check) -> Check:
    """None, or what `inner` says."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def listed(inner: Check, most: int, least: int = 0) -> Check:
    """A list of at most so many."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, list | tuple) and least <= len(value) <= most, where, f"a list of {least} to {most}")
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def row(*inner: Check) -> Check:
    """A list with one entry for every check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, list | tuple) and len(value) == len(inner), where, f"a list of {len(inner)}")
        for i, (item, own) in enumerate(zip(value, inner, strict=True)):
            own(item, f"{where}[{i}]")

    return check


def named(inner: Check, most: int = 1_000_000) -> Check:
    """Values by names, at most so many."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, Mapping) and len(value) <= most, where, f"at most {most} names with values")
        for name, item in value.items():
            text(name, f"a name in {where}")
            inner(item, f"{where}.{name}")

    return check


def record(needed: Mapping[str, Check], more: Mapping[str, Check] | None = None) -> Check:
    """Values by these names; those of `more` may be missing, and no others are there."""
    known = {**needed, **(more or {})}

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, Mapping), where, "values by names")
        for name in needed:
            _expect(name in value, f"{where}.{name}", "there")
        for name, item in value.items():
            _expect(name in known, f"{name!r} in {where}", "known")
            known[name](item, f"{where}.{name}")

    return check


def _expect(is_right: bool, where: str, what: str) -> None:
    if not is_right:
        raise ValueError(f"{where[:200]} is not {what}")
