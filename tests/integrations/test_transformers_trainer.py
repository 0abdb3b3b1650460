"""transformers' `Trainer` trains a network with gates: its arguments, networks of any kind, processes."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import DistributedType, PartialState
from forked import in_two_processes
from small_task import Net
from torch import nn
from trainer_task import BEST, IMAGES, STEPS, TARGET, Growing, Images, arguments, macs, prepared, same, trainer, vit
from transformers import (
    EarlyStoppingCallback,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    ViTForImageClassification,
)

import fxcat
from fxcat.integrations.lightning import GateCallback as CallbackOfLightning
from fxcat.integrations.transformers import GateCallback

pytestmark = pytest.mark.usefixtures("one_thread")


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def script(folder: Path) -> None:
    model = vit()
    trainer = Trainer(
        model=model,
        args=arguments(folder),
        train_dataset=Images(),
        eval_dataset=Images(16),
    )
    trainer.train()
    model.save_pretrained(folder)


def script_with_gates(folder: Path) -> None:
    model = vit()
    net = fxcat.prepare(model, {"pixel_values": IMAGES[:1], "labels": torch.zeros(1, dtype=torch.int64)})
    trainer = Trainer(
        model=net,
        args=arguments(folder),
        train_dataset=Images(),
        eval_dataset=Images(16),
        callbacks=[GateCallback(fxcat.Target(flops=0.5))],
    )
    trainer.train()
    fxcat.save(net, folder / "small.safetensors")


def test_five_lines_are_enough(tmp_path: Path) -> None:
    sources = [inspect.getsource(s).splitlines()[1:] for s in (script, script_with_gates)]
    added = [line for line in difflib.ndiff(sources[0], sources[1]) if line.startswith("+ ")]
    assert len(added) + 1 <= 5  # and `from fxcat.integrations.transformers import GateCallback`
    script_with_gates(tmp_path)
    small = fxcat.load(tmp_path / "small.safetensors", vit())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in vit().parameters())


def test_training_evaluation_prediction(tmp_path: Path) -> None:
    net, gates = prepared(), GateCallback(TARGET)
    one = trainer(net, tmp_path, gates, compute_metrics=accuracy)
    assert one.label_names == ["labels"] and not one.can_return_loss and not one.model_accepts_loss_kwargs
    one.train()
    assert gates.controller is not None and gates.controller.phase == "plain"
    assert 0.49 < macs(net) <= 0.5
    found = one.evaluate()
    assert found["eval_accuracy"] >= 0.5 and found["eval_loss"] < 1.3
    logits = one.predict(Images(8, labelled=False)).predictions
    small = fxcat.finalize(net).eval()
    assert type(small).__name__ == "ViTForImageClassification" and isinstance(small, ViTForImageClassification)
    images = torch.stack([x["pixel_values"] for x in (Images()[i] for i in range(8))])
    torch.testing.assert_close(small(pixel_values=images).logits, torch.tensor(logits))
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params


def weights_after(folder: Path, **options: Any) -> fxcat.GatedModule:
    net = prepared()
    trainer(net, folder, GateCallback(TARGET), **options).train()
    return net


def test_it_is_what_an_own_loop_gives(tmp_path: Path) -> None:
    """The same batches, AdamW by hand with clipping and a falling rate: the same structure and weights."""
    batches: list[Any] = []
    net = prepared()

    class Keeping(Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> torch.Tensor:
            batches.append({k: v.clone() for k, v in inputs.items()})
            return super().training_step(model, inputs, *rest, **options)

    Keeping(net, arguments(tmp_path), train_dataset=Images(), callbacks=[GateCallback(TARGET)]).train()
    other = prepared().train()
    optimizer = torch.optim.AdamW(other.weight_parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    controller = fxcat.GateController(other, optimizer, target=TARGET, total_steps=STEPS)
    for given in batches:
        other(**given).loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        controller.step()
        scheduler.step()
        optimizer.zero_grad()
    assert same(net, other)


OPTIONS: dict[str, dict[str, Any]] = {
    "label smoothing": {"label_smoothing_factor": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2},
    "epochs": {"max_steps": -1, "num_train_epochs": 3},
    "bf16": {"bf16": True},
    "sgd": {"optim": "sgd", "learning_rate": 0.1},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "adamw": {"optim": "adamw_torch", "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_of_the_trainer(name: str, tmp_path: Path) -> None:
    net = weights_after(tmp_path, **OPTIONS[name])
    assert 0.47 < macs(net) <= 0.5 and net.unfinished is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    assert same(weights_after(tmp_path, torch_compile=True, torch_compile_backend="eager"), weights_after(tmp_path))


def test_clipping_does_not_change_what_is_decided(tmp_path: Path) -> None:
    structures: list[dict[str, int]] = []
    for norm in (0.0, 1e-3):
        net = prepared()
        gates = GateCallback(pressure=fxcat.Pressure(nu=0.5))
        trainer(net, tmp_path, gates, max_grad_norm=norm, optim="sgd", learning_rate=0.0).train()
        structures.append(net.live_units())
    assert structures[0] == structures[1] and min(structures[0].values()) < max(structures[0].values())


@pytest.mark.parametrize("when", ["whole", "small", "in training"])
def test_what_its_configuration_cannot_make_is_saved_by_fxcat(when: str, tmp_path: Path) -> None:
    """Nothing but the missing names would say that `from_pretrained` draws new weights for a section."""
    net = prepared()
    if when != "whole":
        net.gates["vit.layers.0.section"].set(0.0)
    saved: Any = fxcat.finalize(net).eval()
    if when == "whole":
        saved.save_pretrained(tmp_path)
        loaded = ViTForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded(IMAGES).logits, saved(IMAGES).logits)
        return
    if when == "in training":
        net.shrink()
        saved = net
    with pytest.warns(UserWarning, match="smaller than its configuration says.*fxcat.save"):
        saved.save_pretrained(tmp_path)


def test_the_small_network_is_trained_on(tmp_path: Path) -> None:
    net = prepared()
    net.gates["vit.layers.0.section"].set(0.0)
    one = trainer(fxcat.finalize(net), tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    with pytest.warns(UserWarning, match="smaller than its configuration says"):
        one.train()
        one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


class Losing(nn.Module):
    """Somebody's own module round the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def plain_net() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)


