"""Run the rows of the paper's tables 2 and 3, one papermill run a row, and gather them in results/table2.json and table3.json.

A row that is finished has a file in results/tables/ and is not run again, unless what it was run with differs from what is
asked for now. A row that was interrupted continues from its last checkpoint in runs/tables/.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pandas as pd

from cegen import Config
from cegen.core import write_json
from cegen.mixing import LAWS
from cegen.report import paper_table, read_records

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "nbs" / "experiments" / "identify.ipynb"
DONE, WORK = ROOT / "results" / "tables", ROOT / "runs" / "tables"
SEEDS = (0, 1, 2, 3, 4)
KEYS = ["n_instances", "dim", "n_classes", "conditional", "concentration", "g_law", "case"]
# The columns of the paper's table 2: rows of W that are unit vectors (with unit features, C1), and free ones (C2).
CASES = {2: ("C1", "C2"), 3: ("C1",)}


def budget(table: int, row: dict) -> dict:
    "What a row needs beyond the default recipe: the harder the world and the more the paper reaches, the more samples."
    # A label is told apart from those of its batch only: the same minimum (05_model), at a fraction of the time.
    softmax = {"softmax": "sampled"} if table == 2 else {}
    if row["dim"] == 20:
        return softmax | {"width": 128, "n_blocks": 4, "batch_size": 1024, "steps": 8000}
    if row["dim"] == 10:
        return softmax | {"width": 128, "batch_size": 1024, "steps": 4000}
    if row["conditional"] == "laplace":
        return {}
    if table == 3 and row["n_classes"] == 10:
        return {"batch_size": 1024, "steps": 3000}
    if table == 3 and row["concentration"] != 50:
        # Ten thousand classes are too many to tell a sample apart from all of them.
        return ({"softmax": "sampled"} if row["n_classes"] > 2048 else {}) | {"batch_size": 2048, "steps": 3000}
    if row["n_instances"] > 10_000:
        return softmax | {"batch_size": 1024, "steps": 8000}
    if row["n_classes"] == 10:
        return softmax | {"batch_size": 2048, "steps": 2000}
    if row["conditional"] == "normal":
        return softmax | {"batch_size": 1024, "steps": 4000}
    if row["concentration"] == 50:
        # Rows that cannot move fast enough leave the class vectors bent together.
        return softmax | {"batch_size": 1024, "steps": 4000, "head_lr": 1.0}
    return {}


def rows(table: int) -> list[dict]:
    "The runs of a table: parameters of the template, by name."
    found = []
    for law in LAWS[::-1]:
        for row in paper_table(table).to_dict("records"):
            for case in CASES[table]:
                world = {name: row[name] for name in ("dim", "n_classes", "conditional")}
                world["kappa" if row["conditional"] == "vmf" else "scale"] = row["concentration"]
                # The class label is all that supervised training sees: any number of instances gives the same run.
                world["n_instances"] = row.get("n_instances", row["n_classes"])
                learner = {"objective": {2: "diet", 3: "supervised"}[table], "case": case, "g_law": law}
                found.append(world | learner | budget(table, world | row))
    return found


def name_of(table: int, parameters: dict) -> str:
    "A file name that tells the row."
    strength = parameters.get("kappa", parameters.get("scale"))
    world = f"d{parameters['dim']}-C{parameters['n_classes']}-N{parameters['n_instances']}-{parameters['conditional']}{strength:g}"
    return f"table{table}-{world}-{parameters['case']}-{parameters['g_law']}"


def is_done(table: int, parameters: dict) -> bool:
    "Whether the row's file holds all seeds, run with these very parameters."
    path = DONE / f"{name_of(table, parameters)}.json"
    if not path.exists():
        return False
    records = read_records(path)
    wanted = {**parameters, "concentration": parameters.get("kappa", parameters.get("scale"))}
    wanted = {name: value for name, value in wanted.items() if name not in ("kappa", "scale")}
    return sorted(records.seed) == list(SEEDS) and all((records[name] == value).all() for name, value in wanted.items())


def run_row(table: int, parameters: dict) -> str:
    "One papermill run in a process of its own, with one thread; returns its name."
    name = name_of(table, parameters)
    Config(**parameters, seeds=SEEDS)  # a mistake is told before anything starts
    # A row that is asked for otherwise than before must not meet the checkpoints of that.
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:8]
    folder = WORK / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    given = [
        arg
        for key, value in {**parameters, "eval_every": 500, "device": "cpu"}.items()
        for arg in ("-p", key, str(value))
    ]
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "--log-level", "ERROR", *given,
               "-y", f"seeds: {list(SEEDS)}", "-p", "out", str(folder), str(TEMPLATE), str(folder / "identify.ipynb")]  # fmt: skip
    # Runs side by side, a thread each, waste less than one run on all cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CEGEN_PROGRESS": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    write_json(DONE / f"{name}.json", {"environment": result["environment"], "records": result["records"]})
    return name


def gather(table: int, folder: Path = ROOT / "results") -> pd.DataFrame:
    "Write table2.json or table3.json from the rows that are finished: means over seeds."
    files = sorted(DONE.glob(f"table{table}-*.json"))
    if not files:
        return pd.DataFrame()
    records = pd.concat([read_records(file) for file in files])
    learner = ("objective", "softmax", "width", "n_blocks", "batch_size", "steps")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="+", default=(2, 3), choices=(2, 3), help="which tables")
    parser.add_argument("--laws", nargs="+", default=LAWS, choices=LAWS, help="laws of the generator")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, a thread each")
    options = parser.parse_args()
    wanted = [(table, row) for table in options.tables for row in rows(table) if row["g_law"] in options.laws]
    todo = [(table, row) for table, row in wanted if not is_done(table, row)]
    # The cheapest rows first; those that give no batch size or number of steps take the default's, which is less.
    todo.sort(key=lambda item: item[1].get("batch_size", 0) * item[1].get("steps", 0) * item[1]["dim"])
    print(
        f"{len(wanted) - len(todo)} of {len(wanted)} rows are there; {len(todo)} to run, {options.workers} at a time",
        flush=True,
    )
    failures = 0
    with ThreadPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(run_row, table, row) for table, row in todo]):
            try:
                name = future.result()
            except RuntimeError as error:
                failures += 1
                print(error, file=sys.stderr, flush=True)
                continue
            gather(int(name[5]))
            records = read_records(DONE / f"{name}.json")
            print(
                f"{name}: R² z̃→z {records.r2_z.mean():.4f} ± {records.r2_z.std():.4f}, {records.seconds.mean():.0f} s a run",
                flush=True,
            )
    for table in options.tables:
        gather(table)
    sys.exit(failures > 0 and f"{failures} rows failed; run again to repeat them.")


if __name__ == "__main__":
    main()
