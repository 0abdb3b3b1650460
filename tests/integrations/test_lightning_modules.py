"""Modules of Lightning that make their steps themselves, or leave some out; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_task import MARKS, STEPS, Lit, gates, meets_target, prepared, run, same, trainer
from small_task import Net
from torch import nn

import fxcat
from fxcat.integrations.lightning import GateCallback
from fxcat.integrations.transformers import GateCallback as CallbackOfTransformers

pytestmark = MARKS


class Adversary(Lit):
    """A gated generator and a plain critic, trained by hand; some batches are thrown away after their backward pass."""

    def __init__(self, net: nn.Module, skips: bool) -> None:
        super().__init__(net)
        self.critic, self.skips = nn.Linear(4, 1), skips
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        generators, critics = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        if index % 4 == 1:
            output = self.net(batch[0])
            if self.skips:
                self.manual_backward(output.square().sum() * 1e6)
                generators.zero_grad()
        self.toggle_optimizer(critics)
        critics.zero_grad()
        self.manual_backward(self.critic(self.net(batch[0]).detach()).mean())
        critics.step()
        self.untoggle_optimizer(critics)
        self.toggle_optimizer(generators)
        output = self.net(batch[0])
        generators.zero_grad()
        self.manual_backward(F.cross_entropy(output, batch[1]) - 0.1 * self.critic(output).mean())
        generators.step()
        self.untoggle_optimizer(generators)

    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        return [made, torch.optim.SGD(self.critic.parameters(), lr=1e-3)]


def test_several_optimizers_by_hand() -> None:
    runs: list[Any] = []
    for skips in (False, True):
        torch.manual_seed(0)
        module, callback = Adversary(prepared(), skips), gates()
        runs.append(run(callback, module=module))
        assert callback.controller is not None
        assert callback.controller.steps == STEPS
        assert len(callback.controller.optimizers) == 1
    assert meets_target(runs[0].net)
    assert same(*runs)


class ByHand(Lit):
    """Makes a step every fourth batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, index))
        if index % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


def test_steps_that_the_trainer_does_not_know_of_are_asked_for() -> None:
    with pytest.raises(fxcat.InputError, match=r"(?s)in 16 steps, not in 64.*total_steps=16"):
        run(gates(), module=ByHand(prepared()))
    callback = gates(total_steps=16)
    assert meets_target(run(callback, module=ByHand(prepared())).net)
    assert callback.controller is not None
    assert callback.controller.steps == 16


class Skips(Lit):
    """Leaves batches out, before or after the network has seen them."""

    def training_step(self, batch: Any, index: int) -> Any:
        if index % 4 == 1:
            return None
        loss = super().training_step(batch, index)
        return None if index % 4 == 2 else loss


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_batches_that_are_left_out() -> None:
    callback = gates()
    assert meets_target(run(callback, module=Skips(prepared())).net)
    assert callback.controller is not None
    assert callback.controller.phase == "plain"


class Deaf(Lit):
    """Has a network with gates, and trains another."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.other = Net()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.other(batch[0]), batch[1])


class Sharding(SingleDeviceStrategy):
    """As strategies are that shard parameters."""

    restore_checkpoint_after_setup = True  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(fxcat.InputError, match="target="):
        GateCallback(target=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match="found no networks with gates in Lit"):
        run(gates(), module=Lit(Net()))
    with pytest.raises(fxcat.InputError, match="found 2 networks with gates"):
        run(gates(), module=Lit(nn.ModuleList([prepared(), prepared()])))
    with pytest.raises(fxcat.InputError, match="has not called the network with gates in the first epoch"):
        run(gates(), module=Deaf(prepared()))
    with pytest.raises(fxcat.InputError, match="does not know how many steps"):
        run(gates(), max_epochs=-1)
    with pytest.raises(fxcat.InputError, match="Sharding shards parameters"):
        run(gates(), strategy=Sharding("cpu"))
    for wrong in ({}, {"target": fxcat.Target(flops=0.5), "pressure": fxcat.Pressure(1.0)}):
        with pytest.raises(fxcat.InputError, match="give either target= or pressure="):
            GateCallback(**wrong)
    settings: list[dict[str, Any]] = [{"warmup": 2}, {"until": "x"}, {"shrinks": -1}, {"total_steps": 0}, {"loss": 3}]
    for wrong in settings:
        with pytest.raises(fxcat.InputError, match=next(iter(wrong))):
            GateCallback(fxcat.Target(flops=0.5), **wrong)
    with pytest.raises(TypeError, match="'flops'"):
        GateCallback(flops=0.5)
    with pytest.raises(fxcat.InputError, match=r"given to a Trainer of Lightning.*\n?.*integrations\.lightning"):
        run(CallbackOfTransformers(fxcat.Target(flops=0.5)))
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `GateCallback`"):
        trainer(gates(), gates())
