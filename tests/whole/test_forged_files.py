"""Files that somebody has changed, with a right checksum: a `StorageError`, soon; and nothing else happens."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import pruned
from safetensors import safe_open
from small_task import Net, loader
from torch import nn

import fxcat
from fxcat.utils.safetensors_file import read_tensors, write_tensors

KIND = "fxcat-network-1"
MUTATIONS = 300
WRONG: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**40,
        10**30,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "__import__('os')",
        "\ud800",
    ),
    *([], {}, [[]], [0], [-1], ["x"], {"": None}, {"tensor": "x"}, {"tuple": [1]}, {"dict": [[[], 1]]}, {"exec": "x"}),
    *([[0] * 1000], list(range(1000)), "x" * 20_000, [[[[[[[[]]]]]]]]),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers in a nested value, and the keys in them."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(content: Any, chance: random.Random) -> Any:
    """A copy in which one or two values are others, or missing, or there twice."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 2))):
        found = list(places(content))
        if not found:
            break
        holder, key = chance.choice(found)
        how = chance.randrange(4)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, list):
            holder.extend([holder[key]] * chance.choice((1, 100)))
        elif how == 1:
            holder[f"{key}2"] = holder[key]
        elif how == 2 and type(holder[key]) is int:
            holder[key] += chance.choice((-1, 1, 7, 2**20, 2**35))
        else:
            holder[key] = chance.choice(WRONG)
    return content


def outcome(action: Callable[[], Any]) -> str:
    """What comes of it, in less than a second of work; anything but an error of fxcat's is raised."""
    start = time.process_time()
    try:
        action()
        result = "loaded"
    except fxcat.StorageError:
        result = "refused"
    except fxcat.InputError as error:  # the file says that it is of another model
        assert "another model" in str(error) or "other gates" in str(error), error
        result = "another model"
    assert time.process_time() - start < 1
    return result


