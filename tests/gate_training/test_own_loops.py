"""Loops as people write them, with schedules, averages and states of their own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halved import HALF, STEPS, X, Y, batch, check, controlled, descend, prepared, run, sgd
from small_task import Net
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_teacher() -> None:
    teacher = Net().eval()
    run(lambda net, optimizer, x, y, i: descend(optimizer, fxcat.distillation_loss(net(x), teacher(x).detach())))


def test_two_gated_networks_against_each_other() -> None:
    """A generator, through whose opponent its gradients pass."""

    class Generator(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 192), nn.Unflatten(1, (3, 8, 8)))

    made, judge = fxcat.prepare(Generator(), torch.zeros(1, 8), verbose=False).train(), prepared()
    optimizers = [torch.optim.Adam(net.weight_parameters(), lr=1e-3) for net in (made, judge)]
    controllers = [controlled(net, o) for net, o in zip((made, judge), optimizers, strict=True)]
    for i in range(STEPS):
        noise = torch.randn(16, 8)
        descend(optimizers[1], F.softplus(-judge(batch(i)[0])).mean() + F.softplus(judge(made(noise).detach())).mean())
        controllers[1].step()
        descend(optimizers[0], F.softplus(-judge(made(noise))).mean())
        controllers[0].step()
    check(judge)
    assert made.hard_cost().macs <= 0.5 * made.start_cost.macs


def test_an_opponent_that_is_frozen_while_the_controller_is_called() -> None:
    """As image translation is trained: thawed for its own steps alone."""
    judge, made = prepared(), nn.Parameter(torch.zeros(16, 3, 8, 8))
    optimizer, other = sgd(judge), torch.optim.SGD([made], lr=0.1)
    controller = controlled(judge, optimizer)
    for i in range(STEPS):
        judge.requires_grad_(True)
        descend(optimizer, F.softplus(-judge(batch(i)[0])).mean() + F.softplus(judge(made.detach())).mean())
        judge.requires_grad_(False)
        descend(other, F.softplus(-judge(made)).mean())
        controller.step()
        assert controller.state_dict()["trains"] == (controller.phase != "plain")
    check(judge)


def test_gates_that_are_added_to_an_optimizer_with_the_weights() -> None:
    """As a backbone is thawed on the way; they are the controller's."""
    net = prepared()
    net.network.requires_grad_(False)
    head = net.network.get_submodule("head").requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    controller = controlled(net, optimizer)
    for i in range(STEPS):
        if i == 4:
            net.requires_grad_(True)
            known = {id(p) for p in head.parameters()}
            optimizer.add_param_group({"params": [p for p in net.parameters() if id(p) not in known]})
        descend(optimizer, F.cross_entropy(net(batch(i)[0]), batch(i)[1]))
        controller.step()
    check(net)
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    assert set(optimizer.state) == set(net.weight_parameters())


def test_a_slow_copy_that_is_told_of() -> None:
    """BYOL."""
    net, head = prepared(), nn.Linear(4, 4)
    slow = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.SGD([*net.weight_parameters(), *head.parameters()], lr=0.02, momentum=0.9)
    controller = controlled(net, optimizer, averages=[slow])
    for i in range(STEPS):
        x, _ = batch(i)
        descend(optimizer, -F.cosine_similarity(head(net(x)), slow(x)).mean())
        controller.step()
        with torch.no_grad():
            for theirs, ours in zip(slow.network.parameters(), net.network.parameters(), strict=True):
                theirs.lerp_(ours, 0.1)
    check(net)
    assert [p.shape for p in slow.network.parameters()] == [p.shape for p in net.network.parameters()]


def test_optimizers_with_schedules_of_their_own() -> None:
    net = prepared()
    head = list(net.network.get_submodule("head").parameters())
    rest = [p for p in net.weight_parameters() if all(p is not h for h in head)]
    one, other = torch.optim.SGD(rest, lr=0.02, momentum=0.9), torch.optim.AdamW(head, lr=1e-3)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, STEPS), torch.optim.lr_scheduler.StepLR(other, 4)]
    controller = controlled(net, [one, other])
    for i in range(STEPS):
        x, y = batch(i)
        F.cross_entropy(net(x), y).backward()
        for optimizer in (one, other) if i % 2 else (one,):
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules[: 1 + i % 2]:
            schedule.step()
        controller.step()
    check(net)


