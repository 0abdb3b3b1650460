"""Ways to call every op of the rule table, found by trying: its signature says which arguments there are, their names
and types which values to try. A way is kept if the op runs on batches of two sizes and gives finite numbers.
"""

from __future__ import annotations

import inspect
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from op_values import (
    LAYOUTS,
    MODE,
    TRANSPOSED,
    WIDTH,
    WITH_UNITS,
    Call,
    Parameter,
    Slot,
    X,
    Y,
    values_by_name,
    values_by_type,
)
from torch import nn

from fxcat.passes.rules import table


def keys() -> list[tuple[str, Any]]:
    """Every key of the rule table with its kind."""
    return [
        *(("module", cls) for cls in table._MODULES),
        *(("function", function) for function in table._FUNCTIONS),
        *(("method", name) for name in table._METHODS),
    ]


def name_of(kind: str, key: Any) -> str:
    """The name of a key in test ids."""
    if kind == "method":
        return f"Tensor.{key}"
    module = {"torch.nn.functional": "F", "torch.functional": "torch", "_operator": "operator", None: "torch"}
    own = module.get(key.__module__, str(key.__module__)).replace("torch.nn.modules.", "nn.")
    return f"{own}.{key.__name__}"


def _values(parameter: Parameter, shape: tuple[int, ...]) -> list[Any]:
    if parameter.kind == "Tensor" and parameter.name in ("self", "input", "tensor", "tensor1", "query", "x"):
        return [X]
    if parameter.name == "training":
        return [MODE]
    if parameter.kind == "bool" or isinstance(parameter.default, bool):
        return [not parameter.default] if isinstance(parameter.default, bool) else [True, False]
    found = [v for v in values_by_name(parameter.name, shape) if _is_of(parameter.kind, v)]
    return found or values_by_type(parameter.kind, shape)


def _is_of(kind: str, value: Any) -> bool:
    """Whether a value may be an argument of a type, as far as the signature says it."""
    if "Tensor" in kind:
        return isinstance(value, Slot)
    return kind == "?" or not isinstance(value, Slot)


# -- signatures -------------------------------------------------------------------------------------------------------

SKIPPED = {"out", "memory_format", "layout", "device", "generator", "pin_memory", "names", "_stacklevel", "inplace"}
SKIPPED |= {"requires_grad", "non_blocking", "process_group", "self_is_batched", "out_int32", "max_values"}


def signatures(kind: str, key: Any) -> Iterator[tuple[Parameter, ...]]:
    """The overloads of an op, without those that write to `out`."""
    if kind == "module":
        yield tuple(_of_python(inspect.signature(key.__init__).parameters, skip=1))
        return
    name = key if kind == "method" else key.__name__
    if kind == "method" or key.__module__ in (None, "torch", "torch._C._nn", "torch._C", "torch._C._linalg"):
        native = [n for n in (name, f"linalg_{name}") if _schemas(n)]
    elif hasattr(torch, name) and key.__module__ == "_operator" and _schemas(name):
        native = [name]
    else:
        native = []
    for schema in _schemas(native[0]) if native else ():
        parameters = [
            Parameter(a.name, str(a.type), not a.has_default_value(), a.kwarg_only, a.default_value)
            for a in schema.arguments
        ]
        takes = parameters and (parameters[0].kind.startswith(("Tensor", "List[Tensor]")) or name == "einsum")
        if takes and not any(p.kind == "Tensor" and p.keyword_only for p in parameters):
            yield tuple(parameters)
    function = getattr(torch.Tensor, key) if kind == "method" else key
    # those that choose one of two functions by a flag have the signature of the first
    function = getattr(F, f"_{name}", function) if getattr(F, name, None) is key else function
    try:
        yield tuple(_of_python(inspect.signature(function).parameters))
    except ValueError:  # written in C
        if not native:
            yield (Parameter("self", "Tensor", True),)


def _schemas(name: str) -> list[Any]:
    return torch._C._jit_get_schemas_for_operator(f"aten::{name}")


def _of_python(parameters: Mapping[str, inspect.Parameter], skip: int = 0) -> Iterator[Parameter]:
    for p in itertools.islice(parameters.values(), skip, None):
        if p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL:
            continue
        required = p.default is p.empty
        first = p.name in ("input", "self", "tensor", "tensors", "query", "x", "data")
        kind = ("List[Tensor]" if p.name == "tensors" else "Tensor") if first else ""
        default = None if required else p.default
        yield Parameter(p.name, kind or _kind_of(p), required, p.kind is p.KEYWORD_ONLY, default)


