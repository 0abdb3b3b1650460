"""Capture by regions: models whose own Python cannot be traced, nested arguments and results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from branching_nets import block
from differences import SINGLE_TOLERANCE, difference
from exactness import Report, check_on, randomise
from torch import nn

import fxcat


class Branching(nn.Module):
    """A stem, a branch that depends on values of the input, two blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(3, 8), block(8, 8), block(8, 8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x if x.mean() < 1e9 else x / 2)
        return self.head(self.second(self.first(features)))


class Looking(Branching):
    """Its Python needs the number of channels of one value, and another value itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x if x.mean() < 1e9 else x / 2)
        scaled = self.first(features)
        size = scaled.shape[-1] * scaled.shape[1] / scaled.size(1)
        return self.head(self.second(scaled)) * size + features.sum()


class Flagged(Branching):
    """It could be captured whole, but returns more or less by a flag that is set later, and by an argument."""

    export = False

    def forward(self, x: torch.Tensor, **options: Any) -> Any:
        features = self.first(self.stem(x))
        if options.get("embed"):
            return features
        y = self.head(self.second(features))
        return y if self.export else (y, features)


class Siamese(Branching):
    """One encoder for both halves of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 1e9:
            return x
        return self.head(self.second(self.first(self.stem(x)))) + self.head(self.second(self.first(self.stem(x * 2))))


class Inside(Branching):
    """It calls a part of a block by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.mean() < 1e9 else x / 2
        features = self.first(self.stem(x))
        return self.head(self.second(features + self.first[0](self.stem(x))[:, :8]))


class Idle(Branching):
    """One block runs for bright images only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(self.stem(x))
        return self.head(features if x.mean() < 1e9 else self.second(features))


class Queries(Branching):
    """A table that is read, and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.queries.weight[0, 0])


class Recurrent(Branching):
    """One block runs on its own results, as often as it takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.stem(x)
        for _ in range(3 if x.mean() < 1e9 else 2):
            state = self.first(state)
        return self.head(self.second(state))


