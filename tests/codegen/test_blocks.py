"""The model's own blocks in the networks: called, hooked, used apart and replaced as in the model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from differences import difference
from exactness import random_gates, randomise
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision_nets import densenet, efficientnet, mobilenet, resnet, shufflenet, vgg

import fxcat

TOLERANCE = 1e-12


def ready(model: nn.Module) -> nn.Module:
    randomise(model, 0)
    return model.double().eval()


def pruned(model: nn.Module, x: Any, *, sections: bool = True) -> tuple[fxcat.GatedModule, nn.Module]:
    net = fxcat.prepare(model, x).eval()
    random_gates(net, 1, 0.6, 0.3 if sections else 0.0)
    return net, fxcat.finalize(net).eval()


def seen(root: nn.Module, path: str, run: Callable[[], Any]) -> list[Any]:
    """What a hook on a module gets: arguments, keyword arguments and result of every call."""
    found: list[Any] = []
    module = root.get_submodule(path)
    handle = module.register_forward_hook(lambda _m, *call: found.append(call), with_kwargs=True)
    run()
    handle.remove()
    return found


class Attention(nn.Module):
    """Called with one value three times in a block, and asked for two results."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        share = torch.softmax(self.q(q) @ self.k(k).transpose(-1, -2), -1)
        return self.out(share @ self.v(v)), share


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), Attention()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.norm(x)
        z, share = self.attention(y, y, y)
        x = x + z * scale
        return {"tokens": x + self.mlp(x), "share": share}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks, self.head = nn.Linear(4, 8), nn.ModuleList([Block(), Block()]), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, scale=0.5)["tokens"]
        return self.head(x.mean(1))


