"""What passes between regions: nested arguments and results, and values of other types than weights."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from branching_nets import block
from differences import SINGLE_TOLERANCE, difference
from exactness import check, randomise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxcat


class Pair(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    name: str = "result"


class Nested(nn.Module):
    """Takes a dict and a tuple, returns one of several kinds of values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.left, self.right = block(3, 8), block(3, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: dict[str, torch.Tensor], more: tuple[torch.Tensor, ...], *, scale: Any = None) -> Any:
        x = self.left(images["a"]) + self.right(more[0])
        y = self.head(x if scale is None else x * scale)
        results = {
            "dict": {"out": y},
            "ordered": OrderedDict(out=y, features=x),
            "named": Pair(x, y),
            "record": Result(y),
            "list": [y, (x, None)],
        }
        return results[self.kind]


@pytest.mark.parametrize("kind", ["dict", "ordered", "named", "record", "list"])
def test_nested_arguments_and_results(kind: str) -> None:
    model = Nested(kind).double()
    randomise(model, 0)
    example, others = (({"a": torch.randn(n, 3, 6, 6).double()}, (torch.randn(n, 3, 6, 6).double(),)) for n in (1, 3))
    expected, net = model.eval()(*others), fxcat.prepare(model, example, verbose=False)
    net.gates["left.0"].theta[3:] = 0.0
    small = fxcat.finalize(net)
    found = net(*others), small(*others)
    for result in (expected, *found):
        assert type(result) is type(expected)
    if kind == "record":
        found = tuple({"out": r.logits} for r in found)
        assert type(expected) is Result and expected.name == "result"
    assert fxcat.finalize(net).left[0].weight.shape[0] == 3  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    from exactness import difference

    assert difference(found[1], found[0]) < 1e-12


def test_another_structure_of_arguments_is_refused() -> None:
    model = Nested("dict")
    x = torch.randn(1, 3, 6, 6)
    net = fxcat.prepare(model, ({"a": x}, (x,)), verbose=False)
    with pytest.raises(fxcat.InputError, match="called in another way"):
        net({"a": x}, (x, x))


class Mixed(nn.Module):
    """One part in half precision, one in single whatever the caller wants."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
        self.head = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.body(x)
        with torch.autocast("cpu", enabled=False):
            return self.head(features.float())


class Uncast(nn.Module):
    """Two products in the precision of their values, whatever the caller wants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.q, self.k, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.stem(x))
        q, k = self.q(y).flatten(2), self.k(y).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            scores = q.float().mT @ k.float()
        return self.head(y + self.read(y.flatten(2), scores.softmax(-1)).view(y.shape))

    @torch.autocast("cpu", enabled=False)
    def read(self, values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return values.float() @ scores.mT


class _Products(TorchDispatchMode):
    """The precisions in which values are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_autocast_is_switched_off_where_the_model_does_so() -> None:
    model = Uncast()
    randomise(model, 0)
    report = check(model, "uncast", (1, 3, 4, 4), (2, 3, 4, 4))
    assert (report.failures, report.coverage, report.units) == ([], 1.0, 8 + 6)
    net, x = fxcat.prepare(model, torch.randn(1, 3, 4, 4), verbose=False).eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x), model.eval()(x))
        net.gates["q"].theta[::2] = 0.0
        with _Products() as products:
            fxcat.finalize(net)(x)
        assert torch.is_autocast_enabled("cpu")
    assert set(products.seen) == {torch.float32}


def test_parts_keep_their_precision() -> None:
    model, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert [p.where for p in net.structure.pinned] == ["output"]
    assert torch.equal(net(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(x), model(x))
    net.gates["head.0"].theta[:4] = 0.0
    assert difference(fxcat.finalize(net)(x), net(x)) <= SINGLE_TOLERANCE
    net.gates["body.0"].theta[4:] = 0.0  # sums in another order are rounded to bfloat16 differently
    assert difference(fxcat.finalize(net)(x), net(x)) <= 2**-8


class Asking(Mixed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.body(x)
        return self.head(features.float() if features.dtype == torch.bfloat16 else features * 2)


def test_types_that_autocast_gives_decide_no_branch_of_a_graph() -> None:
    """Example values do not have them: Python goes on between regions."""
    model, x = Asking().eval(), torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert torch.equal(net(x), model(x))
    assert [r.path for r in net.program.analysis.regions] == ["body", "head"]  # pyright: ignore[reportAttributeAccessIssue]
