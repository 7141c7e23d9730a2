"""Run nbs/experiments/surface.ipynb over five grids, one papermill run each, and leave them in results/surfaces/.

A surface whose file was made with what is asked for now is kept; one that was interrupted continues with its next run.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cegen.core import write_json
from cegen.run import RECIPES

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "nbs" / "experiments" / "surface.ipynb"
DONE, WORK = ROOT / "results" / "surfaces", ROOT / "runs" / "surfaces"
SEEDS = [0, 1, 2]
QUICK = RECIPES["quick"]
SUPERVISED = {"objective": "supervised", "case": "C1", "batch_size": 1024, "steps": 1000}
SURFACES: dict[str, dict[str, Any]] = {
    "concentration": {"rows": "dim", "row_values": [3, 5, 10], "columns": "kappa", "column_values": [5.0, 10.0, 20.0, 50.0], "base": QUICK},
    "batch": {
        "rows": "batch_size", "row_values": [128, 512, 2048], "columns": "n_classes", "column_values": [10, 30, 100, 300],
        "base": {name: value for name, value in QUICK.items() if name != "batch_size"},
    },
    "conditional": {
        "rows": "conditional", "row_values": ["normal", "generalized_normal", "laplace"],
        "columns": "scale", "column_values": [0.25, 0.5, 1.0], "base": QUICK,
    },
    "label_noise": {
        "rows": "label_noise", "row_values": [0.0, 0.05, 0.2, 0.5], "columns": "kappa", "column_values": [5.0, 10.0, 20.0],
        "base": QUICK,
    },
    "conditioning": {
        "rows": "dim", "row_values": [5, 10, 20], "columns": "condition_number", "column_values": [1.0, 2.0, 4.0, 8.0],
        "base": SUPERVISED | {"g_law": "conditioned"},
    },
}  # fmt: skip


def is_done(name: str) -> bool:
    "Whether the stored surface has the cells, the seeds and the other fields that are asked for."
    path, wanted = DONE / f"{name}.json", SURFACES[name]
    if not path.exists():
        return False
    stored = json.loads(path.read_text(encoding="utf-8"))
    runs = {(r[wanted["rows"]], r[wanted["columns"]], r["seed"]) for r in stored["records"]}
    asked = {
        (row, column, seed) for row in wanted["row_values"] for column in wanted["column_values"] for seed in SEEDS
    }
    return runs == asked and all(stored["base"].get(field) == value for field, value in wanted["base"].items())


def run_surface(name: str) -> str:
    "One papermill run in a process of its own, with one thread."
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = SURFACES[name] | {"seeds": SEEDS, "out": str(folder)}
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "--log-level", "ERROR",
               "-y", json.dumps(parameters), str(TEMPLATE), str(folder / "surface.ipynb")]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CEGEN_PROGRESS": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    write_json(DONE / f"{name}.json", json.loads((folder / "surface.json").read_text(encoding="utf-8")))
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SURFACES), choices=SURFACES, help="which surfaces")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, a thread each")
    options = parser.parse_args()
    todo = [name for name in options.only if not is_done(name)]
    print(f"{len(options.only) - len(todo)} of {len(options.only)} surfaces are there", flush=True)
    failures = 0
    with ThreadPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(run_surface, name) for name in todo]):
            try:
                print(f"{future.result()} is done", flush=True)
            except RuntimeError as error:
                failures += 1
                print(error, file=sys.stderr, flush=True)
    sys.exit(failures > 0 and f"{failures} surfaces failed; run again to continue them.")


if __name__ == "__main__":
    main()
