"""Where the values of a small network came from: checked by values that say where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from exactness import random_gates, randomise
from small_task import Net, loader
from torch import nn
from torchvision_nets import resnet, shufflenet

import fxcat
from fxcat.network.module_state import shapes_of
from fxcat.network.origin import named_tensors

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Tied(nn.Module):
    """Two layers with one weight; the first name of it lies in a section."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.inner(x)
        return self.head(self.outer(x).relu())


def cases() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    image = torch.zeros(1, 3, 64, 64)
    return {
        "sections and units": (Net(), EXAMPLE),
        "residual": (resnet(), image),
        "a shuffle": (shufflenet(), image),
        "attention": (torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 64), torch.zeros(1, 3, 16, 16)),
        "tied": (Tied(), torch.zeros(1, 6)),
    }


def with_places(model: nn.Module) -> dict[str, torch.Tensor]:
    """Give every parameter and buffer its own places as values; returns them by name."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 2**24)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("shrinks", (0, 2))
@pytest.mark.parametrize("case", cases())
def test_every_value_is_where_it_is_said_to_be(case: str, shrinks: int) -> None:
    model, example = cases()[case]
    start = with_places(model)
    net = fxcat.prepare(model, example, verbose=False, verify=False)
    for seed in range(shrinks):
        random_gates(net, seed, units=0.2, sections=0.2)
        net.shrink()
    random_gates(net, 7)
    small, kept = fxcat.finalize(net), net.kept_indices()
    state = small.state_dict()
    assert {*kept, *kept.not_sliced} == {name for name, _, _ in named_tensors(small)}
    assert {n: s for n, s in kept.start_shapes.items() if n in start} == {n: tuple(t.shape) for n, t in start.items()}
    for name, indices in kept.items():
        if name in state:
            where = torch.meshgrid(*indices, indexing="ij") if indices else ()
            assert torch.equal(state[name], start[name][where]), name
    taken = kept.take(start)
    assert all(torch.equal(taken[n], v) for n, v in state.items() if n in kept)
    again = kept.put_back(state)
    assert again.keys() == start.keys() - kept.not_sliced.keys()
    for name, value in again.items():
        assert value.shape == start[name].shape
        assert bool(((value == start[name]) | (value == 0)).all())
    other = fxcat.kept_indices(small, model, example)
    assert other.keys() == kept.keys()
    assert all(torch.equal(a, b) for name in kept for a, b in zip(kept[name], other[name], strict=True))


def test_put_back_into_the_model_computes_the_same() -> None:
    """Where nothing counts channels: what has gone is zero."""
    model = resnet()
    randomise(model, 0)
    net = fxcat.prepare(model, torch.zeros(1, 3, 64, 64), verbose=False)
    random_gates(net, 3)
    small = fxcat.finalize(net).eval()
    again = resnet().eval()
    again.load_state_dict(net.kept_indices().put_back(small.state_dict()))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(x), small(x), atol=1e-4, rtol=1e-4)


def test_after_training_and_after_two_prunings(tmp_path: Path) -> None:
    model = Net()
    net = fxcat.prepare(model, EXAMPLE, verbose=False)
    fxcat.fit(net, loader(128), epochs=4, progress=False, target=fxcat.Target(flops=0.4))
    small = fxcat.finalize(net)
    kept = net.kept_indices()
    assert {n: tuple(map(len, i)) for n, i in kept.items()} == shapes_of(small)
    second = fxcat.prepare(small, EXAMPLE, verbose=False)
    random_gates(second, 1)
    smaller = fxcat.finalize(second)
    fxcat.save(smaller, tmp_path / "x")
    both = fxcat.kept_indices(fxcat.load(tmp_path / "x", Net()), Net())
    state = {name: torch.rand(shape) for name, shape in both.start_shapes.items()}
    step = second.kept_indices().take(kept.take(state))
    taken = both.take(state)
    assert taken.keys() == step.keys() and all(torch.equal(v, step[n]) for n, v in taken.items())


def test_what_is_no_slice_says_so() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.Flatten())
    net = fxcat.prepare(plain, EXAMPLE, verbose=False)
    batch = [(torch.rand(4, 3, 8, 8), torch.zeros(4))]
    scores = torch.rand(net.gate_vector.theta.shape)
    fxcat.one_shot(net, scores, target=fxcat.Target(flops=0.6), compensate=batch)
    kept = net.kept_indices()
    assert "2.bias" in kept.not_sliced and "2.bias" not in kept
    assert "fxcat made it" in kept.not_sliced["2.bias"]


@pytest.mark.parametrize("state", ({"head.weight": torch.zeros(1, 1)}, 3))
def test_other_tensors_are_refused(state: Any) -> None:
    kept = fxcat.prepare(Net(), EXAMPLE, verbose=False).kept_indices()
    for put in (kept.take, kept.put_back):
        with pytest.raises(fxcat.InputError, match=r"state=|head\.weight has shape"):
            put(state)
    with pytest.raises(fxcat.InputError, match="has not returned"):
        fxcat.kept_indices(Net(), Net())
