"""Ultralytics: their trainer prunes a detector, and their tools go on with the small one."""

from __future__ import annotations

import copy
import inspect
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from differences import difference
from exactness import counted_macs, randomise
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics_task import TARGET, Place

import fxcat
from fxcat.integrations import ultralytics as integration
from fxcat.integrations.ultralytics import attach, optimizer_steps

LEGACY = pytest.mark.filterwarnings("ignore")
"""Their exporter uses the older one of torch."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made(tmp_path_factory.mktemp("yolo"))


@pytest.fixture(scope="module")
def trained(place: Place) -> Any:
    model = place.model()
    attach(model, target=TARGET)
    model.train(**place.recipe)
    return model


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else first(result[0])


def test_what_a_user_adds_are_few_lines() -> None:
    code = re.findall(r"^    (\S.*)$", inspect.getdoc(integration) or "", re.MULTILINE)
    assert [line.partition("(")[0] for line in code] == ["model = YOLO", "attach", "model.train", "model.export"]


def test_the_trainer_prunes_to_the_target(trained: Any) -> None:
    controller = trained.trainer.controller
    assert controller.steps == controller.total_steps == 8
    net, small = controller.net, trained.model
    assert 0.59 * net.start_cost.macs <= net.hard_cost().macs <= 0.6 * net.start_cost.macs
    assert isinstance(small, DetectionModel)
    assert counted_macs(small, (images(1),)) == net.hard_cost().macs
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
    assert not any("gate" in name for name in small.state_dict())
    # what was averaged, halved, written and read is what was trained
    shapes = {name: t.shape for name, t in fxcat.finalize(net).state_dict().items()}
    assert {name: t.shape for name, t in small.state_dict().items()} == shapes


def test_files_hold_the_small_model(place: Place, trained: Any) -> None:
    dense = copy.deepcopy(place.model().model).half()
    torch.save(dense, place.folder / "dense.pt")
    for path in (trained.trainer.best, trained.trainer.last):
        content = torch.load(path, weights_only=False)
        assert content["ema"] is content["optimizer"] is None
        assert isinstance(content["model"], DetectionModel)
        assert path.stat().st_size < 0.9 * (place.folder / "dense.pt").stat().st_size
    read = place.model("run/weights/best.pt")
    assert torch.equal(first(read.model(images())), first(trained.model(images())))


def test_their_tools_go_on_with_it(place: Place, trained: Any) -> None:
    assert trained.val(**place.data).box.map50 >= 0
    (found,) = trained.predict(images(1), **{k: v for k, v in place.data.items() if k != "data"})
    assert found.boxes.shape[1] == 6
    assert trained.embed(images(1), imgsz=64)[0].shape == (trained.model.model[-2].cv2.conv.out_channels,)
    trained.save(place.folder / "saved.pt")
    saved = place.model("saved.pt").model
    assert difference(first(saved(images())), first(trained.model(images()))) < 1e-6


def test_fusing_changes_nothing_but_speed(trained: Any) -> None:
    small = copy.deepcopy(trained.model).double().eval()
    randomise(small, 0)
    expected = first(small(images().double()))
    assert not small.is_fused()
    fused = copy.deepcopy(small).fuse(verbose=False)
    assert fused.is_fused() and not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert difference(first(fused(images().double())), expected) < 1e-6  # theirs computes in single precision


@LEGACY
def test_exported_files_compute_the_same(trained: Any) -> None:
    expected = first(trained.model.eval()(images(1))).detach()
    session = onnxruntime.InferenceSession(
        trained.export(format="onnx", imgsz=64, device="cpu", simplify=False), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"images": images(1).numpy()})
    assert difference(torch.from_numpy(result), expected) < 1e-5


@pytest.mark.long
def test_a_small_model_is_trained_on_as_it_is(place: Place, trained: Any) -> None:
    small = place.model("run/weights/best.pt")
    count = sum(p.numel() for p in small.model.parameters())
    with pytest.raises(fxcat.InputError, match="at full size"):
        small.train(**{**place.recipe, "epochs": 1, "name": "refused"})
    attach(small)
    small.train(**{**place.recipe, "epochs": 1, "name": "on"})
    assert sum(p.numel() for p in small.model.parameters()) == count
    assert not torch.equal(small.model.model[0].conv.weight, trained.model.model[0].conv.weight)


@pytest.mark.long
def test_a_run_that_ends_early_meets_its_target(place: Place) -> None:
    model = place.model()
    attach(model, target=TARGET)
    model.add_callback("on_train_epoch_end", lambda trainer: setattr(trainer, "stop", True))
    model.train(**{**place.recipe, "name": "early"})
    net = model.trainer.controller.net
    assert counted_macs(model.model, (images(1),)) == net.hard_cost().macs <= 0.6 * net.start_cost.macs


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    (
        ({"target": TARGET}, {"time": 1.0}, "time="),
        ({"target": TARGET}, {"resume": "missing"}, None),
    ),
)
def test_what_cannot_be_pruned_is_refused(
    place: Place, arguments: dict[str, Any], given: dict[str, Any], message: str | None
) -> None:
    model = place.model()
    attach(model, **arguments)
    with pytest.raises(fxcat.InputError if message else FileNotFoundError, match=message):
        model.train(**{**place.recipe, "name": "refused", **given})


def test_what_attach_takes(place: Place) -> None:
    model = place.model()
    attached = place.model()
    attach(attached, target=fxcat.Target(flops=0.7))
    with pytest.raises(fxcat.InputError, match="none of which would be pruned"):
        attached.tune(data="coco8.yaml")
    with pytest.raises(fxcat.InputError, match="neither target= nor pressure="):
        attach(model)
    with pytest.raises(fxcat.InputError, match="either target= or pressure="):
        attach(model, target=TARGET, pressure=fxcat.Pressure(0.1))
    settings: list[dict[str, Any]] = [{"until": 7}, {"warmup": "x"}, {"gate_lr": -1.0}, {"prepared": ["round_to"]}]
    for wrong in settings:
        with pytest.raises(fxcat.InputError, match=next(iter(wrong))):
            attach(model, target=TARGET, **wrong)
    with pytest.raises(TypeError, match="round"):
        attach(model, target=TARGET, prepared={"round": 8})
    with pytest.raises(fxcat.InputError, match=r"attach\(\) got a DetectionModel"):
        attach(model.model, target=TARGET)


@dataclass
class Counted:
    """What their trainer counts steps by."""

    batches: int
    epochs: int
    accumulate: int
    ramp: int

    @property
    def train_loader(self) -> range:
        return range(self.batches)

    def _get_warmup_iterations(self, batches: int) -> int:
        return self.ramp


@pytest.mark.parametrize("ramp", (0, 1, 7, 12, 40))
@pytest.mark.parametrize("accumulate", (1, 3, 4))
def test_steps_are_counted_as_theirs(ramp: int, accumulate: int) -> None:
    steps, last = 0, -1
    for batch in range(4 * 5):
        now = accumulate
        if ramp and batch <= ramp:
            now = max(1, round(1 + (accumulate - 1) * batch / ramp))
        if batch - last >= now:
            steps, last = steps + 1, batch
    assert optimizer_steps(Counted(5, 4, accumulate, ramp)) == steps


RUN = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from fxcat.integrations.ultralytics import attach
from ultralytics_task import TARGET, Place

place, killed, name = Place(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
model = place.model(name)
attach(model, target=TARGET)

def state(trainer):
    net = trainer.controller.net
    return trainer.controller.steps, net.hard_cost().macs, sum(p.numel() for p in net.parameters())

def saved(trainer):
    print("SAVED", trainer.epoch, *state(trainer), flush=True)
    if trainer.epoch == killed:
        os.kill(os.getpid(), signal.SIGKILL)

def begins(trainer):
    print("BEGINS", trainer.start_epoch, *state(trainer), flush=True)

model.add_callback("on_model_save", saved)
model.add_callback("on_train_start", begins)
model.train(**{{**place.recipe, "epochs": 6, "resume": name.endswith(".pt")}})
net = model.trainer.controller.net
print("ENDED", model.trainer.epoch, model.trainer.controller.steps, net.hard_cost().macs / net.start_cost.macs)
"""


