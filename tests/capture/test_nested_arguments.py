"""Batches that are dicts or tuples: what a later one lacks, or has besides, is captured or refused, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from torch import nn

import fxcat

X, T = torch.rand(2, 3, 6, 6), torch.tensor([1, 2])
Loss = Callable[[Any], Any]


class Taking(nn.Module):
    """Gives logits, and a loss where it finds the target in its batch."""

    def __init__(self, image: Callable[[Any], torch.Tensor], target: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b, self.image, self.target = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), image, target

    def forward(self, batch: Any) -> Any:
        y = self.b(self.a(self.image(batch)).relu()).mean((2, 3))
        target = self.target(batch)
        return {"y": y} if target is None else {"y": y, "loss": F.cross_entropy(y, target)}


WAYS: dict[str, Callable[[Any], Any]] = {
    "in": lambda batch: batch["target"] if "target" in batch else None,  # noqa: SIM401
    "get": lambda batch: batch.get("target"),
    "pop": lambda batch: batch.pop("target", None),
    "all": lambda batch: {**batch}.get("target"),
    "items": lambda batch: dict(batch.items()).get("target"),
    "length": lambda batch: batch["target"] if len(batch) > 1 else None,
}


def of_dict(batch: Any) -> torch.Tensor:
    return batch["image"]


def prepared(model: nn.Module, example: Any) -> tuple[nn.Module, ...]:
    net = fxcat.prepare(model.eval(), (example,), verbose=False).eval()
    small = fxcat.finalize(net)
    net.gates["a"].theta[::2] = 0.0
    return net, fxcat.finalize(net), small


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("has_target", [False, True])
def test_a_key_more_or_less_is_refused(way: str, has_target: bool) -> None:
    model = Taking(of_dict, WAYS[way])
    with_target, without = {"image": X, "target": T}, {"image": X}
    same, other = (with_target, without) if has_target else (without, with_target)
    net, pruned, small = prepared(model, dict(same))
    assert difference(small(dict(same)), model(dict(same))) <= 1e-5
    assert difference(pruned(dict(same)), net(dict(same))) <= 1e-5
    for network in (net, pruned, small):
        with pytest.raises(fxcat.InputError, match="called in another way"):
            network(dict(other))
        with pytest.raises(fxcat.InputError, match="called in another way"):
            network({"image": X, "target": None})


def test_keys_that_nobody_asks_for_are_no_matter() -> None:
    model = Taking(of_dict, WAYS["in"])
    _, _, small = prepared(model, {"image": X, "target": T})
    batch = {"image": X, "target": T, "name": ["a", "b"], "weight": T, 3: None}
    assert difference(small(batch), model(batch)) <= 1e-5


def test_another_number_of_parts_is_refused() -> None:
    model = Taking(lambda batch: batch[0], lambda batch: batch[1] if len(batch) > 1 else None)
    net, _, small = prepared(model, (X, T))
    assert difference(small((X, T)), model((X, T))) <= 1e-5
    for batch in ((X,), (X, None), (X, T, T)):
        for network in (net, small):
            with pytest.raises(fxcat.InputError, match="called in another way"):
                network(batch)


def test_dicts_inside_of_others() -> None:
    def target(batch: Any) -> Any:
        return batch["more"][0].get("target")

    model = Taking(of_dict, target)
    _, _, small = prepared(model, {"image": X, "more": ({"other": X},)})
    batch = {"image": X, "more": ({"other": X, "unknown": T},)}
    assert difference(small(batch), model(batch)) <= 1e-5
    with pytest.raises(fxcat.InputError, match="called in another way"):
        small({"image": X, "more": ({"other": X, "target": T},)})