def _kind_of(p: inspect.Parameter) -> str:
    if isinstance(p.default, bool):
        return "bool"
    text = str(p.annotation).lower()
    if isinstance(p.default, float) or "float" in text:
        return "float"
    if p.name in ("other", "end", "target", "key", "value", "grid"):
        return "Tensor"
    return "int" if isinstance(p.default, int) or "int" in text else "?"


SPECIAL: dict[Any, tuple[Call, ...]] = {
    torch.einsum: (
        Call("NCHW", ("bchw,bchw->bchw", X, Y), {}),
        Call("NCL", ("bcl,bdl->bcd", X, Y), {}),
        Call("NLC", ("...c,dc->...d", X, Slot("kernel", (8, WIDTH))), {}),
        Call("NC", ("bc,bc->b", X, Y), {}),
    ),
    F.bilinear: (
        Call("NC", (X, Y, Slot("kernel", (4, WIDTH, WIDTH))), {}),
        Call("NLC", (X, Y), {"weight": Slot("kernel", (4, WIDTH, WIDTH)), "bias": Slot("vector", (4,))}),
    ),
    torch.cdist: (
        Call("NLC", (X, Y), {}),
        Call("NLC", (X,), {"x2": Y, "p": 1.0}),
        Call("NC", (X, Slot("kernel", (4, WIDTH))), {}),
        Call("NCL", (X, Y, 3.0), {}),
    ),
    F.local_response_norm: (Call("NCHW", (X, 3), {}), Call("NCL", (X, 2), {"alpha": 0.1, "k": 2.0})),
    operator.getitem: tuple(
        Call("NCHW", (X, index), {})
        for index in (
            *((slice(None), 1), (slice(None), slice(1, 3)), (..., None), (..., 0), (slice(None), slice(None, None, 2))),
            *((slice(None), [3, 1]), (slice(None), -1), slice(None), (slice(None), Slot("index", (3,)))),
        )
    ),
    "where": (
        Call("NCHW", (X, Slot("mask", LAYOUTS["NCHW"]), 0.0), {}),
        Call("NCHW", (X, Slot("mask", LAYOUTS["NCHW"]), Y), {}),
        Call("NCHW", (X,), {"condition": Slot("mask", LAYOUTS["NCHW"]), "other": Y}),
    ),
    "type": tuple(Call("NCHW", (X, dtype), {}) for dtype in (torch.float64, torch.float32)),
    "to": (
        Call("NCHW", (X, torch.float64), {}),
        Call("NCHW", (X,), {"dtype": torch.float32}),
        Call("NC", (X, "cpu"), {}),
    ),
    "unfold": (Call("NCHW", (X, 2, 2, 2), {}), Call("NLC", (X, 1, 2, 1), {})),
    "norm": (Call("NCHW", (X,), {"dim": 1, "p": 2, "keepdim": True}), Call("NCL", (X, 2, -1), {})),
}
"""Calls that no signature tells."""

# -- trying -----------------------------------------------------------------------------------------------------------


