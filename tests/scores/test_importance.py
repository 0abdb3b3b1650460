"""Scores of gates, and what they are for: one-shot pruning, and training that starts from a pretrained network."""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
import torchvision
from small_task import Net, batches, loader, trained_net
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import fxcat
from fxcat.choosing.cost_shares import marginal_macs
from fxcat.gated import GatedModule
from fxcat.scores import importance

SMALL_VIT = partial(
    VisionTransformer, image_size=64, patch_size=16, num_layers=3, num_heads=4, hidden_dim=192, mlp_dim=384
)
HALF = fxcat.Target(flops=0.5)


def prepared(model: nn.Module, size: int = 64) -> GatedModule:
    return fxcat.prepare(model, torch.zeros(1, 3, size, size), verbose=False)


def with_random_scales(model: nn.Module) -> nn.Module:
    """Pretrained networks have other scales than 1, and none that are exactly equal."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.2, 1.5)
    return model


def test_what_only_training_computes_has_scores_of_nothing() -> None:
    """Its MACs are 0: sums of many shares had left less, and scores are not negative."""
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    net = prepared(model, 224)
    scores = importance.norm_scale(net)
    assert float(scores.min()) == 0.0
    fxcat.one_shot(net, scores, target=HALF)


def of_gate(net: GatedModule, name: str, scores: torch.Tensor) -> torch.Tensor:
    gate = net.gates[name]
    return scores[gate.start : gate.start + gate.count]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """The small net, trained for a few epochs."""
    return trained_net()


def test_norm_scale_ranks_planted_units() -> None:
    model = with_random_scales(Net())
    block: Any = model.block
    block[1].weight.data[[3, 7]] = torch.tensor([0.0, 9.0])
    net = prepared(model, 8)
    scores = importance.norm_scale(net)
    own = of_gate(net, "block.0", scores)
    assert int(own.argmin()) == 3 and float(own.min()) == 0.0
    assert int(own.argmax()) == 7
    assert float((scores[: net.gate_vector.unit_count] / marginal_macs(net)[:-1])[16:].mean()) == pytest.approx(1.0)


def test_norm_scale_of_sections() -> None:
    model = torchvision.models.resnet18()
    for module in model.layer2[1].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(0.1)
    net = prepared(model)
    scale = (importance.norm_scale(net) / marginal_macs(net))[net.gate_vector.unit_count :]
    assert [s.name for s in net.structure.sections][int(scale.argmin())] == "layer2.1.section"


def test_filter_norms_where_there_is_no_normalisation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5), nn.ReLU(), nn.Linear(5, 2))
    first: Any = model[0]
    first.weight.data[4] *= 0.1
    third: Any = model[3]
    third.weight.data[:, 4 * 36 : 5 * 36] *= 0.1  # its columns, after flattening
    third.weight.data[2] *= 3.0
    scores = importance.norm_scale(prepared(model, 8))
    weights = torch.stack(
        [first.weight[i].square().sum() + third.weight[:, 36 * i : 36 * i + 36].square().sum() for i in range(6)]
    )
    assert torch.allclose(scores[:6] / scores[:6].mean(), (weights.sqrt() / weights.sqrt().mean()).double())
    assert int(scores[:6].argmin()) == 4 and int(scores[6:].argmax()) == 2


def test_only_sections_have_gates() -> None:
    model = with_random_scales(torchvision.models.resnet18())
    net = fxcat.prepare(model, torch.zeros(1, 3, 64, 64), gates="layers", verbose=False)
    scores = importance.norm_scale(net)
    assert scores.shape == (8,) and bool((scores > 0).all())
    fxcat.one_shot(net, scores, target=fxcat.Target(flops=0.7))
    assert net.hard_cost().macs <= 0.7 * net.start_cost.macs
    with pytest.raises(fxcat.InputError, match="sections only"):
        importance.from_torch_pruning(net, tp.importance.MagnitudeImportance(), model, torch.zeros(1, 3, 64, 64))


def test_taylor_agrees_with_true_removal(trained: nn.Module) -> None:
    net = prepared(trained, 8)
    scores = importance.taylor(net, loader())
    inputs, targets = batches(256).tensors
    net.eval()

    def loss_without(gate: int | None) -> float:
        theta = net.gate_vector.theta.data
        theta.fill_(1.0)
        if gate is not None:
            theta[gate] = 0.0
        with torch.no_grad():
            return F.cross_entropy(net(inputs), targets).item()

    whole = loss_without(None)
    change = torch.tensor([abs(loss_without(i) - whole) for i in range(len(scores))])
    ranks = torch.stack([scores.argsort().argsort(), change.argsort().argsort()]).double()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.5
    assert int(scores.argmax()) == len(scores) - 1 == int(change.argmax()), "the section matters more than any unit"


def test_taylor_changes_nothing(trained: nn.Module) -> None:
    net = prepared(trained, 8).train()
    dict(net.network.named_modules())["block.1"].eval()
    theta = net.gate_vector.theta
    theta.data[3] = 0.25
    state = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    first = importance.taylor(net, list(loader())[:2])
    with torch.no_grad():
        assert torch.equal(importance.taylor(net, list(loader())[:2])[:3], first[:3])
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes and theta.requires_grad
    with pytest.raises(fxcat.InputError, match="no batch"):
        importance.taylor(net, [])
    with pytest.raises(fxcat.TrainingError, match="batch 0"):
        importance.taylor(net, loader(), lambda output, _: output.sum() * torch.nan)
    assert theta[3].item() == 0.25 and [m.training for m in net.modules()] == modes


def test_torch_pruning_scores_channel_by_channel() -> None:
    model = with_random_scales(torchvision.models.resnet18()).train()
    example = torch.randn(1, 3, 64, 64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    net = prepared(model)
    estimator: Any = tp.importance.MagnitudeImportance()
    scores = importance.from_torch_pruning(net, estimator, model, example) / marginal_macs(net)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    graph = tp.DependencyGraph().build_dependency(model.eval(), example)
    for group in net.structure.groups:
        layer = model.get_submodule(group.name)
        theirs = estimator(graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(group.units))))
        assert torch.allclose(of_gate(net, group.name, scores), theirs.double())
    assert bool(scores[net.gate_vector.unit_count :].isinf().all()), "sections stay"


@pytest.mark.parametrize("estimator", ("BNScale", "LAMP", "FPGM", "Random", "GroupMagnitude", "Taylor", "GroupTaylor"))
def test_other_estimators(estimator: str) -> None:
    model = with_random_scales(Net()).eval()
    net = prepared(model, 8)
    made = getattr(tp.pruner.importance, f"{estimator}Importance")()
    if "Taylor" in estimator:
        with pytest.raises(fxcat.InputError, match="does not score 2 groups"):
            importance.from_torch_pruning(net, made, model, torch.randn(1, 3, 8, 8))
        F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.arange(8) % 4).backward()
    scores = importance.from_torch_pruning(net, made, model, torch.randn(1, 3, 8, 8))
    fxcat.one_shot(net, scores, target=HALF)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


def test_torch_pruning_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model = Net()
    with pytest.raises(fxcat.InputError, match=r"pip install .fxcat\[torch-pruning\]"):
        importance.from_torch_pruning(prepared(model, 8), lambda _: None, model, torch.zeros(1, 3, 8, 8))


def test_what_torch_pruning_cannot_score_is_listed() -> None:
    model, example = SMALL_VIT(num_classes=10), torch.randn(1, 3, 64, 64)
    net = prepared(model)
    estimator: Any = tp.importance.MagnitudeImportance()
    with pytest.raises(fxcat.InputError, match=r"does not score 3 groups: .*layer_0\.self_attention"):
        importance.from_torch_pruning(net, estimator, model, example)
    fallback = importance.norm_scale(net)
    with pytest.warns(UserWarning, match=r"layer_2\.self_attention.* of fallback="):
        scores = importance.from_torch_pruning(net, estimator, model, example, fallback=fallback)
    name = next(g.name for g in net.structure.groups if "self_attention" in g.name)
    assert torch.equal(of_gate(net, name, scores), of_gate(net, name, fallback))
    assert torch.equal(scores[net.gate_vector.unit_count :], fallback[net.gate_vector.unit_count :])
    with pytest.raises(fxcat.InputError, match="fallback has shape"):
        importance.from_torch_pruning(net, estimator, model, example, fallback=fallback[1:])
    with pytest.raises(fxcat.InputError, match="not the one"):
        importance.from_torch_pruning(net, estimator, torchvision.models.resnet18(), example)
    shuffling = torchvision.models.shufflenet_v2_x0_5()
    with pytest.raises(fxcat.InputError, match="ZeroDivisionError"):
        importance.from_torch_pruning(prepared(shuffling), estimator, shuffling, example)


@pytest.mark.parametrize("make", (torchvision.models.resnet18, torchvision.models.mobilenet_v2, SMALL_VIT))
@pytest.mark.parametrize("scorer", ("norm_scale", "taylor"))
def test_one_shot_meets_the_target_from_below(make: Any, scorer: str) -> None:
    net = prepared(with_random_scales(make(num_classes=10)))
    batch = torch.randn(4, 3, 64, 64), torch.arange(4)
    scores = importance.norm_scale(net) if scorer == "norm_scale" else importance.taylor(net, [batch])
    weights = {n: p.clone() for n, p in net.network.named_parameters()}
    fxcat.one_shot(net, scores, target=HALF)
    assert all(torch.equal(p, weights[n]) for n, p in net.network.named_parameters())
    assert set(net.gate_vector.theta.tolist()) == {0.0, 1.0}
    assert 0.495 <= net.hard_cost().macs / net.start_cost.macs <= 0.5
    small = fxcat.finalize(net)
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
    with torch.no_grad():
        assert torch.allclose(small.eval()(batch[0]), net.eval()(batch[0]), atol=1e-4)


@pytest.mark.parametrize("start", [fxcat.one_shot, fxcat.warm_start])
def test_scores_of_the_weights_are_the_default(start: Any) -> None:
    by_default, given = (prepared(with_random_scales(trained_net())) for _ in range(2))
    given.load_state_dict(by_default.state_dict())
    start(by_default, target=HALF)
    start(given, importance.norm_scale(given), target=HALF)
    assert torch.equal(by_default.gate_vector.theta, given.gate_vector.theta)
    assert bool((given.gate_vector.theta < 1).any())


def test_equal_scores_prune_evenly() -> None:
    net = prepared(torchvision.models.resnet18())
    fxcat.one_shot(net, importance.norm_scale(net), target=HALF)
    live = net.live_units()
    shares = [live[g.name] / g.units for g in net.structure.groups]
    assert min(shares) > 0.5 and max(shares) < 0.95


def test_one_shot_keeps_what_matters(trained: nn.Module) -> None:
    """Without any training afterwards, scores must do better than their reverse."""
    inputs, targets = batches(256).tensors
    loss: dict[bool, float] = {}
    for reverse in (False, True):
        net = prepared(trained, 8)
        scores = importance.taylor(net, loader())
        scores[-1] = torch.inf
        scores[:-1] = scores[:-1].reciprocal() if reverse else scores[:-1]
        fxcat.one_shot(net, scores, target=HALF)
        with torch.no_grad():
            loss[reverse] = F.cross_entropy(fxcat.finalize(net).eval()(inputs), targets).item()
    assert loss[False] < 0.5 * loss[True]


@pytest.mark.parametrize("apply", (fxcat.one_shot, fxcat.warm_start))
def test_scores_that_do_not_fit(apply: Any) -> None:
    net = prepared(Net(), 8)
    theta = net.gate_vector.theta
    for bad in (torch.ones(len(theta) - 1), torch.ones(len(theta), 1), "norm", torch.full_like(theta, torch.nan)):
        with pytest.raises(fxcat.InputError, match="scores"):
            apply(net, bad, target=HALF)
    with pytest.raises(fxcat.InputError, match="negative"):
        apply(net, -torch.ones(len(theta)), target=HALF)
    with pytest.raises(fxcat.TargetError, match="cannot be reached"):
        apply(net, torch.ones(len(theta)), target=fxcat.Target(flops=1e-6))
    assert bool((theta == 1).all())


@pytest.mark.parametrize("target", (HALF, fxcat.Target(params=0.5)))
def test_warm_start_ranks_by_score_per_cost(target: fxcat.Target) -> None:
    net = prepared(with_random_scales(torchvision.models.resnet18()))
    scores = importance.norm_scale(net)
    fxcat.warm_start(net, scores, target=target)
    theta = net.gate_vector.theta.detach()
    assert float(theta.min()) > 0.5 and float(theta.max()) == 1.0
    cost, start = net.expected_cost(), net.start_cost
    share = cost.macs.item() / start.macs if target.flops else cost.params.item() / start.params
    assert 0.5 < share < 0.95
    for gate in net.gates.values():
        best = int(of_gate(net, gate.name, scores).argmax())
        assert float(gate.theta[best]) == 1.0
        if gate.kind == "units":
            # units of one group cost the same
            ranked = gate.theta[of_gate(net, gate.name, scores).argsort()]
            assert bool((ranked.diff() >= 0).all())


def test_training_goes_on_from_a_warm_start(trained: nn.Module) -> None:
    """θ stays what it was through the warm-up, the schedule begins at its expected cost, and the target is met."""
    net = prepared(trained, 8)
    before = copy.deepcopy(net)
    fxcat.warm_start(net, importance.taylor(net, loader()), target=HALF)
    theta = net.gate_vector.theta.detach().clone()
    share = net.expected_cost().macs.item() / net.start_cost.macs
    inputs, _ = batches(8).tensors
    assert torch.equal(net.eval()(inputs), before.eval()(inputs)), "eval() is still the whole network"
    net.train()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.01)
    controller = fxcat.GateController(net, optimizer, target=HALF, total_steps=40, warmup=0.2)
    assert float(controller.policy.prices.schedule(0.0)[0]) == pytest.approx(share)  # pyright: ignore[reportAttributeAccessIssue]
    for x, y in loader():
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    assert controller.phase == "gated" and torch.equal(net.gate_vector.theta, theta)
    del controller  # one at a time
    history = fxcat.fit(net, loader(), loader(64), epochs=3, target=HALF, lr=0.02, progress=False)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert history.epochs[-1].val_accuracy is not None and history.epochs[-1].val_accuracy > 0.8


def test_one_shot_prefers_what_the_target_prefers() -> None:
    """κ: none of the layers at 0, more of them the higher it is."""
    left: list[int] = []
    for layers in (0.0, 0.5, 0.9, 1.0):
        torch.manual_seed(0)
        net = prepared(with_random_scales(torchvision.models.resnet18()))
        fxcat.one_shot(net, importance.norm_scale(net), target=fxcat.Target(flops=0.5, layers=layers))
        left.append(int(net.gate_vector.hard()[net.gate_vector.unit_count :].sum()))
    assert left[0] == 8
    assert left == sorted(left, reverse=True) and left[-1] < left[1]
