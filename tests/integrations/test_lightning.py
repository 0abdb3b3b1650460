"""Lightning's `Trainer` trains gates as one's own loop does, whatever else it does."""

from __future__ import annotations

import copy
import difflib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_task import BATCHES, EPOCHS, TARGET, Lit, data, gates, keeps, prepared, trainer
from small_task import Net
from torch import nn

import fxcat
from fxcat.integrations.lightning import GateCallback
from fxcat.integrations.transformers import GateCallback as CallbackOfTransformers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*Skipping val loop"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
STEPS = EPOCHS * BATCHES


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are the same, to the last bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def run(*callbacks: Any, module: Any = None, loader: Any = None, **options: Any) -> Any:
    module = Lit(prepared()) if module is None else module
    path = options.pop("ckpt_path", None)
    trainer(*callbacks, **options).fit(module, data() if loader is None else loader, data(64), ckpt_path=path)
    return module


def own_loop(parts: int = 1, clip: float | None = None) -> Lit:
    """What a `Trainer` does with `accumulate_grad_batches=parts`."""
    module = Lit(prepared())
    net: Any = module.net
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=5e-3)
    total = EPOCHS * -(-BATCHES // parts)
    controller = fxcat.GateController(net, optimizer, target=TARGET, total_steps=total)
    net.train()
    for _ in range(EPOCHS):
        for i, batch in enumerate(data()):
            if i % parts == 0:
                optimizer.zero_grad()
            (module.training_step(batch, i) / parts).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.weight_parameters(), clip)
            if i % parts == parts - 1 or i == BATCHES - 1:
                optimizer.step()
                controller.step()
    return module


@pytest.fixture(scope="module")
def whole() -> Lit:
    return own_loop()


def meets_target(net: Any, target: float = 0.4) -> bool:
    return 0.85 * target < net.hard_cost().macs / net.start_cost.macs <= target


PLAIN = """
    module = Lit(Net())
    trainer = Trainer(max_epochs=2, **QUIET)
    trainer.fit(module, loader)
    small = module.net
"""
GATED = """
    from fxcat.integrations.lightning import GateCallback
    module = Lit(fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8)))
    trainer = Trainer(max_epochs=2, callbacks=[GateCallback(target=fxcat.Target(flops=0.5))], **QUIET)
    trainer.fit(module, loader)
    small = fxcat.finalize(module.net)
"""


def added(plain: str, gated: str) -> int:
    return sum(line.startswith("+ ") for line in difflib.ndiff(plain.splitlines(), gated.splitlines()))


def test_a_user_adds_four_lines() -> None:
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    names: dict[str, Any] = {**globals(), "loader": data(), "QUIET": quiet | {"enable_model_summary": False}}
    exec(textwrap.dedent(GATED), names)
    assert added(PLAIN, GATED) == 4
    assert sum(p.numel() for p in names["small"].parameters()) < sum(p.numel() for p in Net().parameters())


def test_the_trainer_does_what_a_loop_does(whole: Lit) -> None:
    callback = gates()
    module = run(callback, num_sanity_val_steps=2)
    assert callback.controller is not None
    assert (callback.controller.steps, callback.controller.total_steps) == (STEPS, STEPS)
    assert same(module, whole)
    assert meets_target(module.net)
    small = fxcat.finalize(module.net)
    x = next(iter(data()))[0]
    torch.testing.assert_close(small.eval()(x), module.net.eval()(x))


def test_accumulated_gradients_make_one_step() -> None:
    callback = gates()
    assert same(run(callback, accumulate_grad_batches=3), own_loop(parts=3))
    assert callback.controller is not None
    assert callback.controller.steps == callback.controller.total_steps == 3 * EPOCHS


def test_clipping_clips_the_weights_alone() -> None:
    assert same(run(gates(), gradient_clip_val=0.1), own_loop(clip=0.1))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    # on a CPU the trainer takes bfloat16 where it is asked for float16, if it is not given the plugin
    half = {"plugins": MixedPrecision("16-mixed", "cpu")} if precision == "16-mixed" else {"precision": precision}
    module = run(gates(), max_epochs=4, **half)
    assert meets_target(module.net)
    assert module.net.gate_vector.theta.dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_steps_or_epochs_end_the_run(whole: Lit) -> None:
    callback = gates()
    assert same(run(callback, max_epochs=-1, max_steps=STEPS), whole)
    assert callback.controller is not None
    assert callback.controller.total_steps == STEPS


