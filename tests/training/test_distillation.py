"""A network that learns from a teacher: the loss, and what `fit` does with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interrupted import EXAMPLE, SETUPS, Interrupted, Setup, losses_per_epoch, run
from small_task import Net, batches, loader, trained_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxcat
from fxcat.training.teacher import Teacher
from fxcat.utils.modes import in_eval

HALF = fxcat.Target(flops=0.5)
SHORT = Setup(epochs=3, batch=32)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """The small net, trained for a few epochs; in `eval()`."""
    return trained_net().eval()


def prepared(model: nn.Module | None = None) -> fxcat.GatedModule:
    return fxcat.prepare(Net() if model is None else model, EXAMPLE, verbose=False)


@pytest.mark.parametrize("shape", ((6, 5), (6, 5, 3, 4), (2, 7, 3)))
@pytest.mark.parametrize("temperature", (0.5, 1.0, 4.0))
def test_it_is_the_divergence_of_every_position(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    found = fxcat.distillation_loss(student, teacher, temperature=temperature)
    rows = [v.movedim(1, -1).reshape(-1, shape[1]) / temperature for v in (student, teacher)]
    one_by_one = [
        sum(q * (q / p).log() for p, q in zip(s.exp() / s.exp().sum(), t.exp() / t.exp().sum(), strict=True))
        for s, t in zip(*rows, strict=True)
    ]
    assert float(found) == pytest.approx(temperature**2 * float(sum(one_by_one)) / len(one_by_one))
    assert float(fxcat.distillation_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-12)


def test_at_high_temperature_logits_are_matched() -> None:
    """Hinton et al. 2015, §2.1: for logits of mean zero the gradient becomes (z − v) / (N · classes)."""
    student, teacher = (v - v.mean(1, keepdim=True) for v in torch.randn(2, 8, 5, dtype=torch.float64))
    student.requires_grad_()
    teacher.requires_grad_()
    fxcat.distillation_loss(student, teacher, temperature=1e4).backward()
    assert student.grad is not None and teacher.grad is None
    torch.testing.assert_close(student.grad, ((student - teacher) / (8 * 5)).detach(), rtol=1e-3, atol=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = torch.randn(2, 64, 10).to(torch.bfloat16)
    found = fxcat.distillation_loss(student, teacher)
    assert found.dtype is torch.float32
    assert torch.equal(found, fxcat.distillation_loss(student.float(), teacher.float()))


def test_outputs_are_matched_by_key_or_position() -> None:
    a, b, c, d = torch.randn(4, 3, 5)
    first, second = fxcat.distillation_loss(a, c), fxcat.distillation_loss(b, d)
    both = first + 0.3 * second
    for ours, theirs, expected in (
        ({"out": a, "aux": b}, {"aux": d, "out": c}, both),
        ({"out": a, "aux": b, "features": None}, {"out": c}, first),
        ((a, b), (c, d), both),
        ((a, b), c, first),
        (a, {"out": c, "aux": d}, first),
        ({"out": a, "aux": b}, c, first),
    ):
        torch.testing.assert_close(fxcat.distillation_loss(ours, theirs), expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    (
        (torch.zeros(2, 5), torch.zeros(2, 7), r"\(2, 5\).*\(2, 7\)(?s:.*)output 0"),
        ({"out": torch.zeros(2, 5, 4, 4)}, {"out": torch.zeros(2, 5, 8, 8)}, r"5, 4, 4\).*5, 8, 8\)(?s:.*)'out'"),
        ({"a": torch.zeros(2, 5)}, {"b": torch.zeros(2, 5)}, r"dict with 'a'.*dict with 'b'"),
        ("text", torch.zeros(2, 5), "str"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5), "no logits"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "two or more classes"),
        (torch.zeros(5), torch.zeros(5), "no logits"),
    ),
)
def test_what_are_no_logits_of_one_shape_is_refused(ours: Any, theirs: Any, words: str) -> None:
    with pytest.raises(fxcat.InputError, match=words):
        fxcat.distillation_loss(ours, theirs)


def test_a_temperature_must_be_positive() -> None:
    with pytest.raises(fxcat.InputError, match="temperature=0"):
        fxcat.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


def mislabelled() -> DataLoader[Any]:
    """The task's images with labels that say nothing."""
    images, labels = batches(256).tensors
    return DataLoader(TensorDataset(images, torch.zeros_like(labels)), batch_size=32)


