"""Classes as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fxcat.exporters.source.layers import EMPTY, Argument, Layer
from fxcat.exporters.source.names import HOLE, quoted
from fxcat.exporters.source.parts import is_plain_name
from fxcat.exporters.source.tree import Base, Block, BlockClass, Held, Tree, Values, holes
from fxcat.passes.codegen.statements import INDENT

WIDTH = 120
"""Characters of a line."""
SHOWN = 3
"""Paths that the comment above a class names."""


@dataclass(frozen=True, slots=True)
class _Brackets:
    """Code in brackets, which is broken into lines where it is too long for one."""

    opening: str
    parts: tuple[Code, ...]
    closing: str = ")"

    def flat(self) -> str:
        return f"{self.opening}{', '.join(map(_flat, self.parts))}{self.closing}"


Code: TypeAlias = "str | _Brackets"


def _flat(code: Code) -> str:
    return code if isinstance(code, str) else code.flat()


def _broken(code: Code, indent: str, before: str = "", after: str = "") -> list[str]:
    """Code on as few lines as there is room on. `before`, `after`: what stands on its lines too."""
    line = f"{indent}{before}{_flat(code)}{after}"
    if len(line) <= WIDTH or isinstance(code, str) or not code.parts:
        return [line]
    lines = [f"{indent}{before}{code.opening}"]
    for part in code.parts:
        lines += _broken(part, indent + INDENT, after=",")
    return [*lines, f"{indent}{code.closing}{after}"]


def _literal(value: Any) -> str:
    """A plain value as code."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, tuple):
        parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return f"({', '.join(map(_literal, parts))}{',' if len(parts) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return quoted(value) if isinstance(value, str) else repr(value)


def class_text(made_by: BlockClass, last: Sequence[str] = (), train: Sequence[str] = ()) -> list[str]:
    """A class. `last`: lines that come last in its constructor. `train`: a method of that name."""
    parameters, values = made_by.parameters(), [v for _, v in holes(made_by.members, made_by.numbers)]

    def at(hole: int) -> str:
        return made_by.arguments.get(hole) or _literal(values[hole])

    comment = f"# {_said(made_by.origin)}" + (f": {_listed(made_by.paths)}" if any(made_by.paths) else "")
    lines = [comment[:WIDTH], f"class {made_by.name}(nn.{made_by.base}):"]
    head = _Brackets(f"{INDENT}def __init__(", ("self", *parameters), "):")
    lines += _broken(head, "") if parameters else [f"{INDENT}def __init__(self):"]
    if len(lines[-1]) and lines[-1] == "):":
        lines[-1] = f"{INDENT}):"
    first = len(values) - len(made_by.numbers)
    used = {made_by.arguments[i] for i in range(first, len(values)) if i in made_by.arguments}
    lines += [2 * INDENT + line for line in _constructor(made_by, at)]
    lines += [f"{2 * INDENT}self.{name} = {name}" for name in parameters if name in used]
    lines += [2 * INDENT + line for line in last]
    for method in (made_by.lines, train):
        if method:
            lines += ["", *(INDENT + _filled(line, made_by, first) for line in method)]
    return lines


def _filled(line: str, made_by: BlockClass, first: int) -> str:
    """A line of code with what stands in its holes."""
    parts = line.split(HOLE)
    for i in range(1, len(parts), 2):
        number = int(parts[i])
        name = made_by.arguments.get(first + number)
        parts[i] = _literal(made_by.numbers[number]) if name is None else f"self.{name}"
    return "".join(parts)


def _constructor(made_by: BlockClass, at: Callable[[int], str]) -> Iterator[str]:
    """Its body."""
    place, given, own = 0, list[tuple[str, Code]](), list[str]()
    for name, tree in made_by.members:
        code, place = _code(tree, at, place)
        if isinstance(tree, Values):
            own += _registered(name, tree, code)
        elif made_by.base == "Module":
            own += _broken(code, "", f"self.{name} = ") if is_plain_name(name) else _added(name, code)
        else:
            given.append((name, code))
    yield from _broken(_contents(made_by.base, "super().__init__(", given), "") if given else ["super().__init__()"]
    yield from own


def _added(name: str, code: Code) -> list[str]:
    return _broken(_Brackets("self.add_module(", (quoted(name), code)), "")