def test_runs_go_on_from_checkpoints(whole: Lit, tmp_path: Path) -> None:
    """Before anything has gone, in the gated phase, after it; and after a prolonged run."""
    run(gates(), keeps(tmp_path), enable_checkpointing=True)
    sizes: set[int] = set()
    for epoch in (0, 3, 6):
        path = tmp_path / f"epoch={epoch}.ckpt"
        loaded = torch.load(path, weights_only=True)["state_dict"]
        sizes.add(sum(v.numel() for v in loaded.values()))
        assert same(run(gates(), ckpt_path=path), whole), epoch
    assert len(sizes) > 1
    longer = run(callback := gates(), ckpt_path=tmp_path / "epoch=3.ckpt", max_epochs=EPOCHS + 2)
    assert callback.controller is not None
    assert callback.controller.total_steps == STEPS
    assert meets_target(longer.net)


def test_checkpoints_are_loaded_into_new_networks(whole: Lit, tmp_path: Path) -> None:
    module = run(gates(), keeps(tmp_path), enable_checkpointing=True)
    last, early = (tmp_path / f"epoch={epoch}.ckpt" for epoch in (EPOCHS - 1, 1))
    assert same(Lit.load_from_checkpoint(last, net=prepared()), whole)
    assert same(Lit.load_from_checkpoint(last, net=copy.deepcopy(module.net)), whole)
    unfinished: Any = Lit.load_from_checkpoint(early, net=prepared())
    with pytest.warns(UserWarning, match="has not ended"):
        fxcat.finalize(unfinished.net)
    with pytest.raises(fxcat.InputError, match="prepare\\(\\) the model again"):
        Lit.load_from_checkpoint(early, net=copy.deepcopy(module.net))


def test_a_run_that_is_killed_goes_on(whole: Lit, tmp_path: Path) -> None:
    worker = Path(__file__).parents[1] / "lightning_task.py"
    command = [sys.executable, str(worker), str(tmp_path), "dies"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == -9, done.stderr
    last = max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime)
    assert last.stem == f"epoch={EPOCHS - 3}"
    assert same(run(gates(), ckpt_path=last), whole)


def test_averages_become_smaller_too(tmp_path: Path) -> None:
    ema = EMAWeightAveraging(decay=0.9)
    module = run(gates(), ema, keeps(tmp_path), enable_checkpointing=True)
    net = module.net
    assert meets_target(net)
    assert set(net.gate_vector.theta.tolist()) == {1.0}
    assert net.hard_cost().params == sum(p.numel() for p in fxcat.finalize(net).parameters())
    for epoch in (1, 6):
        resumed = run(gates(), EMAWeightAveraging(decay=0.9), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(resumed, module), epoch


@pytest.mark.parametrize("first", [False, True])
def test_stochastic_weight_averaging(first: bool) -> None:
    both = [gates(), StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2)]
    module = run(*(both if first else reversed(both)), check_val_every_n_epoch=4)
    assert meets_target(module.net)
    assert set(module.net.gate_vector.theta.tolist()) == {1.0}


def test_what_other_callbacks_remember_is_of_the_final_structure(tmp_path: Path) -> None:
    class Rising(Lit):
        """The larger the network, the better."""

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", float(self.current_epoch))

    module, best = Rising(prepared()), keeps(tmp_path, monitor="loss", save_top_k=1)
    patience = EarlyStopping("loss", patience=EPOCHS - 2)
    made = trainer(gates(), best, patience, enable_checkpointing=True)
    made.fit(module, data(), data(64))
    assert made.current_epoch == EPOCHS
    made.validate(module, data(64), ckpt_path="best", verbose=False)
    assert float(best.best_model_score or 0) > 0
    assert meets_target(module.net)


class Ends(Callback):
    """Ends a run in its third epoch, as early stopping does or by an error."""

    def __init__(self, error: bool) -> None:
        self.error = error

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 2
        if self.error and trainer.should_stop:
            raise RuntimeError("power cut")


