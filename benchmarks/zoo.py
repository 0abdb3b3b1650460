"""Models of other people's packages: prepared, exact, with true costs, and how much of them can go.

    pip install timm transformers ultralytics segmentation-models-pytorch monai diffusers vit-pytorch einops
    python benchmarks/zoo.py timm transformers --workers 2
    python benchmarks/zoo.py timm --below 20 --minutes 60    # smallest first; called again, it goes on
    python benchmarks/zoo.py timm --peer 100    # torch-pruning beside it, on a fixed sample

Every model runs in a process of its own with limits of memory and of processor time; finished rows are kept in the JSON
file and not repeated, unless another version of the library gave them (`--keep`: those neither). Random weights, well
scaled; double precision up to 150 M parameters, unless the model goes to single precision inside; a model whose own
result depends on the last digits of its numbers by more than a tenth of the tolerance has that for one. "exact": with
open gates the network computes what the model computes in eval() and train(), and under random gate settings what
`finalize` leaves computes what the gated network does. "costs": MACs and parameters told are those counted. "share":
of the MACs, that can be pruned. "onnx": for a sample, verified in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from common import add_row, finished_row, finished_rows, library
from zoo_attempt import attempt, attempt_peer
from zoo_models import PACKAGES, PARAMETERS, sample
from zoo_processes import apart, serve

PEER = "torch-pruning"
Row = dict[str, Any]


def summary(tool: str, package: str, rows: list[Row]) -> str:
    """A line of counts."""
    left = [r for r in rows if r["step"] == "left out"]
    not_built = [r for r in rows if r["step"] == "not built"]
    stopped = [r for r in rows if r["step"] == "stopped"]
    own = [r for r in rows if r not in left and r not in not_built]
    if tool == PEER:
        return f"{package}, {tool}: {sum(bool(r.get('pruned')) for r in own)} of {len(own)} pruned and run"
    done = [r for r in own if r.get("prepared")]
    good = [r for r in done if r.get("exact") and r.get("costs")]
    onnx = [r for r in own if "onnx" in r]
    other = sum(r["library"] != library() for r in rows)
    return (
        f"{package}: {len(done)} of {len(own)} prepared, {len(good)} exact with true costs, "
        f"{len(stopped)} did not end, "
        f"{sum(r['share'] >= 0.95 for r in done)} with at least 95 % of their MACs prunable; "
        f"ONNX {sum(r['onnx'] is True for r in onnx)} of {len(onnx)}; {len(left)} left out for their size, "
        f"{len(not_built)} not built; {other} rows of other versions"
    )


def by_size(package: str, names: list[str], path: Path) -> dict[str, int]:
    """Parameters of each name, least first; of packages whose names tell them (none for the others). Kept in a file."""
    if package not in PARAMETERS:
        return dict.fromkeys(names, 0)
    known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    found = {name: known[name] if name in known else PARAMETERS[package](name) for name in names}
    if found.keys() - known.keys():
        path.write_text(json.dumps(known | found, indent=0, sort_keys=True) + "\n")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def run_all(tool: str, package: str, names: list[str], options: argparse.Namespace) -> None:
    """All models of a package that have no row yet, several at a time."""
    rows = finished_rows(options.json)
    checked = set(sample(names, options.onnx)) if options.onnx else set[str]()
    own = tool == "fxcat"
    keys: dict[str, Row] = {name: {"tool": tool, "package": package, "model": name} for name in names}
    find = partial(finished_row, rows, measures="library" if own and not options.keep else "nothing")
    left = [n for n in names if find(keys[n]) is None]
    end = time.monotonic() + 60 * options.minutes

    def run(name: str) -> Row | None:
        if time.monotonic() > end:
            return None
        step = attempt if own else attempt_peer
        return apart(partial(step, package, name, name in checked), options.limit, options.memory)

    with ThreadPoolExecutor(options.workers) as pool:
        for name, row in zip(left, pool.map(run, left), strict=True):
            if row is not None:
                add_row(options.json, rows, keys[name], row, measures="library" if own else "nothing")
    chosen = [r for r in map(find, keys.values()) if r is not None]
    for row in chosen:
        if row.get("reason") or row.get("share", 1) < 0.95:
            reason = row.get("reason") or f"{row['share']:.0%} prunable: {row['pinned']}"
            print(f"  {row['model']}: {row['step']}: {reason}")
    print(summary(tool, package, chosen))
    if len(chosen) < len(names):
        print(f"  {len(names) - len(chosen)} have no row yet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", choices=[*PACKAGES, []], help="all by default")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--below", type=float, help="only models of fewer million parameters, where their names tell")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no model after so long")
    parser.add_argument("--keep", action="store_true", help="rows that other versions of the library gave stay")
    parser.add_argument("--onnx", type=int, default=20, help="so many models of each package are exported")
    parser.add_argument("--peer", type=int, default=0, help="torch-pruning on so many models of each package")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int, default=900, help="seconds of processor time per model")
    parser.add_argument("--memory", type=int, default=16, help="GiB of memory per model")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/zoo.json"))
    options = parser.parse_args()
    packages: list[str] = options.packages or [*PACKAGES]
    serve(["zoo_attempt", *(package.lower().replace("-", "_") for package in packages)])
    for package in packages:
        names = [n for n in PACKAGES[package][0]() if options.only is None or n in options.only]
        sizes = by_size(package, names, options.json.with_suffix(".sizes.json"))
        names = [n for n in sizes if options.below is None or sizes[n] < options.below * 1e6]
        run_all("fxcat", package, names, options)
        if options.peer:
            run_all(PEER, package, list(sample(names, options.peer)), options)


if __name__ == "__main__":
    main()