def test_the_network_learns_from_the_teacher_alone(trained: nn.Module) -> None:
    net = prepared()
    history = fxcat.fit(
        net, mislabelled(), loader(64), epochs=6, target=HALF, teacher=trained, distillation_weight=1.0, progress=False
    )
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert history.epochs[-1].val_accuracy is not None and history.epochs[-1].val_accuracy > 0.9
    losses = [e.distillation_loss for e in history.epochs]
    assert losses[0] is not None and losses[-1] is not None and losses[-1] < 0.3 * losses[0]


def test_a_teacher_that_counts_nothing_changes_nothing(trained: nn.Module) -> None:
    """Neither data order nor dropout nor gates nor statistics, whatever the teacher does."""
    with_it, without = (
        run(None, SHORT, **options) for options in ({"teacher": trained, "distillation_weight": 0.0}, {})
    )
    ours, theirs = with_it.net.state_dict(), without.net.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())
    for a, b in zip(with_it.history.epochs, without.history.epochs, strict=True):
        assert replace(a, distillation_loss=None) == b


def test_the_teacher_stays_what_it_is(trained: nn.Module) -> None:
    """Also one in `train()`, with a part in `eval()`, and whose parameters could get gradients."""
    teacher = copy.deepcopy(trained).train()
    dict(teacher.named_modules())["block.1"].eval()
    state, modes = copy.deepcopy(teacher.state_dict()), [m.training for m in teacher.modules()]
    net = prepared()
    fxcat.fit(net, loader(), epochs=2, target=HALF, teacher=teacher, progress=False)
    assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert [m.training for m in teacher.modules()] == modes

    def broken(output: Any, labels: Any) -> torch.Tensor:
        assert not any(m.training for m in teacher.modules())
        return F.cross_entropy(output, labels) * torch.nan

    with pytest.raises(fxcat.TrainingError, match="nan"):
        fxcat.fit(prepared(), loader(), epochs=1, target=HALF, teacher=teacher, loss=broken, progress=False)
    assert [m.training for m in teacher.modules()] == modes


def test_true_is_the_network_as_it_was_given(trained: nn.Module) -> None:
    """All of it, also where gates are closed already; and it is a copy."""
    net = prepared(trained)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=HALF)
    images, _ = batches(16).tensors
    teacher = Teacher.begin(net, True, fxcat.distillation_loss, 0.5, torch.device("cpu"))
    assert teacher is not None
    with torch.no_grad():
        before = trained(images)
        for parameter in net.weight_parameters():
            parameter.zero_()
        with in_eval(teacher.module):
            found = teacher.output(net, images)
    torch.testing.assert_close(found, before)
    assert not found.requires_grad and not any(p.requires_grad for p in teacher.module.parameters())


