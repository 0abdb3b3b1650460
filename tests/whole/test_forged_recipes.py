"""Files that are none of `save`, or whose recipe says what no network has: a `StorageError`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import pruned
from safetensors.torch import save_file
from small_task import Net

import fxcat
from fxcat.network.recipe import make_example
from fxcat.utils.safetensors_file import read_tensors, write_tensors


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"text", b"\x00" * 100, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(fxcat.StorageError, match=f"(?s)cannot be read.*{path}"):
            fxcat.load(path, Net())
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(fxcat.StorageError, match="not a file of the kind 'fxcat-network-1'"):
        fxcat.load(path, Net())
    with pytest.raises(fxcat.StorageError, match="No such file"):
        fxcat.load(tmp_path / "none", Net())
    with pytest.raises(fxcat.StorageError, match="cannot be read"):
        fxcat.load(tmp_path, Net())


@pytest.mark.parametrize(
    "recipe", ("", "[]", "{}", '{"stages": [], "result": {}}', '{"stages": [{}], "result": {}}', "null")
)
def test_a_recipe_that_is_none(recipe: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", "fxcat-network-1", {}, {"recipe": recipe, "extra": '{"dict": []}'})
    with pytest.raises(fxcat.StorageError, match=f"(?s)recipe|lacks a part.*{tmp_path}"):
        fxcat.load(tmp_path / "x", Net())


def test_a_recipe_with_gates_that_there_are_not(tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", "fxcat-network-1")
    recipe = json.loads(texts["recipe"])
    for closed in ([[10**6]], [[-1]], [["a"]], []):
        recipe["stages"][0]["closed"] = closed
        write_tensors(tmp_path / "y", "fxcat-network-1", tensors, {**texts, "recipe": json.dumps(recipe)})
        with pytest.raises(fxcat.FxcatError):
            fxcat.load(tmp_path / "y", Net())


_DEEP = "[" * 100_000 + "]" * 100_000

FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no options": lambda s: s["options"].clear(),
    "options of other types": lambda s: s["options"].update(units="yes"),
    "paths that are none": lambda s: s["options"].update(ignore=3),
    "an example that is none": lambda s: s.update(example="os.system"),
    "an example of no type": lambda s: s["example"]["tensors"]["input"].__setitem__(1, "__import__('os')"),
    "more than there are numbers": lambda s: s["example"]["tensors"]["input"].__setitem__(0, [10**9, 3, 10**6, 10**6]),
    "negative sizes": lambda s: s["example"]["tensors"]["input"].__setitem__(0, [-1, 3, 8, 8]),
    "tensors that are not there": lambda s: s["example"].update(layout={"tensor": "other"}),
    "shapes of texts": lambda s: s.update(shapes={"weight": ["a"]}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_recipe(name: str, tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", "fxcat-network-1")
    recipe = json.loads(texts["recipe"])
    FORGED[name](recipe["stages"][0])
    write_tensors(tmp_path / "y", "fxcat-network-1", tensors, {**texts, "recipe": json.dumps(recipe)})
    with pytest.raises(fxcat.StorageError):
        fxcat.load(tmp_path / "y", Net())


def test_a_large_example_takes_no_memory() -> None:
    description = {"layout": {"tensor": "x"}, "tensors": {"x": [[10**6, 10**6 // 2], "torch.int64", 3]}}
    assert make_example(description).untyped_storage().nbytes() == 8


@pytest.mark.parametrize(
    "forged",
    (
        {"recipe": _DEEP},
        {"extra": _DEEP},
        {"extra": "3"},
        {"extra": '"x"'},
        {"extra": '{"dict": [["nowhere", 3]]}'},
        {"extra": '{"dict": [["", 3]]}'},
    ),
)
def test_forged_texts(forged: dict[str, str], tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", "fxcat-network-1")
    write_tensors(tmp_path / "y", "fxcat-network-1", tensors, {**texts, **forged})
    with pytest.raises(fxcat.StorageError):
        fxcat.load(tmp_path / "y", Net())


def test_values_of_another_type_than_weights_have(tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", "fxcat-network-1")
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "y", "fxcat-network-1", whole, texts)
    with pytest.raises(fxcat.StorageError, match="cannot be put"):
        fxcat.load(tmp_path / "y", Net())


def test_a_forged_history(tmp_path: Path) -> None:
    good = {"epoch": 0, "phase": "gated", "learning_rate": 1, "train_loss": 1.5, "train_accuracy": None}
    good |= {"val_loss": None, "val_accuracy": 0.5, "macs": 1, "params": 1.0, "undecided": 3, "open_units": {"a": 3}}
    for changed in ({}, {"epoch": "a"}, {"macs": None}, {"open_units": 3}, {"open_units": {"a": "b"}}):
        text = json.dumps({"epochs": [good | changed], "shrunk_at": None})
        (tmp_path / "h").write_text(text)
        if not changed:
            assert fxcat.History.load(tmp_path / "h").epochs[0].undecided == 3
            continue
        with pytest.raises(fxcat.StorageError):
            fxcat.History.load(tmp_path / "h")
    (tmp_path / "h").write_text(_DEEP)
    with pytest.raises(fxcat.StorageError):
        fxcat.History.load(tmp_path / "h")
