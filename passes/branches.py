"""What Python does with a value that it asks for, found in its byte code: what is on the other side of a branch, and
whether a text is for people."""

from __future__ import annotations

import dis
import sys
import types
from functools import cache

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
    steps = list(dis.get_instructions(code))
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
    if sys.version_info < (3, 11) or not _other_side_raises(frame.f_code, frame.f_lasti, value):
        return False
    caller = frame.f_back
    while caller is not None and caller.f_code.co_name != "trace_module":
        ours = caller.f_globals.get("__name__", "").startswith(("fxcat.", "torch."))
        if not ours and _catches(caller.f_code, caller.f_lasti):
            return False
        caller = caller.f_back
    return True


@cache
def _other_side_raises(code: types.CodeType, at: int, value: bool) -> bool:
    steps = list(dis.get_instructions(code))
    place = {step.offset: i for i, step in enumerate(steps)}
    branch = place.get(at, len(steps))
    while branch < len(steps) and steps[branch].opname in ("TO_BOOL", "CACHE", "EXTENDED_ARG"):
        branch += 1
    jump = steps[branch].opname if branch < len(steps) else ""
    if not jump.startswith("POP_JUMP") or not jump.endswith(("_IF_TRUE", "_IF_FALSE")):
        return False
    sides = branch + 1, place[steps[branch].argval]
    taken, other = sides if jump.endswith("_IF_TRUE") != value else sides[::-1]
    stack, seen = [other], set[int]()
    while stack:
        now = stack.pop()
        if now in seen:
            continue
        if now == taken or now >= len(steps) or steps[now].opname in _LEAVING or _catches(code, steps[now].offset):
            return False
        seen.add(now)
        step = steps[now]
        if step.opname in _RAISING:
            continue
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            stack.append(place[step.argval])
        if step.opname not in _JUMPING:
            stack.append(now + 1)
    return True


@cache
def _catches(code: types.CodeType, at: int) -> bool:
    """Whether an error at some place of a code is caught there: `with` and `finally` raise it again."""
    steps = list(dis.get_instructions(code))
    place = {step.offset: i for i, step in enumerate(steps)}
    entries = dis._parse_exception_table(code)  # pyright: ignore  # what dis.Bytecode shows, and nobody else
    return any(e.start <= at < e.end and _handles(steps, place[e.target]) for e in entries)


def _handles(steps: list[dis.Instruction], start: int) -> bool:
    """Whether a handler looks at the error: then it may go on."""
    for step in steps[start:]:
        if step.opname in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "POP_EXCEPT"):
            return True
        if step.opname in ("RERAISE", "WITH_EXCEPT_START"):
            return False
    return False