class Pyramid(Branching):
    """One block for values of several sizes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.mean() < 1e9 else x / 2
        features = self.stem(x)
        coarse = self.first(nn.functional.avg_pool2d(features, 2))
        return self.head(self.second(self.first(features))) + self.head(self.second(coarse))


class InPlace(Branching):
    """Its Python changes a value that a block returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(3, 8)[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.mean() < 1e9 else x / 2
        features = self.stem(x)
        features += 1
        return self.head(self.second(self.first(features)))


def checked(model: nn.Module, *shape: int) -> Report:
    model = model.double().train()
    randomise(model, 0)
    example, others = (torch.randn(1, *shape).double(),), (torch.randn(3, *shape).double(),)
    report = check_on(model, type(model).__name__, example, others, others)
    assert not report.failures
    return report


def prepared(model: nn.Module) -> fxcat.GatedModule:
    return fxcat.prepare(model, torch.randn(1, 3, 8, 8), verbose=False)


@pytest.mark.parametrize("cls", [Branching, Looking, Siamese, Recurrent, Pyramid, Inside, Idle, InPlace])
def test_invariants_where_the_root_cannot_be_traced(cls: type[nn.Module]) -> None:
    assert checked(cls(), 3, 8, 8).units >= 12


def test_units_pass_from_region_to_region() -> None:
    net = prepared(Branching())
    assert {g.name for g in net.structure.groups} == {
        *("stem.0", "stem.3", "first.0", "first.3", "second.0", "second.3"),
    }
    assert net.structure.coverage == 1.0
    first = net.structure.pinned[0]
    assert first.where == "Branching" and "depends on the values" in first.reason


def test_what_python_looks_at_is_pinned() -> None:
    net = prepared(Looking())
    assert {g.name for g in net.structure.groups} == {"stem.0", "first.0", "second.0", "second.3"}
    reasons = {p.reason for p in net.structure.pinned}
    assert any("sum in Looking" in r for r in reasons)
    assert any("size is read" in r for r in reasons)


def test_macs_of_code_between_regions_are_counted() -> None:
    class Mixing(Branching):
        """Its own Python multiplies matrices."""

        def __init__(self) -> None:
            super().__init__()
            self.mixture = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.stem(x if x.mean() < 1e9 else x / 2)
            mixed = nn.functional.linear(features.movedim(1, -1), self.mixture) @ self.mixture
            return self.head(self.second(self.first(mixed.movedim(-1, 1))))

    assert not checked(Mixing(), 3, 9, 9).failures
    assert prepared(Mixing()).start_cost.macs == prepared(Branching()).start_cost.macs + 2 * 64 * 8 * 8


def test_a_region_called_again_is_gated_once() -> None:
    net = prepared(Siamese())
    assert len(net.structure.groups) == 6
    assert net.start_cost.macs == 2 * prepared(Branching()).start_cost.macs


def test_a_region_called_with_its_own_result_keeps_its_outer_width_in_one_group() -> None:
    groups = {g.name: g.units for g in prepared(Recurrent()).structure.groups}
    assert groups == {"stem.0": 12, "stem.3": 8, "first.0": 12, "second.0": 12, "second.3": 8}


def test_a_module_called_in_several_ways_is_left_alone_and_reported() -> None:
    net = prepared(Pyramid())
    assert any(p.where == "first" and "several ways" in p.reason for p in net.structure.pinned)


def test_code_that_did_not_run_may_need_anything() -> None:
    net = prepared(Idle())
    assert {g.name for g in net.structure.groups} == {"stem.0", "first.0"}
    assert any("'second' did not run" in p.reason or "'second.0' did not run" in p.reason for p in net.structure.pinned)


def test_a_table_that_is_read_was_run() -> None:
    groups = [{g.name for g in prepared(model).structure.groups} for model in (Branching(), Queries())]
    assert groups[0] == groups[1]


def test_python_that_is_run_as_it_is_decides_by_what_is_set_later(tmp_path: Path) -> None:
    model, x = Flagged().double(), torch.randn(2, 3, 8, 8).double()
    randomise(model, 0)
    captured = fxcat.prepare(model, x, verbose=False)
    net = fxcat.prepare(model, x, python=[""], verbose=False).eval()
    assert (net.structure.cost, net.structure.coverage) == (captured.structure.cost, captured.structure.coverage)
    assert not any("captured" in p.reason for p in net.structure.pinned if p.where == "Flagged")
    for gate in net.gates.values():
        gate.theta[::3] = 0.0
    y, features = net(x)
    small = fxcat.finalize(net)
    fxcat.save(small, tmp_path / "small.safetensors")
    for one in (net, small, fxcat.load(tmp_path / "small.safetensors", model).eval()):
        assert difference(one(x, embed=True), features) < 1e-12
        assert difference(one(x, options=False), (y, features)) < 1e-12
        one.export = True  # pyright: ignore[reportArgumentType]
        assert difference(one(x), y) < 1e-12
    with pytest.raises(fxcat.InputError, match="python= names 'body'"):
        fxcat.prepare(model, x, python=["body"])


def test_no_region_holds_python_that_is_run_as_it_is() -> None:
    net = fxcat.prepare(Flagged(), torch.randn(2, 3, 8, 8), python=["first.4"], verbose=False)
    assert [r.path for r in net.program.analysis.regions] == ["stem", "second", "head"]  # pyright: ignore[reportAttributeAccessIssue]


class Masking(nn.Module):
    """Attention that is masked in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.masks = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        mask = torch.zeros(x.shape[1], x.shape[1]) if self.masks else None
        return self.last(self.attention(x, x, x, attn_mask=mask)[0])


def test_a_region_that_is_called_in_another_way_uses_no_weights_without_gates() -> None:
    net = fxcat.prepare(Masking(), torch.randn(2, 5, 8), python=[""], verbose=False)
    assert any(gate.kind == "units" for gate in net.gates.values())
    net(torch.randn(2, 5, 8))
    net.masks = True
    with pytest.raises(fxcat.InputError, match="without gates"):
        net(torch.randn(2, 5, 8))


def test_attention_that_python_calls_as_it_is_keeps_nothing_else() -> None:
    body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    model, x = nn.Sequential(body, Masking()), torch.randn(2, 5, 8)
    net = fxcat.prepare(model, x, python=["", "1", "1.attention"], verbose=False).eval()
    assert [r.path for r in net.program.analysis.regions] == ["0"]  # pyright: ignore[reportAttributeAccessIssue]
    net.gates["0.0"].theta[:9] = 0.0
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= SINGLE_TOLERANCE
    small[1].masks = net.network[1].masks = True  # pyright: ignore[reportIndexIssue]
    assert difference(small(x), net(x)) <= SINGLE_TOLERANCE


def test_training_and_shrinking_in_regions() -> None:
    torch.manual_seed(0)
    net = prepared(Branching())
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=24)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    for _ in range(24):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()
    small = fxcat.finalize(net).eval()
    assert 0.4 < net.hard_cost().macs / net.start_cost.macs <= 0.5
    assert torch.allclose(small(x), net.eval()(x), atol=1e-5)
    assert isinstance(small, Branching)


class Transformed(nn.Module):
    """A layer that Python calls in a transform of torch.func, or with other weights, between others."""

    def __init__(self, form: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6))
        self.inner = nn.Linear(6, 6)
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.head = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.form(self, self.stem(x)).relu())


TRANSFORMS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "vmap": lambda m, x: torch.vmap(m.inner)(x),
    "vmap of a function": lambda m, x: torch.func.vmap(lambda v: m.inner(v).relu())(x),
    "vmap of a product": lambda m, x: torch.vmap(torch.dot)(x, x).unsqueeze(1) * m.inner(x),
    "vmap over weights": lambda m, x: torch.vmap(lambda w: x @ w)(m.weight[None]).sum(0) + m.inner(x),
    "grad": lambda m, x: torch.func.grad(lambda v: (m.inner(v) ** 2).sum())(x),
    "jvp": lambda m, x: torch.func.jvp(m.inner, (x,), (x,))[1],
    "other weights": lambda m, x: torch.func.functional_call(m.inner, {"weight": m.weight * 2}, (x,)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit, which jvp uses
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_layers_called_within_transforms(kind: str) -> None:
    report = checked(Transformed(TRANSFORMS[kind]), 5)
    assert report.units >= 12 + 10
    assert any("captured" in p.reason for p in report.pinned)