def test_networks_that_were_changed_at_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fxcat.save(pruned(Net(), shrinks=1), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", KIND)
    chance, found = random.Random(0), []
    for i in range(MUTATIONS):
        name = ("recipe", "recipe", "recipe", "extra", "frozen")[i % 5]
        content = mutated({"all": json.loads(texts[name])}, chance)
        changed = json.dumps(content.get("all"))
        if changed == texts[name]:
            continue
        write_tensors(tmp_path / "y", KIND, tensors, {**texts, name: changed})
        found.append(outcome(lambda: fxcat.load(tmp_path / "y", Net())))
    assert found.count("refused") > 0.6 * len(found)
    assert found.count("loaded") < 0.2 * len(found), "what decides nothing: order of closed gates, names of sections"


@pytest.mark.parametrize(
    "change",
    (
        lambda r: r.update(stages=r["stages"] * 1000),
        lambda r: r["stages"][0].update(closed=[[]] * 100_001),
        lambda r: r["stages"][0].update(closed=[list(range(41))]),
        lambda r: r["stages"][0].update(closed=[[3, 3]]),
        lambda r: r["stages"][0].update(gates=[["stem.0", 2**40]]),
        lambda r: r["stages"][0].update(
            example={"layout": {"tensor": "x"}, "tensors": {"x": [[3], "torch.int8", [1]]}}
        ),
        lambda r: r["stages"][0].update(biases=["nowhere"]),
        lambda r: r["stages"][0]["options"].update(unknown=True),
    ),
)
def test_recipes_that_would_take_long_or_cannot_be_followed(change: Callable[[Any], None], tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", KIND)
    recipe = json.loads(texts["recipe"])
    change(recipe)
    write_tensors(tmp_path / "y", KIND, tensors, {**texts, "recipe": json.dumps(recipe)})
    start = time.process_time()
    with pytest.raises(fxcat.StorageError):
        fxcat.load(tmp_path / "y", Net())
    assert time.process_time() - start < 1


def resumed(folder: Path) -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False, verify=False)
    target = fxcat.Target(flops=0.5)
    fxcat.fit(net, loader(64), epochs=2, target=target, checkpoint_dir=folder, resume=True, progress=False)


def test_checkpoints_that_were_changed_at_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resumed(tmp_path)
    kind = "fxcat-checkpoint-5"
    tensors, texts = read_tensors(tmp_path / "last.safetensors", kind)
    state = json.loads(texts["state"])
    chance, refused = random.Random(1), 0
    for _ in range(24):
        changed = json.dumps(mutated(state, chance))
        write_tensors(tmp_path / "last.safetensors", kind, tensors, {"state": changed})
        (tmp_path / "previous.safetensors").unlink(missing_ok=True)
        try:
            resumed(tmp_path)
        except fxcat.FxcatError:
            refused += 1
    assert refused > 8


# What files are for, and what else they say


class Written(nn.Module):
    """Everything that tensors do not show: constants of modules and of calls, functions, the order of ops."""

    def __init__(
        self, eps: float = 1e-5, stride: int = 1, slope: float = 0.1, act: Any = torch.relu, at: int = 0
    ) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=stride, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.second, self.act, self.leak, self.at = nn.Conv2d(8, 8, 3, padding=1), act, slope, at
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        x = nn.functional.leaky_relu(self.second(x) if not self.at else x + self.second(x), self.leak)
        return self.drop(x).mean((2, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({"eps": 1e-3}, r"norm: BatchNorm\(.*eps=0\.001.*eps=1e-05"),
        ({"stride": 2}, r"first: Conv2d\(.*stride=\[2, 2\].*stride=\[1, 1\]"),
        ({"slope": 0.3}, r"leaky_relu\(.*0\.3.*0\.1"),
        ({"act": torch.sigmoid}, r"sigmoid\(.*relu\("),
        ({"at": 1}, r"add\("),
    ),
)
def test_another_architecture_of_the_same_shapes_is_told(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    fxcat.save(pruned(Written()), tmp_path / "x")
    with pytest.raises(fxcat.InputError, match=f"(?s)another model.*{words}"):
        fxcat.load(tmp_path / "x", Written(**options))


def test_what_changes_nothing_of_the_result_may_differ(tmp_path: Path) -> None:
    fxcat.save(small := pruned(Written()), tmp_path / "x")
    other = Written().double()
    other.drop.p, other.norm.momentum = 0.5, 0.2
    other = nn.SyncBatchNorm.convert_sync_batchnorm(other)
    x = torch.randn(2, 3, 8, 8)
    again = fxcat.load(tmp_path / "x", other)
    assert torch.equal(again.eval()(x), small.eval()(x))


def test_gradients_that_were_not_wanted_are_not(tmp_path: Path) -> None:
    small = pruned(Net())
    small.get_parameter("stem.0.weight").requires_grad_(False)
    fxcat.save(small, tmp_path / "x")
    again = fxcat.load(tmp_path / "x", Net().requires_grad_(False))
    assert {n for n, p in again.named_parameters() if not p.requires_grad} == {"stem.0.weight"}


def test_other_loaders_know_the_format(tmp_path: Path) -> None:
    fxcat.save(pruned(Net()), tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata()["format"] == "pt"  # as transformers asks for


def test_files_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their mark of the format said of what kind they are, and nothing said what the model computes."""
    fxcat.save(small := pruned(Net()), tmp_path / "x")
    tensors, texts = read_tensors(tmp_path / "x", KIND)
    recipe = json.loads(texts["recipe"])
    del recipe["stages"][0]["ops"]
    old = {"recipe": json.dumps(recipe), "extra": texts["extra"]}
    monkeypatch.setattr("fxcat.utils.safetensors_file.FORMAT", KIND)
    write_tensors(tmp_path / "y", KIND, tensors, old)
    again = fxcat.load(tmp_path / "y", Net())
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in small.named_parameters())
