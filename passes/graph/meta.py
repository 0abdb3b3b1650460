"""What nodes of a graph say beside their op and arguments: every key of `node.meta`, and the only file that touches it.

A key says of which type its values are and which files write them. `fx.Graph.node_copy` copies all of a node's entries,
so every one survives a copy of the graph and `pickling`; a rewrite that adds or replaces a node chooses: the new node
is in the place of another (`stand_beside`) and gets an example value of its own, or takes all entries (`take_all`), but
for those that are about the op and not the value, where it has another op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, overload

from torch import fx

T = TypeVar("T")
D = TypeVar("D")


class MetaKey(Generic[T]):
    """One entry that nodes may have. `writers`: the rooms and files of `fxcat.passes` that set it; a test compares."""

    __slots__ = ("_name", "writers")

    def __init__(self, name: str, *writers: str) -> None:
        self._name, self.writers = name, writers

    def of(self, node: fx.Node) -> T:
        """The entry of a node that has it; else raises `KeyError`."""
        return node.meta[self._name]

    @overload
    def get(self, node: fx.Node) -> T | None: ...
    @overload
    def get(self, node: fx.Node, default: D) -> T | D: ...
    def get(self, node: fx.Node, default: Any = None) -> Any:
        """The entry of a node, or else the default."""
        return node.meta.get(self._name, default)

    def has(self, node: fx.Node) -> bool:
        """Whether a node has the entry."""
        return self._name in node.meta

    def set(self, node: fx.Node, value: T) -> None:
        """Give a node the entry, instead of the one that it had."""
        node.meta[self._name] = value

    def drop(self, node: fx.Node) -> None:
        """Take the entry from a node, if it has it."""
        node.meta.pop(self._name, None)

    def copy(self, new: fx.Node, old: fx.Node) -> None:
        """Give a node the entry of another one, if that has it."""
        if self._name in old.meta:
            new.meta[self._name] = old.meta[self._name]


# Of any node ------------------------------------------------------------------------------------------------------

VALUE: MetaKey[Any] = MetaKey(
    "value", "capture", "rules.execute", "nodes", "analysis.tables", "gating", "codegen.scopes"
)
"""The example value: what the node computes from the example inputs, on the meta device where it is a tensor. Every
node but the output has one: whoever adds a node gives it. All analyses and rules read it, by `value_of`."""

PATH: MetaKey[str] = MetaKey(
    "path", "capture.node_tracer", "capture.regions", "capture.find_regions", "codegen.region_graphs"
)
"""The path of the module whose `forward` makes the node; "" is the model itself. Read by `path_of`: to tell people
where a node is, and to know what lives as long as what."""

LINE: MetaKey[tuple[str, int]] = MetaKey("line", "capture.node_tracer")
"""The file and the line of the model's Python that made the node; for errors and assertions."""

CALL: MetaKey[tuple[str, int]] = MetaKey("call", "capture.node_tracer", "capture.regions")
"""The innermost call of a module that makes the node (a key of `Invocations`); a node of the model itself has none.
`codegen` gives every module its part of the code by it."""

VALUE_NUMBERS: MetaKey[tuple[int, ...]] = MetaKey("value_numbers", "graph.invocations")
"""The numbers by which `Invocations` name the node's value; those that a rewrite lets it stand for, too."""

PHASE: MetaKey[int] = MetaKey("phase", "capture.merge_phases")
"""0 if only inference runs the node, 1 if only training does; both do if there is none. `needed` and `codegen` ask."""

NO_GRAD: MetaKey[bool] = MetaKey("no_grad", "capture.node_tracer", "capture.functionalise", "capture.assignments")
"""The model runs the node under `torch.no_grad()`: no gate in it would get a gradient."""

UNCAST: MetaKey[tuple[str | None, Any]] = MetaKey("uncast", "capture.node_tracer")
"""The model runs the node in a `torch.autocast` of its own: the type of the device, None if it is that of the values;
and to what it casts, None where it is switched off. `codegen` writes the `with`."""

SAME: MetaKey[bool] = MetaKey("same", "capture.tracer")
"""The node returns its input itself (`nn.Identity`, dropout in inference); `is_view` asks."""

NEW: MetaKey[bool] = MetaKey("new", "capture.assignments")
"""The node's value has memory of its own, though its example value is that of another node; `is_view` asks."""

NUMBER: MetaKey[Any] = MetaKey("number", "capture.numbers_of_tensors")
"""The node's value stands for a number of Python: one of its type. The tracer's stand-in for `isinstance` asks."""

