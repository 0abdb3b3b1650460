"""Models by their names, and weights from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import fxcat
from fxcat.named_models import known_names, with_package


def test_names_of_both_packages() -> None:
    assert (
        with_package("resnet18") == "torchvision:resnet18"
        and with_package("convmixer_768_32") == "timm:convmixer_768_32"
    )
    assert {"resnet18", "convmixer_768_32"} <= set(known_names())
    assert type(fxcat.named_model("timm:resnet18")).__module__.startswith("timm.")
    model = fxcat.named_model("squeezenet1_1", classes=3)
    assert isinstance(model, torchvision.models.SqueezeNet) and model(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    vit = fxcat.named_model("timm:vit_tiny_patch16_224", arguments={"img_size": 32}, classes=2)
    assert vit(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_nothing_is_downloaded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    fxcat.named_model("deeplabv3_mobilenet_v3_large")  # its backbone would
    for argument in ("weights", "weights_backbone", "pretrained", "checkpoint_path", "pretrained_cfg"):
        with pytest.raises(fxcat.InputError, match="would load weights"):
            fxcat.named_model("resnet18", arguments={argument: "DEFAULT"})
    with pytest.raises(AssertionError, match="a download"):
        fxcat.named_model("resnet18", pretrained=True)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_from_a_file_all_but_the_last_layer_of_other_classes(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = fxcat.named_model("squeezenet1_1", classes=5)
    path = tmp_path / f"w.{suffix}"
    state = stored.state_dict()
    if suffix == "pt":
        torch.save({"model": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    same = fxcat.named_model("squeezenet1_1", classes=5, weights=path)
    assert all(torch.equal(t, state[n]) for n, t in same.state_dict().items()) and not caplog.messages
    other = fxcat.named_model("squeezenet1_1", classes=3, weights=path)
    differ = [n for n, t in other.state_dict().items() if not torch.equal(t, state[n])]
    assert differ == ["classifier.1.weight", "classifier.1.bias"]
    assert "classifier.1.weight, classifier.1.bias stay as they were made" in caplog.text
    with pytest.raises(fxcat.InputError, match=r"not those of this model: it lacks .* \(and \d+ more\)"):
        fxcat.named_model("resnet18", weights=path)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    torch.save({"weight": "none"}, tmp_path / "a.pt")
    torch.save(fxcat.named_model("squeezenet1_1"), tmp_path / "b.pt")  # a pickle of objects
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    for name, said in (("a.pt", "holds no state_dict"), ("b.pt", "no weights"), ("c.safetensors", "no weights")):
        with pytest.raises(fxcat.StorageError, match=said):
            fxcat.named_model("squeezenet1_1", weights=tmp_path / name)