def said(output: str, word: str) -> list[list[str]]:
    return [line.split()[1:] for line in output.splitlines() if line.startswith(word)]


@pytest.mark.slow
@pytest.mark.parametrize("killed", (1, 2, 4))
def test_a_killed_run_goes_on(tmp_path: Path, killed: int) -> None:
    """Before gates leave, in the midst of it, and once they are decided; and the result in a process of its own."""
    Place.made(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parents[1])))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, env=os.environ)

    first = run(str(tmp_path), str(killed), "tiny8n.yaml")
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = run(str(tmp_path), "-1", "run/weights/last.pt")
    assert second.returncode == 0, second.stderr
    before, (after,) = said(first.stdout, "SAVED")[-1], said(second.stdout, "BEGINS")
    assert (int(after[0]), after[1:]) == (killed + 1, before[1:])
    ((epoch, _, share),) = said(second.stdout, "ENDED")
    assert epoch == "5" and 0.59 <= float(share) <= 0.6
    path = str(tmp_path / "run" / "weights" / "best.pt")
    read = f"from ultralytics import YOLO; YOLO({path!r}).val(**{Place(tmp_path).data!r})"
    found = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, env=os.environ)
    assert found.returncode == 0, found.stderr


@LEGACY
@pytest.mark.slow
@pytest.mark.parametrize("name", ("yolo11n", "yolo26n", "yolov10n", "yolov9t"))
def test_models_of_theirs(place: Place, name: str) -> None:
    """With attention, heads of two kinds, and branches that are merged for inference."""
    model: Any = YOLO(f"{name}.yaml")
    attach(model, target=fxcat.Target(flops=0.7))
    model.train(**{**place.recipe, "name": name})
    controller = model.trainer.controller
    assert controller.net.hard_cost().macs <= 0.7 * controller.net.start_cost.macs
    expected = first(model.model.eval()(images(1)))
    fused = copy.deepcopy(model.model).fuse(verbose=False)
    assert difference(first(fused(images(1))), expected) < 1e-4
    assert model.val(**place.data).box.map50 >= 0
    session = onnxruntime.InferenceSession(
        model.export(format="onnx", imgsz=64, device="cpu", simplify=False), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"images": images(1).numpy()})
    assert difference(torch.from_numpy(result), expected.detach()) < 1e-4
