"""Run the hard rows of tables 2 and 3 again in worlds that no setting was chosen in; writes results/held_out.json.

Runs that are in the file are not run again, and interrupted ones go on from their checkpoints in runs/.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tables import KEYS, ROOT, asked, defaults_of, grids_of

from cegen.core import write_json
from cegen.grid import Grid, Run
from cegen.sweep import is_done, sweep

OUT = ROOT / "results" / "held_out.json"
SEEDS = (5, 6, 7)  # the tables have 0 to 4
SCORES = ("seed", "r2_z", "official_r2_z", "r2_w", "official_r2_w", "excess", "excess_se", "beta", "seconds")


def is_hard(run: Run) -> bool:
    "Whether the row needed settings of its own: ten classes, κ = 50, and the published law in ten and twenty dimensions."
    p = run.parameters
    return p["n_classes"] == 10 or p["kappa"] == 50 or (p["dim"] >= 10 and p["g_law"] == "published")


def planned() -> list[tuple[Grid, Run]]:
    "All runs that the file is to have, each with its grid; a world as a whole before the next."
    grids = [replace(grid, name=f"{grid.name}_held_out", seeds=SEEDS) for table in (2, 3) for grid in grids_of(table)]
    pairs = [(grid, run) for grid in grids for run in grid.runs() if is_hard(run)]
    return sorted(pairs, key=lambda pair: pair[1].varied["seed"])


def is_of(record: dict[str, Any], run: Run) -> bool:
    "Whether a record is that of a run; one that is older than a parameter was run with its default."
    return record["seed"] == run.varied["seed"] and asked(run).items() <= {**defaults_of(record), **record}.items()


def finished(grid: Grid, run: Run) -> dict[str, Any] | None:
    "The record of a run, where its folder has one."
    folder = ROOT / grid.folder / run.key
    if not is_done(folder):
        return None
    (record,) = json.loads((folder / "result.json").read_text(encoding="utf-8"))["records"]
    return {name: record[name] for name in dict.fromkeys([*KEYS, *asked(run), *SCORES])}


def update(path: Path, workers: int | None) -> int:
    "Execute what the file lacks, a world and a grid at a time; returns how many runs it still lacks."
    pairs = planned()
    before = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    records = {run.key: next((record for record in before if is_of(record, run)), None) for _, run in pairs}
    missing = [(grid, run) for grid, run in pairs if records[run.key] is None]
    for _, some in groupby(missing, key=lambda pair: (pair[1].varied["seed"], pair[0].name)):
        here, runs = zip(*some, strict=True)
        sweep(here[0], workers, only=[run.key for run in runs], retry_failed=True)
        records |= {run.key: finished(here[0], run) for run in runs}
        write_json(path, {"records": [record for record in records.values() if record is not None]})
    return sum(record is None for record in records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help="runs at a time; default one for each core")
    workers = parser.parse_args().workers
    os.chdir(ROOT)  # a sweep's folder starts where we are
    missing = update(OUT, workers)
    sys.exit(missing and f"{missing} runs are not done; run again to go on.")


if __name__ == "__main__":
    main()
