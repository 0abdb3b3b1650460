"""Ways to call every op of the rule table, found by trying: its signature says which arguments there are, their names
and types which values to try. A way is kept if the op runs on batches of two sizes and gives finite numbers.

Each way becomes a branch between two layers (`Branch`), all branches of an op one network (`Branches`).
"""

from __future__ import annotations

import inspect
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcat.passes.rules import table

WIDTH = 6
LAYOUTS: dict[str, tuple[int, ...]] = {
    "NC": (WIDTH,),
    "NCL": (WIDTH, 4),
    "NCHW": (WIDTH, 4, 4),
    "NCDHW": (WIDTH, 2, 4, 4),
    "NLC": (4, WIDTH),
}
"""Shapes of the first argument, without the batch axis."""


@dataclass(frozen=True)
class Slot:
    """A tensor among the arguments: `x` and `y` have units, the others are parameters or constants of a shape."""

    kind: str
    shape: tuple[int, ...] = ()


X, Y, TRANSPOSED = Slot("x"), Slot("y"), Slot("transposed")
WITH_UNITS = (X, Y, TRANSPOSED)
MODE = Slot("mode")
"""Whether the network is in training: what is random is so then only."""


@dataclass(frozen=True)
class Parameter:
    """What a signature says of one argument."""

    name: str
    kind: str
    required: bool
    keyword_only: bool = False
    default: Any = None


