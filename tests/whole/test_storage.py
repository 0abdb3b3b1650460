"""`save` and `load`: the same small network from the original architecture, and clear errors for all else."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from exactness import random_gates
from pruned import pruned
from safetensors.torch import load_file
from small_task import Net
from torch import nn
from torchvision_nets import resnet, shufflenet

import fxcat
from fxcat.training.optimizer_state import optimizer_state, set_optimizer_state
from fxcat.utils.json_tensors import pack, unpack
from fxcat.utils.safetensors_file import read_tensors, write_tensors

EXAMPLE = torch.zeros(1, 3, 8, 8)
IMAGE = torch.zeros(1, 3, 64, 64)


def same(a: nn.Module, b: nn.Module) -> bool:
    """The same names, in the same order, with equal values; and buffers that are not stored usually."""
    ours, theirs = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (a, b)]
    return (
        list(a.state_dict()) == list(b.state_dict())
        and list(ours) == list(theirs)
        and all(torch.equal(v, theirs[k]) and v.dtype == theirs[k].dtype for k, v in ours.items())
    )


def test_resnet_pruned_by_hand(tmp_path: Path) -> None:
    net = fxcat.prepare(torchvision.models.resnet18(num_classes=10), IMAGE, verbose=False)
    net.gates["layer1.0.conv1"].theta[10:] = 0.0
    net.gates["layer2.1.section"].set(0.0)
    small = fxcat.finalize(net)
    path = tmp_path / "small.safetensors"
    fxcat.save(small, path)
    model = torchvision.models.resnet18(num_classes=10).eval()
    before = copy.deepcopy(model.state_dict())
    again = fxcat.load(path, model)
    assert same(again, small)
    assert again.get_submodule("layer1.0.conv1").get_parameter("weight").shape[0] == 10
    assert isinstance(again, torchvision.models.ResNet)
    assert not again.training
    assert not any(type(m).__module__.startswith("fxcat") for m in again.modules())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), small.eval()(images))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fxcat.save(net, tmp_path / "of gates.safetensors")
    assert same(fxcat.load(tmp_path / "of gates.safetensors", model), small)
    # readable without fxcat too
    assert torch.equal(load_file(path)["fc.weight"], small.get_parameter("fc.weight"))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "shrunk four times": (Net, {"shrinks": 4}),
    "channel shuffle": (shufflenet, {"example": IMAGE, "shrinks": 2}),
    "attention": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64),
        {"example": torch.zeros(1, 3, 32, 32), "shrinks": 1},
    ),
    "layers only": (Net, {"gates": "layers"}),
    "ignored": (Net, {"ignore": ["stem"]}),
    "in a tuple": (Net, {"example": (EXAMPLE,)}),
    "no example inputs": (resnet, {"example": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    small = pruned(make(), **options)
    fxcat.save(small, tmp_path / "x")
    assert same(fxcat.load(tmp_path / "x", make()), small)


def test_a_detector(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        )

    net = fxcat.prepare(make(), ([torch.rand(3, 64, 64)],), verbose=False)
    random_gates(net, 0)
    small = fxcat.finalize(net).eval()
    fxcat.save(small, tmp_path / "x")
    again = fxcat.load(tmp_path / "x", make().eval())
    images = [torch.rand(3, 64, 64)]
    for name, value in again(images)[0].items():
        assert torch.equal(value, small(images)[0][name])


def test_trained_further_copied_and_in_another_type(tmp_path: Path) -> None:
    small = pruned(Net())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1.0)
    twin = copy.deepcopy(small).to(torch.bfloat16)
    for module in (small, twin):
        fxcat.save(module, tmp_path / "x")
        again = fxcat.load(tmp_path / "x", Net())
        assert same(again, module)
        again(torch.zeros(2, 3, 8, 8, dtype=next(module.parameters()).dtype)).sum().backward()


def test_prepared_twice(tmp_path: Path) -> None:
    """A small network can be made smaller; the file takes both steps from the original one."""
    small = pruned(Net(), shrinks=1)
    smaller = pruned(small)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())
    fxcat.save(smaller, tmp_path / "x")
    again = fxcat.load(tmp_path / "x", Net())
    assert same(again, smaller)
    fxcat.save(again, tmp_path / "y")
    (first, texts), (second, others) = (read_tensors(tmp_path / n, "fxcat-network-1") for n in "xy")
    assert texts == others
    assert all(torch.equal(v, second[k]) for k, v in first.items())


class Tied(nn.Module):
    """Two layers with one weight, and a module with extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), Counting(6, 2)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.first(x).relu()).relu())


class Counting(nn.Sequential):
    def __init__(self, *features: int) -> None:
        super().__init__(nn.Linear(features[0], 8), nn.ReLU(), nn.Linear(8, features[1]))
        self.seen: dict[str, Any] = {"examples": 0, "mean": torch.zeros(2)}

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


def test_tied_weights_and_extra_state(tmp_path: Path) -> None:
    net = fxcat.prepare(Tied(), torch.zeros(1, 6), verbose=False)
    random_gates(net, 0)
    small: Any = fxcat.finalize(net)
    small.out.seen = {"examples": 7, "mean": torch.ones(2)}
    fxcat.save(small, tmp_path / "x")
    again: Any = fxcat.load(tmp_path / "x", Tied())
    assert same(again, small)
    assert again.second.weight is again.first.weight
    assert again.out.seen["examples"] == 7
    assert torch.equal(again.out.seen["mean"], torch.ones(2))