def test_a_run_that_ends_early_is_finished_unless_it_is_interrupted() -> None:
    module = Lit(prepared())
    with pytest.warns(UserWarning, match="training ended in step 24, before the gates' 35 steps"):
        run(gates(), Ends(error=False), module=module)
    assert meets_target(module.net)
    callback, module = gates(), Lit(prepared())
    with pytest.raises(RuntimeError, match="power cut"):
        run(callback, Ends(error=True), module=module)
    assert callback.controller is not None
    assert callback.controller.phase == "gated"
    assert callback.controller.steps == 24
    run(callback, module=module, max_epochs=5)  # it goes on with the same network, by its own count of steps
    assert callback.controller.steps == 24 + 5 * BATCHES
    assert callback.controller.total_steps == STEPS
    assert meets_target(module.net)


def test_fit_again_trains_what_is_left() -> None:
    callback, module = gates(), Lit(prepared())
    made = trainer(callback)
    made.fit(module, data())
    cost = module.net.hard_cost()  # pyright: ignore
    made.fit_loop.max_epochs += 1
    made.fit(module, data())
    run(callback, module=module, max_epochs=1)
    assert module.net.hard_cost() == cost  # pyright: ignore
    other = run(callback)  # a new network begins anew
    assert meets_target(other.net)
    with pytest.raises(fxcat.InputError, match="have been trained and decided"):
        run(gates(), module=module)


class Adversary(Lit):
    """A gated generator and a plain critic, trained by hand; some batches are thrown away after their backward pass."""

    def __init__(self, net: nn.Module, skips: bool) -> None:
        super().__init__(net)
        self.critic, self.skips = nn.Linear(4, 1), skips
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        generators, critics = self.optimizers()  # pyright: ignore
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


def test_what_is_logged() -> None:
    made = trainer(gates(), max_epochs=4)
    made.fit(module := Lit(prepared()), data())
    logged = {k: float(v) for k, v in made.callback_metrics.items()}
    cost, start = module.net.hard_cost(), module.net.start_cost
    assert logged == pytest.approx(
        {"gates/flops": cost.macs / start.macs, "gates/params": cost.params / start.params, "gates/phase": 2.0}
    )
    quiet = trainer(gates(log=False), max_epochs=1)
    quiet.fit(Lit(prepared()), data())
    assert not quiet.callback_metrics


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
    with pytest.raises(fxcat.InputError, match="give either target= or pressure="):
        run(GateCallback())
    with pytest.raises(TypeError, match="'flops'"):
        GateCallback(flops=0.5)
    with pytest.raises(fxcat.InputError, match=r"given to a Trainer of Lightning.*\n?.*integrations\.lightning"):
        run(CallbackOfTransformers(fxcat.Target(flops=0.5)))
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `GateCallback`"):
        trainer(gates(), gates())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_other_package_of_the_same_trainer(whole: Lit, tmp_path: Path) -> None:
    import pytorch_lightning
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Theirs(pytorch_lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        training_step: Any = Lit.training_step
        configure_optimizers: Any = Lit.configure_optimizers

    for path in (None, tmp_path / "epoch=3.ckpt"):
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        module = Theirs(prepared())
        made = trainer(gates(), saves, kind=pytorch_lightning.Trainer, enable_checkpointing=True)
        made.fit(module, data(), ckpt_path=path)
        assert same(module, whole)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """With and without the search for unused parameters; and go on from checkpoints before and after the shrink."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = Path(__file__).parents[1] / "lightning_task.py"
    command = [*launcher, str(worker), str(tmp_path), "trains"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        found = [torch.load(tmp_path / f"{strategy}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert found[0] == found[1]
        assert found[0]["parted"] == 0
        assert found[0]["same"] > EPOCHS
        assert found[0]["macs"] <= 0.4 * prepared().start_cost.macs


@pytest.mark.slow
def test_processes_that_are_spawned(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "lightning_task.py"), str(tmp_path), "spawns"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    small = torch.load(tmp_path / "small.pt", weights_only=True)
    assert sum(v.numel() for v in small.values()) < sum(v.numel() for v in Net().state_dict().values())