def test_a_module_that_holds_the_network(tmp_path: Path) -> None:
    net = plain_net()
    one = trainer(Losing(net), tmp_path, GateCallback(TARGET), compute_metrics=accuracy)
    one.train()
    assert 0.47 < macs(net) <= 0.5 and one.evaluate()["eval_accuracy"] > 0.5


class OwnLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        output = model(inputs["x"])
        loss = F.cross_entropy(output, inputs["labels"])
        return (loss, {"logits": output}) if return_outputs else loss


class Named(Images):
    def __getitem__(self, index: int) -> dict[str, Any]:
        found = super().__getitem__(index)
        return {"x": found["pixel_values"], "labels": found["labels"]}


def test_a_plain_network_with_a_loss_of_the_users(tmp_path: Path) -> None:
    net = plain_net()
    assert list(inspect.signature(net.forward).parameters) == ["x"]
    given: dict[str, Any] = {"train_dataset": Named(), "eval_dataset": Named(16), "compute_metrics": accuracy}
    one = OwnLoss(net, arguments(tmp_path, label_names=["labels"]), callbacks=[GateCallback(TARGET)], **given)
    one.train()
    assert 0.47 < macs(net) <= 0.5 and one.evaluate()["eval_accuracy"] > 0.5


class Pixels(Images):
    def __getitem__(self, index: int) -> dict[str, Any]:
        image = super().__getitem__(index)["pixel_values"].repeat(1, 4, 4)
        return {"pixel_values": image, "labels": (image.mean(0) > 0.5).long()}