def test_stochastic_weight_averaging() -> None:
    net = prepared()
    optimizer, average = sgd(net), AveragedModel(net)
    controller, schedule = controlled(net, optimizer, averages=[average]), SWALR(optimizer, 0.01)
    for i in range(STEPS):
        x, y = batch(i)
        descend(optimizer, F.cross_entropy(net(x), y))
        controller.step()
        if i > 8:
            average.update_parameters(net)
            schedule.step()
    update_bn([batch(i) for i in range(4)], average)
    check(average.module)  # pyright: ignore[reportArgumentType]


def test_accumulation_with_a_remainder() -> None:
    net = prepared()
    optimizer = sgd(net)
    controller = controlled(net, optimizer, steps=3 * 4)
    for _ in range(3):
        for i in range(10):
            x, y = batch(i)
            (F.cross_entropy(net(x), y) / 3).backward()
            if i % 3 == 2 or i == 9:
                optimizer.step()
                optimizer.zero_grad()
                controller.step()
    assert controller.steps == controller.total_steps
    check(net)


@pytest.mark.parametrize("at", (0, 5, 12))
def test_a_state_that_is_put_back(at: int) -> None:
    """A search for a learning rate: before gates are trained, meanwhile, and after."""
    net = prepared()
    optimizer = sgd(net)
    controller = controlled(net, optimizer)
    for i in range(STEPS):
        if i == at:
            kept = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            for j in range(3):
                descend(optimizer, 10**j * F.cross_entropy(net(batch(j)[0]), batch(j)[1]))
            net.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
        x, y = batch(i)
        descend(optimizer, F.cross_entropy(net(x), y))
        controller.step()
    check(net)


def test_folds_and_ensembles() -> None:
    """Copies that are trained together by one optimizer; the first stays as it is."""
    first = prepared()
    nets = [copy.deepcopy(first) for _ in range(2)]
    optimizer = torch.optim.SGD([p for net in nets for p in net.weight_parameters()], lr=0.02, momentum=0.9)
    controllers = [controlled(net, optimizer, seed=i) for i, net in enumerate(nets)]
    for i in range(STEPS):
        x, y = batch(i)
        descend(optimizer, torch.stack([F.cross_entropy(net(x), y) for net in nets]).sum())
        for controller in controllers:
            controller.step()
    for net in nets:
        check(net)
    assert first.hard_cost() == first.start_cost