@dataclass(frozen=True)
class Call:
    """One way to call an op on a value of a layout; `domain`: of numbers that it takes."""

    layout: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    domain: str = "any"

    def within(self, value: torch.Tensor) -> torch.Tensor:
        """A value of the domain."""
        if self.domain == "truth":
            return value > 0
        if self.domain == "positive":
            return value.abs() + 0.5
        return value.tanh() * 0.9 if self.domain == "small" else value

    def __str__(self) -> str:
        args = [_shown(a) for a in self.args] + [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return f"{self.layout}, {self.domain}: ({', '.join(args)})"


def _shown(value: Any) -> str:
    if isinstance(value, Slot):
        return value.kind + (str(list(value.shape)) if value.shape else "")
    return f"({', '.join(map(_shown, value))})" if isinstance(value, tuple | list) else str(value)


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


# -- values to try ----------------------------------------------------------------------------------------------------


def _by_name(name: str, shape: tuple[int, ...]) -> list[Any]:
    """What arguments of this name usually are, for a first argument of this shape (without the batch axis)."""
    dims, spatial = len(shape) + 1, len(shape) - 1
    channel, rest = 1 if shape[0] == WIDTH else dims - 1, tuple(range(2, dims)) if shape[0] == WIDTH else (1,)
    flat = 1
    for size in shape:
        flat *= size
    known: dict[str, list[Any]] = {
        "dim": [channel, -1, (1, 2), *([rest] if rest else [])],
        "dims": [tuple(range(dims)[:1]) + tuple(range(1, dims))[::-1], -1, (1, 2), (-1,), (2,) + (1,) * (dims - 1)],
        "axis": [channel, -1],
        "dim0": [1],
        "dim1": [-1],
        "axis0": [1],
        "axis1": [-1],
        "source": [1, (1, -1)],
        "destination": [-1, (-1, 1)],
        "start_dim": [1],
        "end_dim": [-1],
        "shifts": [1, (1, 2), (1,)],
        "start": [1],
        "end": [3],
        "step": [2],
        "length": [2],
        "chunks": [2, 3],
        "sections": [2],
        "indices": [[1, 3], (2,)],
        "split_size": [2, [1, WIDTH - 1], [2, 2]],
        "split_size_or_sections": [2, [2, WIDTH - 2], [1, 3]],
        "split_sizes": [[2, WIDTH - 2], [1, 3]],
        "tensor_indices_or_sections": [],
        "repeats": [2, (1, 2) + (1,) * (dims - 2)],
        "sizes": [(3, -1), (2, WIDTH // 2), (2, 2)],
        "size": [(-1, *shape), (-1, flat), (-1, shape[0] // 2, 2, *shape[1:]), (4, *shape), (3, 1)],
        "shape": [(-1, flat), (-1, *shape)],
        "output_size": [2, (1,) * spatial, (8,) * spatial, (4, 5)],
        "scale_factor": [2, 0.5],
        "upscale_factor": [1],
        "downscale_factor": [2],
        "kernel_size": [2, (2,) * spatial],
        "stride": [2, (1,) * spatial],
        "padding": [1, (1,) * spatial],
        "dilation": [2, (2,) * spatial],
        "pad": [(1, 1), (0, 0, 1, 2), (1, 0, 0, 1, 1, 1)],
        "mode": ["bilinear", "nearest", "reflect", "circular", "linear", "trilinear", "row", "batch", "max"],
        "p": [2, 0.5, 1],
        "ord": [2, 1],
        "normalized_shape": [(shape[-1],)],
        "num_groups": [2, WIDTH, 1],
        "num_features": [WIDTH],
        "num_channels": [WIDTH],
        "in_channels": [WIDTH],
        "out_channels": [8],
        "in_features": [WIDTH],
        "out_features": [8],
        "num_parameters": [WIDTH],
        "groups": [2, WIDTH],
        "equation": ["bc...,bc...->bc...", "bc...,bd...->bcd", "b...c,b...c->b..."],
        "spatial_scale": [1.0],
        "sampling_ratio": [2],
        "correction": [0, 1],
        "decimals": [1],
        "accumulate": [True],
        "dtype": [torch.float64],
        "threshold": [0.1],
        "value": [0.25],
        "fill_value": [0.25],
        "min": [-0.5],
        "max": [0.5],
        "min_val": [-0.5],
        "max_val": [0.5],
        "exponent": [2, 3.0],
        "weight": [*_weights(shape), 0.3],
        "bias": [Slot("vector", (WIDTH,)), Slot("vector", (8,))],
        "running_mean": [Slot("statistic", (WIDTH,))],
        "running_var": [Slot("positive", (WIDTH,))],
        "mask": [Slot("mask", shape), Slot("mask", shape[1:])],
        "condition": [Slot("mask", shape)],
        "attn_mask": [Slot("bias", (shape[-2] if len(shape) > 1 else 1,) * 2)],
        "index": [Slot("index", (3,))],
        "grid": [Slot("grid", (3, 3, 2))],
        "boxes": [Slot("boxes")],
        "rois": [Slot("boxes")],
        "a": [X],
        "b": [Y, 2.0, 2, Slot("constant", shape), (slice(None), 1), (slice(None), slice(1, 3)), (..., None), 0],
        "operands": [],
        "tensor2": [Slot("vector", shape[-1:])],
        "dropout_p": [0.0],
        "scale": [0.7],
        "size_average": [],
        "num_embeddings": [10],
        "embedding_dim": [8],
    }
    return known.get(name, [])


def _weights(shape: tuple[int, ...]) -> list[Any]:
    """Kernels for a value of this shape, and weights along an axis."""
    spatial = len(shape) - 1
    kernel = Slot("kernel", (8, WIDTH, *((2,) * spatial)))
    return [kernel, Slot("kernel", (8, shape[-1])), Slot("vector", (WIDTH,)), Slot("vector", shape[-1:])]


def _by_type(kind: str, shape: tuple[int, ...]) -> list[Any]:
    kind = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional") else kind
    if kind == "Tensor":
        return [Y, TRANSPOSED, Slot("kernel", (shape[-1], 8)), Slot("vector", shape[-1:])]
    if kind.startswith("List[Tensor"):
        return [(X, Y), (X, Y, Slot("parameter", shape))]
    return {
        "number": [2.0, 0.5],
        "float": [0.5],
        "int": [2, 1],
        "bool": [True, False],
        "List[int]": [(2, 2), (2,), (1,)],
    }.get(kind, [])


def _values(parameter: Parameter, shape: tuple[int, ...]) -> list[Any]:
    if parameter.kind == "Tensor" and parameter.name in ("self", "input", "tensor", "tensor1", "query", "x"):
        return [X]
    if parameter.name == "training":
        return [MODE]
    if parameter.kind == "bool" or isinstance(parameter.default, bool):
        return [not parameter.default] if isinstance(parameter.default, bool) else [True, False]
    found = [v for v in _by_name(parameter.name, shape) if _is_of(parameter.kind, v)]
    return found or _by_type(parameter.kind, shape)


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
                return False  # pyright: ignore
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


# -- networks ---------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """A layer, an op on its result, and a layer on what that gives."""

    def __init__(self, kind: str, key: Any, call: Call) -> None:
        super().__init__()
        self.kind, self.key, self.call = kind, key, call
        self.before, self.beside = self._layer(), self._layer()
        self.op = key(*call.args, **call.kwargs) if kind == "module" else None
        self.constants = nn.ParameterDict()
        self.slots: dict[Slot, str] = {}
        for slot in self._slots((*call.args, *call.kwargs.values())):
            self.slots[slot] = name = f"{slot.kind}_{len(self.slots)}"
            value = constant(slot)
            if value.is_floating_point() and slot.kind not in ("boxes", "grid", "constant", "positive", "statistic"):
                self.constants[name] = nn.Parameter(value)
            else:
                self.register_buffer(name, value)
        with torch.no_grad():
            results = self.double()._results(torch.randn(2, 3, 4, 4, dtype=torch.float64))
            more = self._results(torch.randn(3, 3, 4, 4, dtype=torch.float64))
        self.whole = [r.dim() > 1 and r.shape != m.shape for r, m in zip(results, more, strict=True)]
        self.after = nn.ModuleList(
            nn.Linear(r[0].numel(), 3) if whole else nn.Identity() for r, whole in zip(results, self.whole, strict=True)
        )

    @staticmethod
    def _slots(values: Iterable[Any]) -> Iterator[Slot]:
        for value in values:
            for slot in value if isinstance(value, list | tuple) else [value]:
                if isinstance(slot, Slot) and slot not in (*WITH_UNITS, MODE):
                    yield slot

    def _layer(self) -> nn.Module:
        layout = self.call.layout
        if layout in ("NC", "NLC"):
            return nn.Linear(3, WIDTH)
        return {"NCL": nn.Conv1d, "NCHW": nn.Conv2d, "NCDHW": nn.Conv3d}[layout](3, WIDTH, 1)

    def _entering(self, image: torch.Tensor) -> torch.Tensor:
        if self.call.layout == "NC":
            return image.mean((2, 3))
        if self.call.layout == "NCL":
            return image.mean(3)
        if self.call.layout == "NLC":
            return image.mean(3).transpose(1, 2)
        return torch.stack([image, -image], 2) if self.call.layout == "NCDHW" else image

    def _value(self, layer: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return self.call.within(layer(self._entering(image)))

    def _tensor(self, slot: Slot, image: torch.Tensor) -> torch.Tensor:
        if slot in WITH_UNITS:
            value = self._value(self.before if slot == X else self.beside, image)
            return value.transpose(-1, -2) if slot == TRANSPOSED else value
        if slot == MODE:
            return self.training  # pyright: ignore
        name = self.slots[slot]
        value = self.constants[name] if name in self.constants else getattr(self, name)
        return value.expand(image.shape[0], -1, -1, -1) if slot.kind == "grid" else value

    def _results(self, image: torch.Tensor) -> list[torch.Tensor]:
        if self.op is not None:
            return list(results(self.op(self._tensor(X, image))))
        args = [fill(a, lambda slot: self._tensor(slot, image)) for a in self.call.args]
        kwargs = {k: fill(v, lambda slot: self._tensor(slot, image)) for k, v in self.call.kwargs.items()}
        return list(results(apply(self.kind, self.key, args, kwargs)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        total = 0
        for result, after, whole in zip(self._results(image), self.after, self.whole, strict=True):
            result = result if result.is_floating_point() else result.to(image.dtype)
            result = result.to(image.dtype) if result.dtype != image.dtype else result
            total = total + (after(result.flatten(1)) if whole else result.mean())
        return total  # pyright: ignore


class Branches(nn.Module):
    """All ways to call an op beside each other, and one without it."""

    def __init__(self, kind: str, key: Any, ways: Sequence[Call]) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(5, 3)
        self.branches = nn.ModuleList(Branch(kind, key, way) for way in ways)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result = self.head(self.plain(image))
        for branch in self.branches:
            result = result + branch(image)
        return result