def _registered(name: str, tree: Values, code: Code) -> list[str]:
    if tree.kind == "parameter":
        made = _Brackets("nn.Parameter(", (code, *([] if _can_learn(tree.dtype) else ["requires_grad=False"])))
        if is_plain_name(name):
            return _broken(made, "", f"self.{name} = ")
        return _broken(_Brackets("self.register_parameter(", (quoted(name), made)), "")
    kept = ("persistent=False",) if tree.kind == "constant" else ()
    return _broken(_Brackets("self.register_buffer(", (quoted(name), code, *kept)), "")


def _can_learn(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _contents(base: Base, opening: str, children: Sequence[tuple[str, Code]]) -> _Brackets:
    """A call that makes a container with these in it."""
    codes = tuple(code for _, code in children)
    if base == "ModuleList":
        return _Brackets(opening, (_Brackets("[", codes, "]"),))
    if base == "ModuleDict":
        items = tuple(_after(f"{quoted(name)}: ", code) for name, code in children)
        return _Brackets(opening, (_Brackets("{", items, "}"),))
    if [name for name, _ in children] == [str(i) for i in range(len(children))]:
        return _Brackets(opening, codes)
    pairs = tuple(_Brackets("(", (quoted(name), code)) for name, code in children)
    return _Brackets(f"{opening}OrderedDict(", (_Brackets("[", pairs, "]"),), "))")


def _after(text: str, code: Code) -> Code:
    return text + code if isinstance(code, str) else _Brackets(text + code.opening, code.parts, code.closing)


def _code(tree: Tree, at: Callable[[int], str], place: int) -> tuple[Code, int]:
    """The code that makes something whose first hole has the number `place`; and the number of the next one."""
    if isinstance(tree, Layer):
        owner = f"{tree.owner}.{tree.name}("
        codes = [_argument(a, at(place + i)) for i, a in enumerate(tree.arguments)]
        return _Brackets(owner, tuple(c for c in codes if c)), place + len(codes)
    if isinstance(tree, Values):
        dtype = () if tree.dtype == torch.float32 else (f"dtype={tree.dtype}",)
        return _Brackets("torch.zeros(", (at(place), *dtype)), place + 1
    if isinstance(tree, Held):
        children: list[tuple[str, Code]] = []
        for name, child in tree.children:
            code, place = _code(child, at, place)
            children.append((name, code))
        if tree.base == "Module":
            return _Brackets("nn.Identity(", ()), place
        return _contents(tree.base, f"nn.{tree.base}(", children), place
    return _block(tree, at, place)


def _block(tree: Block, at: Callable[[int], str], place: int) -> tuple[Code, int]:
    parameters = tree.made_by.parameters()
    given = tuple(f"{name}={at(place + hole)}" for name, hole in parameters.items())
    return _Brackets(f"{tree.made_by.name}(", given), place + len(tree.values)


def _argument(argument: Argument, code: str) -> str:
    """An argument as it is written; empty if it is left out."""
    if argument.default is EMPTY:
        return code
    same = type(argument.value) is type(argument.default) and argument.value == argument.default
    return "" if same and code == _literal(argument.value) else f"{argument.name}={code}"


def _said(text: str) -> str:
    """Text that stays on its line."""
    return ascii(text)[1:-1]


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return _said(", ".join(paths[:SHOWN])) + more


_TYPES: Mapping[torch.dtype, str] = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"},
}


def reader(name: str, weights: str, dtypes: Sequence[torch.dtype]) -> list[str]:
    """The functions that read the weights."""
    types = _Brackets("TYPES = {", tuple(f'"{_TYPES[d]}": {d}' for d in dtypes), "}")
    return [*_broken(types, ""), *_READER.format(name=name, weights=quoted(weights)).splitlines()]


def has_type(dtype: torch.dtype) -> bool:
    """Whether weights of this type can be read again."""
    return dtype in _TYPES


_READER = '''

def load(path=Path(__file__).with_name({weights})):
    """The network with its weights, in inference mode."""
    network = {name}()
    tensors = dict(network.named_parameters(remove_duplicate=False))
    tensors.update(network.named_buffers(remove_duplicate=False))
    stored = read(path)
    if stored.keys() != tensors.keys():
        raise ValueError(f"{{path}} holds the weights of another network")
    with torch.no_grad():
        for name, tensor in stored.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{{path}} holds {{name}} in another shape")
            tensors[name].copy_(tensor)
    return network.eval()


def read(path):
    """The tensors of a safetensors file."""
    content = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {{}}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        values = torch.frombuffer(content[first:last], dtype=TYPES[entry["dtype"]]) if last > first else torch.zeros(0)
        found[name] = values.reshape(entry["shape"])
    return found
'''
