"""What Python does with a value that it asks for, found in its byte code: what is on the other side of a branch, and
whether a text is for people."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_RAISING = ("RAISE_VARARGS", "RERAISE")
_JUMPING = ("JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT")
_LEAVING = ("RETURN_VALUE", "RETURN_CONST", "RETURN_GENERATOR", "YIELD_VALUE", *_JUMPING[2:])

_TELLING = ("_assert", "warn", "warning", "warning_once", "info", "debug", "error", "print", "log")
"""Names of functions that show texts to people."""


def is_message(frame: types.FrameType) -> bool:
    """Whether a frame is in a statement that raises, asserts or tells something: what it formats decides nothing."""
    return _tells(frame.f_code, frame.f_lasti)


@cache
def _tells(code: types.CodeType, at: int) -> bool:
    steps, _ = _steps(code)
    here = next((i for i, step in enumerate(steps) if step.offset == at), 0)
    start = next((i for i in range(here, -1, -1) if steps[i].opname.startswith(_ENDING)), 0)
    end = next((i for i in range(here, len(steps)) if steps[i].opname.startswith(_ENDING)), len(steps) - 1)
    statement = steps[start + 1 : end + 1]
    return any(s.argval in _TELLING or s.opname in ("LOAD_ASSERTION_ERROR", "RAISE_VARARGS") for s in statement)


_ENDING = ("POP_TOP", "STORE_", "RETURN_", "RAISE_VARARGS", "RESUME")
"""Instructions that end a statement."""


def raises_otherwise(frame: types.FrameType, value: bool) -> bool:
    """Whether a frame is at a branch that a truth value decides, on whose other side is nothing but a `raise` that
    neither it nor a caller catches."""
    if sys.version_info < (3, 11):
        return False
    other = _other_side(frame.f_code, frame.f_lasti, value)
    if other is None:
        return False
    steps = _steps(frame.f_code)[0]
    known = _Errors.of([steps[i] for i in other], frame)
    places = [steps[i].offset for i in other if steps[i].opname in _RAISING]
    at: types.FrameType | None = frame
    while at is not None and at.f_code.co_name != "trace_module":
        if not at.f_globals.get("__name__", "").startswith(("fxcat.", "torch.")):
            left = _leaving(at, places, known)
            if left is None:
                return False
            known = left
        at = at.f_back
        places = [] if at is None else [at.f_lasti]
    return True


def casts_if_so(frame: types.FrameType) -> bool:
    """Whether a frame is in a comparison like that of `if x.dtype != y.dtype: x = x.to(y.dtype)`."""
    return sys.version_info >= (3, 11) and _casts(frame.f_code, frame.f_lasti)


@cache
def _casts(code: types.CodeType, at: int) -> bool:
    steps, place = _steps(code)
    branch = place.get(at, len(steps)) + 1
    while branch < len(steps) and steps[branch].opname in _UNSEEN:
        branch += 1
    if branch >= len(steps) or not (
        steps[branch].opname.startswith("POP_JUMP") and "_IF_FALSE" in steps[branch].opname
    ):
        return False
    body = steps[branch + 1 : place[steps[branch].argval]]
    calls, stores = (sum(s.opname.startswith(kind) for s in body) for kind in ("CALL", "STORE_"))
    known = all(s.opname.startswith(_OF_CASTS) for s in body)
    if not known or (calls, stores) != (1, 1):
        return False
    target, loads = body[-1].argval, _loaded(body)
    asked = _loaded(steps[: place[at]])
    names = loads[2:]
    return loads[:2] == [target, "to"] and bool(names) and asked[-len(loads) :] == [target, "dtype", *names]


def _loaded(steps: Sequence[dis.Instruction]) -> list[Any]:
    """The names that instructions load, one after another."""
    loads = [s.argval for s in steps if s.opname.startswith("LOAD_")]
    return [name for names in loads for name in (names if isinstance(names, tuple) else (names,))]


_UNSEEN = ("TO_BOOL", "CACHE", "EXTENDED_ARG", "NOT_TAKEN")
_OF_CASTS = ("LOAD_", "STORE_FAST", "CALL", "PRECALL", "PUSH_NULL", "KW_NAMES", *_UNSEEN)


@dataclass(frozen=True, slots=True)
class _Errors:
    """Classes of which an error is one; none where that is not known."""

    classes: tuple[type[BaseException], ...] = ()

    @classmethod
    def of(cls, steps: Sequence[dis.Instruction], frame: types.FrameType) -> _Errors:
        """Those that some instructions name."""
        named = [AssertionError if s.opname == "LOAD_ASSERTION_ERROR" else _global(s, frame) for s in steps]
        return cls(tuple(n for n in named if isinstance(n, type) and issubclass(n, BaseException)))

    def may_be(self, other: _Errors) -> bool:
        """Whether an `except` of other classes may catch them."""
        return not self.classes or not other.classes or any(issubclass(c, other.classes) for c in self.classes)


def _global(step: dis.Instruction, frame: types.FrameType) -> object:
    """The value of the global that an instruction loads, if it does."""
    if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
        return None
    return frame.f_globals.get(step.argval, frame.f_builtins.get(step.argval))


@cache
def _steps(code: types.CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    """The instructions of a code, and where they are among them by their offsets."""
    steps = list(dis.get_instructions(code))
    return steps, {step.offset: i for i, step in enumerate(steps)}


@cache
def _other_side(code: types.CodeType, at: int, value: bool) -> frozenset[int] | None:
    """The instructions on the other side of a branch, if there is a branch and they all lead to a `raise`."""
    steps, place = _steps(code)
    branch = place.get(at, len(steps))
    while branch < len(steps) and steps[branch].opname in _UNSEEN:
        branch += 1
    jump = steps[branch].opname if branch < len(steps) else ""
    if not jump.startswith("POP_JUMP") or not jump.endswith(("_IF_TRUE", "_IF_FALSE")):
        return None
    sides = branch + 1, place[steps[branch].argval]
    taken, other = sides if jump.endswith("_IF_TRUE") != value else sides[::-1]
    return _until_raised(code, other, taken)


def _until_raised(
    code: types.CodeType, start: int, taken: int = -1, ends: Container[int] = ()
) -> frozenset[int] | None:
    """The instructions that may run from one on until an error is raised; None if anything else may come, such as the
    instruction `taken`. `ends`: those that do not go on to the next one."""
    steps, place = _steps(code)
    stack, seen = [start], set[int]()
    while stack:
        now = stack.pop()
        if now in seen:
            continue
        if now == taken or now >= len(steps) or steps[now].opname in _LEAVING:
            return None
        seen.add(now)
        step = steps[now]
        if step.opname in _RAISING:
            continue
        # a `with` does not keep an error
        if (step.opcode in dis.hasjrel or step.opcode in dis.hasjabs) and not _exits(steps, now):
            stack.append(place[step.argval])
        if step.opname not in _JUMPING and now not in ends:
            stack.append(now + 1)
    return frozenset(seen)


def _exits(steps: Sequence[dis.Instruction], at: int) -> bool:
    """Whether an instruction jumps where the end of a `with` takes an error for done with."""
    before = at - 1
    while steps[before].opname in ("TO_BOOL", "CACHE"):
        before -= 1
    return steps[before].opname == "WITH_EXCEPT_START"


def _leaving(frame: types.FrameType, places: Sequence[int], errors: _Errors) -> _Errors | None:
    """What leaves a frame of errors at some places of its code; None if a handler may go on after one."""
    steps, place = _steps(frame.f_code)
    entries = dis._parse_exception_table(frame.f_code)  # pyright: ignore[reportAttributeAccessIssue]  # what dis.Bytecode shows, and nobody else
    for handler in {e.target for at in places for e in entries if e.start <= at < e.end}:
        start = place[handler]
        others = {i + 1 for i in range(start, len(steps)) if _asks_for_others(steps, i, frame, errors)}
        found = _until_raised(frame.f_code, start, ends=others)
        if found is None:
            return None
        raising = [steps[i] for i in found if steps[i].opname in _RAISING]
        inside = [(e.start, e.end) for e in entries if e.target == handler]
        outside = [s.offset for s in raising if not any(a <= s.offset < b for a, b in inside)]
        new = _Errors() if any(s.opname == "RAISE_VARARGS" for s in raising) else errors
        left = _leaving(frame, outside, new)
        if left is None:
            return None
        errors = left
    return errors


def _asks_for_others(steps: Sequence[dis.Instruction], at: int, frame: types.FrameType, errors: _Errors) -> bool:
    """Whether an instruction asks whether an error is of some classes, and these errors are not."""
    if steps[at].opname != "CHECK_EXC_MATCH":
        return False
    first = at - 1
    if steps[first].opname == "BUILD_TUPLE":
        first -= steps[first].arg or 0
    asked = steps[first:at]
    wanted = _Errors.of(asked, frame)
    plain = sum(s.opname.startswith("LOAD_") for s in asked) == len(wanted.classes)
    return plain and not errors.may_be(wanted)