MODULES: MetaKey[Mapping[str, tuple[str, Any]]] = MetaKey("nn_module_stack")
"""`torch.export` writes it: paths and classes of the modules whose `forward` makes the node, the innermost last."""

# Of nodes that call a module --------------------------------------------------------------------------------------

CHANGES: MetaKey[bool] = MetaKey("changes", "capture.tracer")
"""The module changes its input in place; `is_inplace` asks."""

HOOKED: MetaKey[bool] = MetaKey("hooked", "capture.tracer", "capture.find_regions")
"""The module had forward hooks when it was captured: no rule says what they do."""

# Of nodes that read a tensor of the model -------------------------------------------------------------------------

CONSTANT: MetaKey[bool] = MetaKey("constant", "capture.node_tracer", "analysis.tables")
"""The tensor is neither a parameter nor a buffer, and the same in every pass."""

TABLE: MetaKey[bool] = MetaKey("table", "analysis.tables")
"""The tensor is a table of numbers, one for every channel: the label analysis gives its entries labels."""

# Of nodes that select indices -------------------------------------------------------------------------------------

ENTRY: MetaKey[bool] = MetaKey("entry", "gating.gated_inputs")
"""The node selects input features: they are units."""

MADE: MetaKey[bool] = MetaKey("made", "gating.made_values")
"""The node selects from what a model makes where that meets units."""

# Of placeholders --------------------------------------------------------------------------------------------------

PATTERN: MetaKey[Any] = MetaKey("pattern", "capture.capture", "codegen.region_graphs", "codegen.flat_calls")
"""The template of the argument; the conditions of a signature come of it."""

ABSENT: MetaKey[Mapping[tuple[Any, ...], frozenset[Any] | None]] = MetaKey("absent", "codegen.region_graphs")
"""What is not to be in the argument."""

SAME_AS: MetaKey[str] = MetaKey("same_as", "codegen.flat_calls")
"""The parameter that was given the same value at capture."""

# Of outputs -------------------------------------------------------------------------------------------------------

BOTH_PHASES: MetaKey[bool] = MetaKey("phases", "capture.merge_phases", "codegen.region_graphs")
"""The output holds what inference returns and what training does, one behind the other; `returned` tells them apart."""

RESULTS: MetaKey[tuple[Any, ...]] = MetaKey("results", "capture.capture")
"""Per phase a template of what the model returns, None for a value as it is."""

CALLS: MetaKey[tuple[tuple[str, ...], ...]] = MetaKey("calls", "capture.capture")
"""For every way in which the model may be called the arguments that are left out. The first way is that of the example;
an output without the key is of this one alone."""

COUNTS: MetaKey[tuple[tuple[Any, ...], ...]] = MetaKey(
    "counts", "capture.capture", "codegen.region_graphs", "codegen.ways"
)
"""Per phase what a pass does to numbers that modules keep (`kept_state.Count`)."""

LINES: MetaKey[tuple[str, ...]] = MetaKey("lines", "codegen.install")
"""Lines of code that come last."""


def value_of(node: fx.Node) -> Any:
    """The example value of a node: tensors, numbers and sizes, in tuples and lists where the op returns such. Tensors
    are on the meta device: they have a shape and a dtype, and no data.

    Raises `KeyError` for an output, which has none.
    """
    return node.meta["value"]


def path_of(node: fx.Node) -> str:
    """The path of the module whose `forward` makes a node; "" for the model itself."""
    return node.meta.get("path") or ""


def has_place(node: fx.Node) -> bool:
    """Whether it is known what in the model makes a node; of one that a rewrite adds it may not be."""
    return CALL.has(node) or PATH.has(node)


def stand_beside(new: fx.Node, node: fx.Node) -> None:
    """A rewrite puts a new node beside another one: it is in the same call of the same module."""
    PATH.copy(new, node)
    CALL.copy(new, node)


def take_all(new: fx.Node, old: fx.Node, *, but: Iterable[MetaKey[Any]] = ()) -> None:
    """A new node takes all entries of another one, over those that it has, but for some keys."""
    left_out = {key._name for key in but}
    new.meta.update({name: entry for name, entry in old.meta.items() if name not in left_out})


def forget_all(node: fx.Node) -> None:
    """A copy of a node elsewhere in the graph is a node of its own: it says nothing so far."""
    node.meta = {}


def all_entries(node: fx.Node) -> Mapping[str, Any]:
    """All that a node says, to be stored."""
    return node.meta


def restore_entries(node: fx.Node, stored: Mapping[str, Any]) -> None:
    """Let a new node say what `all_entries` gave."""
    node.meta.update(stored)
