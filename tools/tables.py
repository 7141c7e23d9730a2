"""Run the paper's tables 2 and 3 as sweeps, and gather their rows in results/table2.json and table3.json.

A row whose five seeds are finished has a file in results/tables/ and is not run again, unless the grid now asks for something else. Runs that were
interrupted go on from their checkpoints in runs/table2/ and runs/table3/.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Container
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from cegen import Config
from cegen.core import write_json
from cegen.grid import Grid, Run
from cegen.mixing import LAWS
from cegen.report import read_records
from cegen.sweep import checked_runs, is_done, sweep

ROOT = Path(__file__).resolve().parent.parent
GRIDS, DONE = ROOT / "nbs" / "experiments" / "grids", ROOT / "results" / "tables"
KEYS = ["n_instances", "dim", "n_classes", "conditional", "concentration", "g_law", "case"]
# Parameters that a record need not share with its row: how it was watched, and κ or scale, which it has as its concentration.
INCIDENTAL = {"seeds", "eval_every", "device", "log", "kappa", "scale"}


def grids_of(table: int) -> list[Grid]:
    "The grids of a table: most of it, and the worlds that need settings of their own."
    return [Grid.load(path) for path in sorted(GRIDS.glob(f"table{table}*.yaml"))]


def name_of(table: int, run: Run) -> str:
    "A file name that tells a row: runs that differ in their seed have the same."
    p = run.parameters
    strength = p["kappa"] if p["conditional"] == "vmf" else p["scale"]
    world = f"d{p['dim']}-C{p['n_classes']}-N{p['n_instances']}-{p['conditional']}{strength:g}"
    return f"table{table}-{world}-{p['case']}-{p['g_law']}"


def rows_of(table: int, grid: Grid) -> dict[str, list[Run]]:
    "The rows of a table that a grid holds: one run for each seed, by name."
    found = defaultdict(list)
    for run in checked_runs(grid):
        found[name_of(table, run)].append(run)
    return dict(found)


def rows(table: int) -> dict[str, list[Run]]:
    "All rows of a table."
    return {name: runs for grid in grids_of(table) for name, runs in rows_of(table, grid).items()}


def asked(run: Run) -> dict[str, Any]:
    "What a record must say of how it was run, by the names that a record has."
    p = run.parameters
    named = {key: value for key, value in p.items() if key not in INCIDENTAL and value is not None}
    return named | {"concentration": p["kappa"] if p["conditional"] == "vmf" else p["scale"]}


def defaults_of(names: Container[str]) -> dict[str, Any]:
    "Parameters that a record without their names was run with: it is older than they are."
    return {
        field.name: field.default
        for field in fields(Config)
        if field.name not in INCIDENTAL and field.name not in names
    }


def read_row(path: Path) -> pd.DataFrame:
    "The records of a row's file."
    records = read_records(path)
    return records.assign(**defaults_of(records))


def is_stored(name: str, runs: list[Run]) -> bool:
    "Whether the row's file holds all seeds, run with these very parameters."
    path = DONE / f"{name}.json"
    if not path.exists():
        return False
    records = read_row(path)
    same = all((records[key] == value).all() for key, value in asked(runs[0]).items() if key in records)
    return same and sorted(records.seed) == sorted(run.varied["seed"] for run in runs)


def store(table: int, grid: Grid) -> None:
    "Write the files of the rows whose runs are all done."
    folder = ROOT / grid.folder
    for name, runs in rows_of(table, grid).items():
        if all(is_done(folder / run.key) for run in runs):
            results = [json.loads((folder / run.key / "result.json").read_text(encoding="utf-8")) for run in runs]
            records = [record for result in results for record in result["records"]]
            write_json(DONE / f"{name}.json", {"environment": results[0]["environment"], "records": records})


def gather(table: int, folder: Path = ROOT / "results") -> pd.DataFrame:
    "Write table2.json or table3.json from the rows that are finished: means over seeds."
    files = sorted(DONE.glob(f"table{table}-*.json"))
    if not files:
        return pd.DataFrame()
    records = pd.concat([read_row(file) for file in files])
    rates = ("lr", "hidden_lr", "head_lr", "head_decay", "warmup")
    learner = ("objective", "softmax", "row_map", "width", "n_blocks", "negative_slope", "batch_size", "steps", *rates)
    scores = ("official_r2_z", "official_r2_w", "orthogonality_error", "excess", "excess_se", "beta", "seconds")
    means = []
    for keys, group in records.groupby(KEYS, sort=False, dropna=False):
        mean = group.mean(numeric_only=True)
        means.append(
            dict(zip(KEYS, keys, strict=True))
            | {"n_seeds": len(group), "r2_z_mean": mean.r2_z, "r2_z_std": group.r2_z.std(), "r2_w_mean": mean.r2_w}
            | {f"{score}_mean": mean[score] for score in scores}
            | {name: group[name].iloc[0] for name in learner}
        )
    frame = pd.DataFrame(means)
    write_json(folder / f"table{table}.json", {"records": json.loads(frame.to_json(orient="records"))})
    return frame


def run_rows(table: int, grid: Grid, laws: list[str], workers: int | None) -> int:
    "Execute what is missing of a grid; returns how many runs are not done."
    store(table, grid)
    all_rows = rows_of(table, grid)
    missing = {name: runs for name, runs in all_rows.items() if not is_stored(name, runs)}
    keys = [run.key for runs in missing.values() for run in runs if run.parameters["g_law"] in laws]
    print(f"{grid.name}: {len(all_rows) - len(missing)} of {len(all_rows)} rows are there", flush=True)
    unfinished = sweep(grid, workers, only=keys, retry_failed=True).n_unfinished if keys else 0
    store(table, grid)
    gather(table)
    return unfinished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="+", default=(2, 3), choices=(2, 3), help="which tables")
    parser.add_argument("--laws", nargs="+", default=LAWS, choices=LAWS, help="laws of the generator")
    parser.add_argument("--workers", type=int, help="runs at a time; default one for each core")
    parser.add_argument("--gather", action="store_true", help="only gather what is finished")
    options = parser.parse_args()
    os.chdir(ROOT)  # a sweep's folder starts where we are
    if options.gather:
        for table in options.tables:
            for grid in grids_of(table):
                store(table, grid)
            gather(table)
        return
    planned = [(table, grid) for table in options.tables for grid in grids_of(table)]
    failures = sum(run_rows(table, grid, options.laws, options.workers) for table, grid in planned)
    sys.exit(failures and f"{failures} runs are not done; run again to go on.")


if __name__ == "__main__":
    main()