def test_the_loss_of_the_task_stays_apart(trained: nn.Module, tmp_path: Path) -> None:
    seen: list[float] = []

    def constant(output: Any, taught: Any) -> torch.Tensor:
        seen.append(7.0)
        return output.sum() * 0 + 7.0

    history = fxcat.fit(
        prepared(trained),
        loader(),
        loader(64),
        epochs=2,
        target=HALF,
        teacher=True,
        distillation=constant,
        log_dir=tmp_path,
        progress=False,
    )
    assert len(seen) == 16, "one per step, none in validation"
    assert [e.distillation_loss for e in history.epochs] == [7.0, 7.0]
    assert all(e.train_loss < 3 and e.val_loss is not None and e.val_loss < 3 for e in history.epochs)
    history.save(tmp_path / "history.json")
    assert fxcat.History.load(tmp_path / "history.json") == history
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in events.Scalars("loss/distillation")] == [7.0, 7.0]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_in_mixed_precision_the_teacher_is_cast_too(trained: nn.Module, dtype: torch.dtype) -> None:
    seen = set[torch.dtype]()

    def loss(output: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        seen.update((output.dtype, taught.dtype))
        return fxcat.distillation_loss(output, taught)

    net = prepared(trained)
    history = fxcat.fit(
        net, loader(), loader(), epochs=4, target=HALF, teacher=True, distillation=loss, autocast=dtype, progress=False
    )
    assert seen == {dtype}
    assert history.epochs[-1].val_accuracy is not None and history.epochs[-1].val_accuracy > 0.9
    assert all(p.dtype is torch.float32 for p in net.weight_parameters())


class Dense(nn.Module):
    """Labels every position, with an auxiliary head that trains only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.head, self.aux = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        return {"out": self.head(x), "aux": self.aux(x)} if self.training else {"out": self.head(x)}


def dense_loss(output: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output["out"], labels[:, None, None].expand(-1, 8, 8))


@pytest.mark.parametrize("differences", (False, True))
def test_dicts_of_dense_predictions(differences: bool) -> None:
    net = prepared(Dense())
    history = fxcat.fit(
        net,
        loader(),
        epochs=3,
        target=HALF,
        loss=dense_loss,
        teacher=True,
        distillation=partial(fxcat.distillation_loss, temperature=4.0),
        section_differences=differences,
        progress=False,
    )
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert all(e.distillation_loss is not None and e.distillation_loss >= 0 for e in history.epochs)


def test_differences_of_sections_see_the_teacher(trained: nn.Module) -> None:
    calls = 0

    def counted(output: Any, taught: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return fxcat.distillation_loss(output, taught)

    fxcat.fit(
        prepared(trained),
        loader(),
        epochs=1,
        pressure=fxcat.Pressure(nu=0.0),
        teacher=True,
        distillation=counted,
        section_differences=True,
        until=1.0,
        progress=False,
    )
    assert calls == 8 * 3, "a step and two passes for its section"


class Other(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 7)


def test_arguments_that_do_not_fit(trained: nn.Module) -> None:
    net = prepared(trained)
    for options, words in (
        ({"teacher": "resnet18"}, "teacher= is a str"),
        ({"teacher": net}, "weights of the network that is trained"),
        ({"teacher": True, "distillation_weight": 1.5}, "distillation_weight=1.5"),
        ({"distillation": F.mse_loss}, "distillation= was given, and no teacher"),
        ({"distillation_weight": 0.3}, "distillation_weight= was given, and no teacher"),
        ({"teacher": Other()}, r"\(32, 4\).*\(32, 7\)"),
    ):
        chosen: dict[str, Any] = {"epochs": 1, "target": HALF, "progress": False, **options}
        with pytest.raises(fxcat.InputError, match=words):
            fxcat.fit(net, loader(), **chosen)


def test_a_loss_that_is_not_finite_names_the_teacher(trained: nn.Module) -> None:
    nowhere: dict[str, Any] = {"distillation": lambda output, _: output.sum() * torch.nan, "teacher": trained}
    with pytest.raises(fxcat.TrainingError, match=r"nan against the teacher(?s:.*)epoch 0, step 0"):
        fxcat.fit(prepared(), loader(), epochs=1, target=HALF, progress=False, **nowhere)


@pytest.fixture(scope="module")
def stored(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run with a teacher that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.raises(Interrupted):
        run(folder, SHORT, teacher=trained, stop=losses_per_epoch(SHORT) + 3)
    yield folder


@pytest.mark.parametrize("setup", ("default", "sgd"))
@pytest.mark.parametrize("own", (True, False))
def test_an_interrupted_run_ends_the_same(setup: str, own: bool, trained: nn.Module, tmp_path: Path) -> None:
    """`own`: the teacher is the network itself, which has to begin with the same weights each time."""
    chosen = replace(SETUPS[setup], epochs=4, batch=32)
    options: dict[str, Any] = {"teacher": True if own else trained}
    whole = run(None, chosen, **options)
    for seed in range(chosen.epochs):
        stop = losses_per_epoch(chosen) + 3 if seed < chosen.epochs - 1 else 1
        with pytest.raises(Interrupted):
            run(tmp_path, chosen, resume=True, stop=stop, seed=0 if own else seed, **options)
    assert run(tmp_path, chosen, resume=True, seed=0 if own else 99, **options).same_as(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({}, "had teacher='Net [0-9a-f]{12}', this one has None"),
        ({"teacher": True}, "had teacher='Net [0-9a-f]{12}', this one has 'Dropping [0-9a-f]{12}'"),
        ({"teacher": Net()}, "had teacher='Net [0-9a-f]{12}', this one has 'Net [0-9a-f]{12}'"),
        ({"distillation_weight": 0.25}, "had distillation_weight=0.5, this one has 0.25"),
    ),
)
def test_a_run_is_not_resumed_without_its_teacher(
    options: dict[str, Any], words: str, stored: Path, trained: nn.Module
) -> None:
    before = {p.name: p.read_bytes() for p in stored.iterdir()}
    given = {"teacher": trained, **options} if "distillation_weight" in options else options
    with pytest.raises(fxcat.InputError, match=words):
        run(stored, SHORT, resume=True, **given)
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == before


def test_a_run_without_a_teacher_does_not_get_one(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, SHORT, stop=losses_per_epoch(SHORT) + 3)
    with pytest.raises(fxcat.InputError, match="had teacher=None, this one has 'Net"):
        run(tmp_path, SHORT, resume=True, teacher=trained)
