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
from forked import in_two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning_task import (
    BATCHES,
    EPOCHS,
    MARKS,
    STEPS,
    TARGET,
    Lit,
    data,
    gates,
    keeps,
    meets_target,
    prepared,
    run,
    same,
    trainer,
)
from small_task import Net
from torch import nn

import fxcat

pytestmark = MARKS


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


@pytest.mark.long
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
    cost = module.net.hard_cost()
    made.fit_loop.max_epochs += 1
    made.fit(module, data())
    run(callback, module=module, max_epochs=1)
    assert module.net.hard_cost() == cost
    other = run(callback)  # a new network begins anew
    assert meets_target(other.net)
    with pytest.raises(fxcat.InputError, match="have been trained and decided"):
        run(gates(), module=module)


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


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """With and without the search for unused parameters; and go on from checkpoints before and after the shrink."""
    done = in_two_processes("lightning_task", "train_together", tmp_path)
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
