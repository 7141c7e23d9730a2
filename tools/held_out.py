"""Run rows of table 2 in worlds that no setting was chosen in, those rows whose settings were searched for; writes results/held_out.json.

Runs that are in the file are not run again, and interrupted ones go on from their checkpoints in runs/.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from typing import Any

from tables import GRIDS, KEYS, ROOT, asked

from cegen.core import write_json
from cegen.grid import Grid, Run
from cegen.sweep import is_done, sweep

OUT = ROOT / "results" / "held_out.json"
SEEDS = (5, 6)  # the tables have 0 to 4
SCORES = ("seed", "r2_z", "official_r2_z", "r2_w", "official_r2_w", "excess", "excess_se", "beta", "seconds")


def grids() -> list[Grid]:
    "The grids with searched rows, one for each world, so that all rows are seen in a world before any is in the next."
    names = ("table2_c10", "table2", "table2_d20")
    return [
        replace(Grid.load(GRIDS / f"{name}.yaml"), name=f"{name}_held_out", seeds=(seed,))
        for seed in SEEDS
        for name in names
    ]


def is_searched(run: Run) -> bool:
    "Whether the settings of the run's row were searched for: ten classes, κ = 50, and the published law in twenty dimensions."
    p = run.parameters
    return p["n_classes"] == 10 or p["kappa"] == 50 or (p["dim"] == 20 and p["g_law"] == "published")


def searched_runs(grid: Grid) -> list[Run]:
    "The runs of a grid that the file is to have."
    return [run for run in grid.runs() if is_searched(run)]


def is_of(record: dict[str, Any], run: Run) -> bool:
    "Whether a record is that of a run."
    return record["seed"] == run.varied["seed"] and asked(run).items() <= record.items()


def finished(grid: Grid, run: Run) -> list[dict[str, Any]]:
    "The record of a run, where its folder has one."
    folder = ROOT / grid.folder / run.key
    if not is_done(folder):
        return []
    records = json.loads((folder / "result.json").read_text(encoding="utf-8"))["records"]
    return [{name: record[name] for name in dict.fromkeys([*KEYS, *asked(run), *SCORES])} for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args()
    before = json.loads(OUT.read_text(encoding="utf-8"))["records"] if OUT.exists() else []
    plan = [(grid, searched_runs(grid)) for grid in grids()]
    found = {run.key: [record for record in before if is_of(record, run)] for _, runs in plan for run in runs}
    for grid, runs in plan:
        todo = [run for run in runs if not found[run.key]]
        if todo:
            sweep(grid, options.workers, only=[run.key for run in todo])
        found |= {run.key: finished(grid, run) for run in todo}
        write_json(OUT, {"records": [record for records in found.values() for record in records]})
    missing = sum(not records for records in found.values())
    sys.exit(missing and f"{missing} runs are not done; run again to go on.")


if __name__ == "__main__":
    main()
