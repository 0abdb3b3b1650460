"""The analysis is linear in the number of nodes."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from analysed import analysed
from torch import nn

import fxcat
from fxcat.passes.graph.label_arrays import leaves
from fxcat.passes.work import Analysis


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Attention(nn.Module):
    """Patches, and attention among them whose query, key and value come from one projection."""

    def __init__(self, taken: str) -> None:
        super().__init__()
        self.taken = taken
        self.patches, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        count, length, _ = tokens.shape
        if self.taken == "chunk":
            parts = [p.reshape(count, length, 2, 4).transpose(1, 2) for p in self.qkv(tokens).chunk(3, -1)]
        else:
            qkv = self.qkv(tokens).reshape(count, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
            parts = qkv.unbind(0) if self.taken == "unbind" else [qkv[i] for i in range(3)]
        q, k, v = parts
        value = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(value.transpose(1, 2).reshape(count, length, 8).mean(1))


def bytes_of_labels(analysis: Analysis) -> int:
    arrays = (x for labels in analysis.labels.values.values() for x in leaves(labels))
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in arrays}.values())


@pytest.mark.parametrize("taken", ["unbind", "index", "chunk"])
def test_labels_do_not_grow_with_the_image(taken: str) -> None:
    """A compressed array that is a view of the full one keeps it alive: 230 MB in a video transformer."""
    model = Attention(taken)
    sizes = [bytes_of_labels(analysed(model, torch.zeros(1, 3, side, side))) for side in (8, 64)]
    assert sizes[0] == sizes[1]


def test_no_second_module_tree_is_kept() -> None:
    """Beside the caller's model there is the network, and nothing that waits for the garbage collector."""

    def convolutions() -> int:
        return sum(issubclass(type(o), nn.Conv2d) for o in gc.get_objects())

    model = nn.Sequential(nn.Conv2d(3, 8, 3), *[Block(8) for _ in range(3)], nn.Conv2d(8, 2, 1))
    gc.collect()
    before = convolutions()
    net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16), verbose=False)
    assert convolutions() == before + sum(isinstance(m, nn.Conv2d) for m in net.modules())


@pytest.mark.slow
def test_two_thousand_blocks() -> None:
    """2,000 residual blocks prepare in under a minute, and in less than three times what 1,000 take."""
    seconds: list[float] = []
    for blocks in (1000, 2000):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), *[Block(8) for _ in range(blocks)], nn.Conv2d(8, 2, 1))
        start = time.perf_counter()
        net = fxcat.prepare(model, torch.zeros(1, 3, 16, 16), verbose=False)
        seconds.append(time.perf_counter() - start)
        assert (len(net.structure.groups), len(net.structure.sections)) == (blocks + 1, blocks)
    assert seconds[1] < 60
    assert seconds[1] < 3 * seconds[0]
