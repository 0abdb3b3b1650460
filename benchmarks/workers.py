"""Rows of a benchmark, in this process or several at a time in processes of one thread each; resumable.

What a worker needs it gets from the arguments of the job's call, which is pickled: a module-level function, paths and
numbers. Data it loads itself, once.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from common import Measures, add_row, finished_row, finished_rows


@dataclass(frozen=True)
class Job:
    """A row to come: its key, and what measures the rest of it."""

    key: dict[str, Any]
    call: Callable[[], dict[str, Any]]
    measures: Measures = "library"


Attempt = tuple[int, dict[str, Any] | None, str]


def pool_of(workers: int) -> Pool:
    """Processes that start fresh: one that is forked from a process with threads, or a GPU, may hang."""
    return multiprocessing.get_context("spawn").Pool(workers, _one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


def run_jobs(
    path: Path,
    jobs: Sequence[Job],
    workers: int = 1,
    *,
    pool: Pool | None = None,
    deadline: float | None = None,
) -> list[dict[str, Any]]:
    """The rows of all jobs in their order: those that the file has, and the others, measured and written one by one.

    A job that fails is reported and left out, the others go on. `deadline`: the time (`time.monotonic`) at which those
    that have not finished are given up; only with several workers, or a `pool` of one's own.
    """
    rows = finished_rows(path)
    found = [finished_row(rows, job.key, measures=job.measures) for job in jobs]
    wanted = [(i, jobs[i].call) for i, row in enumerate(found) if row is None]
    for index, result, error in _attempts(wanted, workers, pool, deadline):
        if result is None:
            sys.stderr.write(f"{jobs[index].key} failed:\n{error}\n")
        else:
            job = jobs[index]
            found[index] = add_row(path, rows, job.key, result, measures=job.measures)
    missing = sum(row is None for row in found)
    if missing:
        sys.stderr.write(f"{missing} of {len(jobs)} rows are missing: the same command goes on with them\n")
    return [row for row in found if row is not None]


def run_for_targets(path: Path, jobs: Sequence[tuple[float, Job]], workers: int) -> list[dict[str, Any]]:
    """The same for jobs that come with the target that a row is for; a job that serves several targets runs once."""
    once = {str(job.key): job for _, job in jobs}
    rows = run_jobs(path, list(once.values()), workers)
    return [row | {"target": target} for target, job in jobs for row in rows if row.items() >= job.key.items()]


def _attempts(
    wanted: list[tuple[int, Callable[[], dict[str, Any]]]],
    workers: int,
    pool: Pool | None,
    deadline: float | None,
) -> Iterator[Attempt]:
    """As they finish."""
    if pool is not None:
        yield from _until(deadline, pool, wanted)
    elif workers > 1 and wanted:
        with pool_of(min(workers, len(wanted))) as own:
            yield from _until(deadline, own, wanted)
    else:
        yield from map(_attempt, wanted)


def _until(deadline: float | None, pool: Pool, wanted: list[Any]) -> Iterator[Attempt]:
    results = pool.imap_unordered(_attempt, wanted)
    for _ in wanted:
        try:
            yield results.next(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except multiprocessing.TimeoutError:
            return


def _attempt(job: tuple[int, Callable[[], dict[str, Any]]]) -> Attempt:
    try:
        return job[0], job[1](), ""
    except Exception:
        return job[0], None, traceback.format_exc()