def apply(kind: str, key: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function or method."""
    if kind == "method":
        return getattr(args[0], key)(*args[1:], **kwargs)
    return key(*args, **kwargs)


def fill(value: Any, tensors: Callable[[Slot], torch.Tensor]) -> Any:
    """Put tensors into slots."""
    if isinstance(value, Slot):
        return tensors(value)
    if isinstance(value, list | tuple) and any(isinstance(v, Slot) for v in value):
        return type(value)(fill(v, tensors) for v in value)
    return value


def constant(slot: Slot) -> torch.Tensor:
    """The value of a slot that has no units."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(slot.shape, generator=generator, dtype=torch.float64)
    if slot.kind == "mask":
        return drawn > 0.4
    if slot.kind == "index":
        return torch.tensor([0, 2, 1])
    if slot.kind == "boxes":
        return torch.tensor([[0.0, 0, 0, 3, 3], [0, 1, 1, 3, 2]], dtype=torch.float64)
    return drawn + 0.5 if slot.kind == "positive" else 2 * drawn - 1


def _runs(kind: str, key: Any, call: Call) -> bool:
    """Whether the op takes these arguments for several batch sizes, gives numbers, and leaves examples apart."""
    shapes: list[list[torch.Size]] = []
    for batch in (1, 2, 3):
        generator = torch.Generator().manual_seed(0)

        def tensors(slot: Slot, batch: int = batch, generator: torch.Generator = generator) -> torch.Tensor:
            if slot == MODE:
                return False  # pyright: ignore[reportReturnType]
            if slot not in WITH_UNITS:
                return constant(slot).expand(batch, *slot.shape) if slot.kind == "grid" else constant(slot)
            drawn = call.within(torch.randn(batch, *LAYOUTS[call.layout], generator=generator, dtype=torch.float64))
            return drawn.transpose(-1, -2) if slot == TRANSPOSED else drawn

        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                if kind == "module":
                    result = key(*call.args, **call.kwargs).double()(tensors(X))
                else:
                    args = [fill(a, tensors) for a in call.args]
                    kwargs = {k: fill(v, tensors) for k, v in call.kwargs.items()}
                    result = apply(kind, key, args, kwargs)
        except Exception:
            return False
        found = list(results(result))
        if not found or not all(bool(r.double().isfinite().all()) and r.numel() for r in found):
            return False
        shapes.append([r.shape for r in found])
    one, two, three = shapes
    return len(one) == len(two) == len(three) and all(
        a == b == c or (a[1:] == b[1:] == c[1:] and (a[0], b[0], c[0]) == (1, 2, 3))
        for a, b, c in zip(one, two, three, strict=True)
    )


def results(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that an op gave."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from results(part)


def _calls(parameters: tuple[Parameter, ...], layout: str, kind: str) -> Iterator[list[Call]]:
    """Forms of a call, each with the values to try: what is required by position and by keyword, and each option."""
    shape = LAYOUTS[layout]
    required = [p for p in parameters if p.required and p.name not in SKIPPED]
    options = [p for p in parameters if not p.required and p.name not in (*SKIPPED, "training")]
    mode = {"training": MODE} if any(p.name == "training" and not p.required for p in parameters) else {}
    chosen = [_values(p, shape) for p in required]
    first = 0 if kind == "module" else 1
    domains = ("any", "small", "positive", "truth") if kind != "module" else ("any",)

    def forms(named: int, option: Parameter | None, spread: bool = False) -> list[Call]:
        found: list[Call] = []
        extras = [] if option is None else [_values(option, shape)]
        for values in itertools.islice(itertools.product(*chosen, *extras), 60):
            own, extra = values[: len(required)], values[len(required) :]
            args = [v for p, v in list(zip(required, own, strict=True))[:named] if not p.keyword_only]
            kwargs = mode | {p.name: v for p, v in list(zip(required, own, strict=True))[len(args) :]}
            if spread:
                if not isinstance(args[-1], tuple):
                    continue
                args = [*args[:-1], *args[-1]]
            if option is not None and extra:
                kwargs[option.name] = extra[0]
            found += [Call(layout, tuple(args), kwargs, domain) for domain in domains]
        return found

    yield forms(len(required), None)
    if len(required) > first:
        yield forms(first, None)
        if kind == "method":
            yield forms(len(required), None, spread=True)
    for option in options:
        yield forms(len(required), option)


NEED_SPACE = (nn.GroupNorm, F.group_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.instance_norm)
"""PyTorch refuses statistics over one number, of which removal may leave no more where there is no spatial axis."""


def calls(kind: str, key: Any, most: int = 16) -> list[Call]:
    """Ways to call an op that run: all forms in the first layout that takes them, and the plain one in every layout."""
    found: dict[str, Call] = {str(c): c for c in SPECIAL.get(key, ()) if _runs(kind, key, c)}
    seen: set[tuple[Any, ...]] = set()
    for parameters in signatures(kind, key):
        for layout in ("NCHW", "NCL", "NLC", "NC", "NCDHW"):
            if layout == "NC" and key in NEED_SPACE:
                continue
            for number, form in enumerate(_calls(parameters, layout, kind)):
                names = (number, *(p.name for p in parameters))
                if number and names in seen:
                    continue
                several = 3 if names not in seen and not number else 1
                working = itertools.islice(_different(c for c in form if _runs(kind, key, c)), several)
                for call in working:
                    seen.add(names)
                    found.setdefault(str(call), call)
    return list(found.values())[:most]


def _different(calls: Iterable[Call]) -> Iterator[Call]:
    """Without those that differ in the domain only."""
    known: set[str] = set()
    for call in calls:
        arguments = str(call).split(": ", 1)[1]
        if arguments not in known:
            known.add(arguments)
            yield call