def test_segmentation(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "depths": [1] * 4,
        "hidden_sizes": [8, 8, 16, 16],
        "decoder_hidden_size": 16,
        "num_labels": 2,
    }
    config = SegformerConfig(num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2] * 4, **sizes)
    example = {k: v[None] for k, v in Pixels()[0].items()}
    net = fxcat.prepare(SegformerForSemanticSegmentation(config), example, verbose=False)
    one = Trainer(
        net, arguments(tmp_path), train_dataset=Pixels(), eval_dataset=Pixels(8), callbacks=[GateCallback(TARGET)]
    )
    one.train()
    assert 0.47 < macs(net) <= 0.5 and one.evaluate()["eval_loss"] < 1.0
    small = fxcat.finalize(net).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(**example).logits, net.eval()(**example).logits)


def test_a_training_that_stops_early_meets_the_target(tmp_path: Path) -> None:
    net, gates = prepared(), GateCallback(TARGET)
    one = trainer(net, tmp_path, gates, EarlyStoppingCallback(2), compute_metrics=Growing(), **BEST)
    with pytest.warns(UserWarning, match="the network is cut to its target now, untrained"):
        one.train()
    assert one.state.global_step == 15 and gates.controller is not None and gates.controller.phase == "plain"
    assert macs(net) <= 0.5 and net.unfinished is None
    fxcat.finalize(net)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation checkpointing": ({"activation_checkpointing": True}, "activation_checkpointing"),
    "adafactor": ({"optim": "adafactor"}, "Adafactor keeps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_lost(name: str, tmp_path: Path) -> None:
    options, said = REFUSED[name]
    gates = GateCallback(TARGET)
    with pytest.raises(fxcat.InputError, match=said):
        trainer(prepared(), tmp_path, gates, **options).train()
    assert gates.controller is None or gates.controller.steps == 0


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "DataParallel"])
def test_what_shards_or_copies_the_network_is_refused(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    args = arguments(tmp_path)
    gates, one = GateCallback(TARGET), trainer(prepared(), tmp_path)
    if kind == "DataParallel":
        args._n_gpu = 2
    else:
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(kind))
    with pytest.raises(fxcat.InputError, match=kind):
        gates.on_init_end(args, one.state, one.control, model=one.model)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(fxcat.InputError, match="found no networks with gates in ViTForImageClassification"):
        trainer(vit(), tmp_path, GateCallback(TARGET))
    with pytest.raises(fxcat.InputError, match="target"):
        GateCallback(0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match=r"^warmup=2, until=0.55, shrinks=8 do not make a schedule"):
        GateCallback(TARGET, warmup=2)
    with pytest.raises(TypeError, match="warm_up"):
        GateCallback(TARGET, warm_up=0.1)
    with pytest.raises(fxcat.InputError, match=r"given to a Trainer of transformers.*\n?.*integrations\.transformers"):
        trainer(prepared(), tmp_path, CallbackOfLightning(TARGET))  # pyright: ignore[reportArgumentType]
    gates = GateCallback(TARGET, averages=[prepared()])
    with pytest.raises(fxcat.InputError, match="without averages="):
        trainer(prepared(), tmp_path, gates, restore_callback_states_from_checkpoint=True)


@pytest.mark.long
def test_processes_do_not_part(tmp_path: Path) -> None:
    """Two of them, as the Trainer wraps the network by default and in the other way."""
    done = in_two_processes("trainer_task", "train_together", tmp_path)
    assert done.returncode == 0, done.stderr
    for unused in (None, False):
        found = [torch.load(tmp_path / f"{unused}-{rank}.pt") for rank in range(2)]
        assert found[0] == found[1]
        kind, equal, shrunk, left, start = found[0]
        assert kind == "DistributedDataParallel" and len(equal) == STEPS and all(equal)
        assert shrunk and shrunk[-1] < STEPS and left <= 0.5 * start