class TwoHeads(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        x = F.relu(x + self.block(x)).mean((2, 3))
        return self.head(x), self.other(x)


def test_a_head_that_no_loss_is_made_from_in_a_step() -> None:
    net = prepared(TwoHeads())
    optimizer = sgd(net)
    controller = controlled(net, optimizer)
    for i in range(STEPS):
        x, y = batch(i)
        one, other = net(x)
        descend(optimizer, F.cross_entropy(one, y) if i % 3 else F.cross_entropy(other, y % 2))
        controller.step()
    small = fxcat.finalize(net.eval())
    for ours, theirs in zip(small(X[:4]), net(X[:4]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("first", (None, 0.0, "run"))
def test_values_that_forward_leaves_in_attributes(first: Any) -> None:
    """They are told of, and nothing of an earlier pass is taken for them. What a hook finds is of the pass."""

    class Leaving(Net):
        def __init__(self) -> None:
            super().__init__()
            if first != "run":
                self.penalty = first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.block(self.stem(x))
            self.penalty = found.square().mean()
            return self.head(found.mean((2, 3)))

    model = Leaving()
    if first == "run":
        model(X[:2])
    net = prepared(model)
    net(X[:2])
    told = [p.where for p in net.structure.pinned if "leaves a value" in p.reason]
    assert told == ([] if first is None else ["attribute 'penalty'"])
    for holder in (net, net.network, fxcat.finalize(net)):
        if first is None:
            assert holder.penalty is None
        else:
            with pytest.raises(AttributeError, match="penalty"):
                _ = holder.penalty
    found: list[Any] = []
    net.network.get_submodule("block.4").register_forward_hook(lambda module, x, y: found.append(y))
    run(lambda net, o, x, y, i: descend(o, F.cross_entropy(net(x), y) + 1e-3 * found.pop().square().mean()), net)


def test_gradients_that_say_nothing_of_the_gates() -> None:
    net = prepared()
    optimizer = sgd(net)
    controller = controlled(net, optimizer, steps=200)
    weights = list(net.weight_parameters())

    def learn() -> None:
        for weight, slope in zip(weights, torch.autograd.grad(net(X[:4]).sum(), weights), strict=True):
            weight.grad = slope
        optimizer.step()
        controller.step()

    with pytest.raises(fxcat.TrainingError, match=r"no backward pass came to the gates(?s:.*)net\.gate_parameters"):
        for _ in range(40):
            learn()

    def loss(weights: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (x[None],)), y[None])

    net = prepared()
    controller = controlled(net, optimizer := sgd(net))
    named = {n: p.detach() for n, p in net.named_parameters() if n.startswith("network.")}
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")(named, X[:4], Y[:4])
    optimizer.step()
    with pytest.raises(fxcat.TrainingError, match=r"not within torch\.func\.grad or vmap"):
        controller.step()


def test_a_network_that_was_pruned_at_once_is_trained_on() -> None:
    """Nothing is said of it, also where it goes on from a state."""
    net, again = prepared(), prepared()
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=HALF)
    net.shrink()
    again.load_state_dict(net.state_dict())
    for each in (net, again):
        descend(sgd(each), F.cross_entropy(each(batch(0)[0]), batch(0)[1]))
        check(each)  # warnings are errors


def test_removal_by_hand_while_gates_are_trained() -> None:
    """The optimizer follows."""

    def step(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        if i == 5:
            net.gates["block.0"].theta[:5] = 0.0
            net.shrink()
            assert net.network.get_parameter("block.0.weight").shape[0] <= 19
        descend(optimizer, F.cross_entropy(net(x), y))

    run(step)


def test_a_loader_that_yields_less_than_it_says() -> None:
    class Short(list[Any]):
        def __len__(self) -> int:
            return 8

    with pytest.warns(UserWarning, match="was to yield 8 steps in an epoch, and yielded 6"):
        fxcat.fit(prepared(), Short(batch(i) for i in range(6)), epochs=2, target=HALF, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxcat.fit(prepared(), [batch(i) for i in range(6)], epochs=2, target=HALF, progress=False)


def test_a_run_of_a_single_step() -> None:
    net = prepared()
    fxcat.fit(net, [batch(0)], epochs=1, target=HALF, progress=False)
    check(net)


def mismatched(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A difference of classes, without an axis for them."""
    return (output - targets).square().mean()


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    ("data", "options", "match"),
    (
        (torch.utils.data.DataLoader(Endless(), 16), {}, "steps_per_epoch="),
        ([(X[:4].numpy(), Y[:4])], {}, r"NumPy array of shape \(4, 3, 8, 8\)"),
        ([X[:4]], {}, r"no cross-entropy(?s:.*)loss="),
        ([(X[:4], Y[:4] + 9)], {}, "out of bounds"),
        ([batch(0)], {"loss": mismatched}, r"loss= does not take what train_loader yields: RuntimeError: The size"),
        (
            [batch(0)],
            {"val_loader": [(X[:4, :2], Y[:4])]},
            "network does not take what val_loader yields: RuntimeError",
        ),
        ([batch(0)], {"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the loss in its steps"),
    ),
)
def test_data_and_optimizers_that_fit_cannot_use(data: Any, options: dict[str, Any], match: str) -> None:
    net = prepared()
    made = {n: kind(net.weight_parameters()) if n == "optimizer" else kind for n, kind in options.items()}
    with pytest.raises(fxcat.InputError, match=match):
        fxcat.fit(net, data, epochs=1, target=HALF, progress=False, **made)