# What is refused


class Other(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 5)


def test_another_model(tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    with pytest.raises(
        fxcat.InputError, match=r"(?s)another model.*head\.weight has shape \[5, 16\], not \[4, 16\].*x"
    ):
        fxcat.load(tmp_path / "x", Other())
    with pytest.raises(fxcat.InputError, match=r"another model.*stem\.0\.weight of shape \[16, 3, 3, 3\] is missing"):
        fxcat.load(tmp_path / "x", torchvision.models.resnet18())
    with pytest.raises(fxcat.InputError, match="got a str"):
        fxcat.load(tmp_path / "x", "resnet18")  # pyright: ignore[reportArgumentType]


def test_the_same_tensors_in_another_order(tmp_path: Path) -> None:
    """Names and shapes are the same, the network is not: what it computes shows it."""

    class Swapped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(self.stem(x)).mean((2, 3)))

    fxcat.save(pruned(Net()), tmp_path / "x")
    with pytest.raises(fxcat.InputError, match=r"another model.*it computes \.mean\(.*add\("):
        fxcat.load(tmp_path / "x", Swapped())


def test_what_finalize_has_not_returned(tmp_path: Path) -> None:
    small = pruned(Net())
    changed = copy.deepcopy(small)
    changed.head = nn.Linear(2, 7)
    for module, words in (
        (Net(), r"Net that finalize\(\) has not returned"),
        (nn.Sequential(small, nn.Softmax(1)), r"Sequential that finalize\(\) has not returned"),
        (changed, r"changed after finalize\(\): head\.weight has shape \[7, 2\]"),
        ("small", "got a str"),
    ):
        with pytest.raises(fxcat.InputError, match=words):
            fxcat.save(module, tmp_path / "x")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = {"a": torch.arange(5.0), "b": torch.tensor(True), "c": torch.zeros(0, 3), "d": torch.ones(2).bfloat16()}
    write_tensors(path, "test", tensors, {"text": "some text"})
    whole = path.read_bytes()

    def is_read() -> bool:
        """True for what was written, False for an error: never for anything else."""
        try:
            found, texts = read_tensors(path, "test")
        except fxcat.StorageError:
            return False
        assert texts == {"text": "some text"}
        assert all(torch.equal(v, found[k]) and v.dtype == found[k].dtype for k, v in tensors.items())
        return True

    assert is_read()
    harmless = 0
    for i, bit in itertools.product(range(len(whole)), (0, 6)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << bit)]) + whole[i + 1 :])
        harmless += is_read()
    assert harmless <= 1  # True is any byte but zero
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(fxcat.StorageError):
            read_tensors(path, "test")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_tensors(path, "test", {"a": torch.zeros(3)}, {})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(fxcat.StorageError, match="no space left"):
        write_tensors(path, "test", {"a": torch.ones(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == before
    monkeypatch.undo()
    with pytest.raises(fxcat.StorageError, match="cannot be written"):
        write_tensors(tmp_path / "none" / "x", "test", {}, {})
    with pytest.raises(fxcat.StorageError, match=r"cannot be stored.*complex128"):
        write_tensors(tmp_path / "y", "test", {"a": torch.zeros(2).to(torch.complex128)}, {})


# Values


def test_nested_values() -> None:
    value = {
        "list": [1, 2.5, "text", None, True, float("inf")],
        "tuple": (0.9, (1, torch.arange(3))),
        3: Counter({2: 1, 5: 2}),
        "empty": [{}, (), []],
        "dict": {"tensor": "no tensor"},
    }
    tensors: dict[str, torch.Tensor] = {}
    again = unpack(json.loads(json.dumps(pack(value, tensors, "value"))), tensors)
    assert torch.equal(again["tuple"][1][1], torch.arange(3))
    again["tuple"] = value["tuple"]
    assert again == value
    assert isinstance(again[3], Counter)
    with pytest.raises(fxcat.InputError, match=r"(?s)builtins\.set cannot be stored.*value\.a\.1"):
        pack({"a": [1, {2}]}, {}, "value")


def test_optimizer_state_keeps_its_types() -> None:
    """PyTorch's own `load_state_dict` would round 32-bit averages to the 16 bits of the weights."""
    net = nn.Linear(3, 2).to(torch.bfloat16)
    scale = nn.Parameter(torch.tensor([2.0]))

    def optimizer(*more: nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([*net.parameters(), *more], lr=0.1, momentum=0.9)

    first = optimizer(scale)
    average = torch.full((2, 3), 1.2345678)
    first.state[net.weight]["average"] = average
    stored = optimizer_state(first, net)
    assert set(stored["state"]["state"]) == {"weight"}
    assert stored["state"]["param_groups"][0]["params"] == ["weight", "bias", "#1"]
    other = nn.Parameter(torch.tensor([5.0]))
    second = optimizer(other)
    set_optimizer_state(second, net, stored)
    assert torch.equal(second.state[net.weight]["average"], average)
    assert other.item() == 2.0
