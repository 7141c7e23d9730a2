"""Run the surfaces of nbs/experiments/grids/ablations.yaml as a sweep, and leave them in results/surfaces/.

A surface whose file was made with what is asked for now is kept; one that was interrupted continues with its next run.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

from cegen.core import write_json
from cegen.grid import Grid
from cegen.sweep import checked_runs, is_done, sweep

ROOT = Path(__file__).resolve().parent.parent
DONE, GRID = ROOT / "results" / "surfaces", Grid.load(ROOT / "nbs" / "experiments" / "grids" / "ablations.yaml")
# The surfaces by name; a run of the grid is told by what it varies.
NAMES = {
    ("dim", "kappa"): "concentration",
    ("batch_size", "n_classes"): "batch",
    ("conditional", "scale"): "conditional",
    ("label_noise", "kappa"): "label_noise",
    ("dim", "condition_number"): "conditioning",
}
RUNS = {NAMES[run.parameters["rows"], run.parameters["columns"]]: run for run in checked_runs(GRID)}


def is_stored(name: str) -> bool:
    "Whether the stored surface has the cells, the seeds and the other fields that are asked for."
    path, wanted = DONE / f"{name}.json", RUNS[name].parameters
    if not path.exists():
        return False
    stored = json.loads(path.read_text(encoding="utf-8"))
    runs = {(r[wanted["rows"]], r[wanted["columns"]], r["seed"]) for r in stored["records"]}
    asked = set(itertools.product(wanted["row_values"], wanted["column_values"], wanted["seeds"]))
    return runs == asked and all(stored["base"].get(field) == value for field, value in wanted["base"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS, help="which surfaces")
    parser.add_argument("--workers", type=int, help="runs at a time; default one for each core")
    options = parser.parse_args()
    os.chdir(ROOT)  # a sweep's folder starts where we are
    todo = [name for name in options.only if not is_stored(name)]
    print(f"{len(options.only) - len(todo)} of {len(options.only)} surfaces are there", flush=True)
    keys = [RUNS[name].key for name in todo]
    unfinished = sweep(GRID, options.workers, only=keys, retry_failed=True).n_unfinished if todo else 0
    for name in todo:
        folder = ROOT / GRID.folder / RUNS[name].key
        if is_done(folder):
            write_json(DONE / f"{name}.json", json.loads((folder / "surface.json").read_text(encoding="utf-8")))
    sys.exit(unfinished and f"{unfinished} surfaces are not done; run again to continue them.")


if __name__ == "__main__":
    main()