class Drop(nn.Module):
    """Passes on what it gets, but in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(len(x), 1, dtype=x.dtype) if self.training else x


class Twice(nn.Module):
    """One block in two places: the second time with another activation behind its first layer, if `differ`."""

    def __init__(self, differ: bool) -> None:
        super().__init__()
        self.enter, self.block, self.head = nn.Linear(4, 6), Inner(), nn.Linear(6, 2)
        self.drop, self.differ = Drop(), differ

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.enter(x)))
        return self.head(self.block(self.block(x, False), self.differ))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: torch.Tensor, smooth: bool) -> torch.Tensor:
        y = self.first(x)
        return x + self.second(torch.nn.functional.silu(y) if smooth else torch.relu(y))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "resnet": (
        resnet,
        (2, 3, 32, 32),
        ("layer1", "layer3.0", "layer4", "layer3.0.downsample", "avgpool", "fc", ""),
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5),
        (2, 3, 16, 16),
        ("encoder", "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_0.self_attention"),
    ),
    "efficientnet": (efficientnet, (2, 3, 32, 32), ("features.2", "features.4.0.block.2", "classifier")),
}


@pytest.mark.parametrize("name", MODELS)
def test_hooks_see_what_blocks_take_and_give(name: str) -> None:
    make, shape, paths = MODELS[name]
    model, x = ready(make()), torch.randn(shape, dtype=torch.float64)
    net = fxcat.prepare(model, x).eval()
    for path in paths:
        given, found = (seen(root, path, lambda r=run: r(x)) for root, run in ((model, model), (net.network, net)))
        assert len(given) == len(found) == 1, path
        assert difference(given[0][2], found[0][2]) < TOLERANCE
        assert len(given[0][0]) == len(found[0][0]) and given[0][1].keys() == found[0][1].keys()
    random_gates(net, 1, 0.6, 0.0)
    small = fxcat.finalize(net).eval()
    for path in paths:
        [(args, kwargs, result)] = seen(small, path, lambda: small(x))
        with torch.no_grad():
            assert difference(result, small.get_submodule(path)(*args, **kwargs)) < TOLERANCE, path


PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "resnet": (resnet, lambda m, x: m.fc(nn.Sequential(*list(m.children())[:-1])(x).flatten(1))),
    "mobilenet": (mobilenet, lambda m, x: m.classifier(m.features(x).mean((2, 3)))),
    "densenet": (densenet, lambda m, x: m.classifier(torch.relu(m.features(x)).mean((2, 3)))),
    "shufflenet": (
        shufflenet,
        lambda m, x: m.fc(m.conv5(m.stage4(m.stage3(m.stage2(m.maxpool(m.conv1(x)))))).mean((2, 3))),
    ),
    "vgg": (vgg, lambda m, x: m.classifier(m.avgpool(m.features(x)).flatten(1))),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=5),
        lambda m, x: m.head(m.flatten(m.avgpool(m.permute(m.norm(m.features(x)))))),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_small_network_by_its_parts_is_the_whole(name: str) -> None:
    make, by_parts = PARTS[name]
    model, x = ready(make()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net, small = pruned(model, x)
    with torch.no_grad():
        assert difference(by_parts(small, x), net(x)) < TOLERANCE


def test_features_of_a_small_network() -> None:
    model, x = ready(resnet()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    _, small = pruned(model, x)
    with torch.no_grad():
        [(_, _, wanted)] = seen(small, "layer3", lambda: small(x))
        taken = create_feature_extractor(small, ["layer3"])(x)["layer3"]
        assert torch.equal(taken, wanted)
        assert torch.equal(IntermediateLayerGetter(small, {"layer3": "a"})(x)["a"], wanted)


def test_heads_and_blocks_can_be_replaced() -> None:
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for make, name in ((resnet, "fc"), (mobilenet, "classifier")):
        _, small = pruned(ready(make()), x)
        given = seen(small, name, lambda s=small: s(x))[0][0][0]
        setattr(small, name, nn.Sequential(nn.Linear(given.shape[1], 7), nn.ReLU()).double())
        assert small(x).shape == (2, 7)
    features: Any = small.get_submodule("features")
    features.append(nn.Sigmoid())
    assert float(features(x).detach().max()) <= 1.0  # a plain chain of modules stays one


def test_nested_arguments_and_results() -> None:
    model, x = ready(Tokens()), torch.randn(2, 5, 4, dtype=torch.float64)
    net, small = pruned(model, x, sections=False)
    [(args, kwargs, result)] = seen(small, "blocks.1", lambda: small(x))
    assert kwargs == {"scale": 0.5} and result.keys() == {"tokens", "share"}
    again = small.get_submodule("blocks.1")(*args, **kwargs)
    assert difference(again, result) < TOLERANCE
    with pytest.raises(fxcat.InputError, match="called in another way"):
        small.get_submodule("blocks.1")(*args)  # it was captured with another scale
    with pytest.raises(fxcat.InputError, match="called in another way"):  # it was captured as self-attention
        small.get_submodule("blocks.1.attention")(args[0], args[0] + 1, args[0])
    with pytest.raises(fxcat.InputError, match="outside of a forward pass"):
        net.network.get_submodule("blocks.1")(*seen(net.network, "blocks.1", lambda: net(x))[0][0], scale=0.5)


def test_a_block_in_two_places() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    net, small = pruned(ready(Twice(differ=False)), x, sections=False)
    assert len(seen(small, "block", lambda: small(x))) == 2
    _, other = pruned(ready(Twice(differ=True)), x, sections=False)
    for root in (other, net.network):  # each place in the network has gates of its own
        block = root.get_submodule("block")
        with pytest.raises(fxcat.InputError, match="a part of the code around it"):
            block.register_forward_hook(print)
        with pytest.raises(fxcat.InputError, match="a part of the code around it"):
            block(x, False)


class Scaled(nn.Module):
    """A mask that a block gets in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, flag: bool = False) -> torch.Tensor:
        x = self.inner(x)
        return (x if mask is None else x * mask) * (2 if flag else 3)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(4, 8), nn.ModuleList(Scaled() for _ in range(3)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, mask = self.first(x), None
        for i, block in enumerate(self.blocks):
            if i and self.training:
                mask = (x > 0).to(x.dtype)
            x = x + block(x, mask, flag=self.training)
        return self.last(x)


def test_a_block_that_takes_more_in_training() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    model = ready(Masked())
    net, small = pruned(model, x, sections=False)
    plain = fxcat.prepare(model, x)
    for mode in (True, False):
        assert mode or difference(small.train(mode)(x), net.train(mode)(x)) < TOLERANCE
        assert difference(plain.train(mode)(x), model.train(mode)(x)) < TOLERANCE
        assert len(seen(small, "blocks.1", lambda: small(x))) == 1


def test_what_passes_its_argument_on_in_one_mode() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    _, small = pruned(ready(Twice(differ=False)), x)
    drop = small.get_submodule("drop")
    assert torch.equal(drop(x), x)
    assert not torch.equal(drop.train()(x), x)
    assert len(seen(small.train(), "drop", lambda: small(x))) == 1


def test_blocks_are_copied_stored_and_shrunk() -> None:
    model, x = ready(resnet()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net, small = pruned(model, x)
    [(args, _, wanted)] = seen(small, "layer2", lambda: small(x))
    for block in (copy.deepcopy(small.get_submodule("layer2")), pickle.loads(pickle.dumps(small)).layer2):
        assert torch.equal(block(*args), wanted)
    calls: list[Any] = []
    net.network.get_submodule("layer2.0").register_forward_hook(lambda *_: calls.append(1))
    before = net(x)
    net.shrink()
    assert difference(net(x), before) < TOLERANCE and len(calls) == 2
    assert type(model.layer2) is nn.Sequential and type(model.layer2[0]) is torchvision.models.resnet.BasicBlock


def test_blocks_inside_of_regions() -> None:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    images = [torch.rand(3, 320, 320)]
    net = fxcat.prepare(model.eval(), (images,)).eval()
    path = "backbone.features.0.4"
    small = fxcat.finalize(net).eval()
    for root, run in ((model, model), (net.network, net), (small, small)):
        assert len(seen(root, path, lambda r=run: r(images))) == 1


def doubled(_module: nn.Module, _args: Any, result: torch.Tensor) -> torch.Tensor:
    return result * 2


def test_hooks_that_were_captured_are_not_run_again() -> None:
    model, x = ready(resnet()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.get_submodule("layer2").register_forward_hook(doubled)
    net = fxcat.prepare(model, x).eval()
    assert difference(net(x), model(x)) < TOLERANCE
    assert difference(fxcat.finalize(net)(x), model(x)) < TOLERANCE


class Fallible(nn.Module):
    """A block of which one branch fails for these sizes, and its caller knows that."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.head = Failing(), nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            y = self.narrow(x)
        except NotImplementedError:
            y = self.wide(x)
        return self.head(y)


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_a_call_that_fails_leaves_no_trace() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    net, small = pruned(ready(Fallible()), x)
    assert len(seen(small, "wide", lambda: small(x))) == len(seen(net.network, "wide", lambda: net(x))) == 1


class Sized(nn.Module):
    """Its block is given sizes, and keeps a cache that `train` empties."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.head = nn.Conv2d(3, 6, 3, 2), Resized(), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.enter(x), x.shape[2:]))


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.cache = nn.Conv2d(6, 6, 1), dict[str, torch.Tensor]()

    def train(self, mode: bool = True) -> nn.Module:
        if self.cache:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        if not self.training:
            self.cache["bias"] = self.layer.bias * 2  # pyright: ignore[reportOptionalOperand]
        return nn.functional.interpolate(self.layer(x), size=size)


def test_sizes_for_blocks_and_caches_in_them() -> None:
    model, x = ready(Sized()), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    model(x)
    net, small = pruned(model, x)
    other = torch.randn(2, 3, 20, 12, dtype=torch.float64)
    with torch.no_grad():
        assert difference(small.train().eval()(other), net.train().eval()(other)) < TOLERANCE
