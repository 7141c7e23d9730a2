"""Run the image experiments and leave their records in results/: vmf_sprites.json, table4.json, analogies.json, figure3_offline.json.

Each is a papermill run of a template in nbs/experiments/. Runs whose result is there are not repeated, and one that was interrupted continues from its
checkpoints in runs/images/.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import papermill

from cegen.core import write_json

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = ROOT / "runs" / "images", ROOT / "results"
SEEDS = [0, 1, 2]
SPRITES = {"steps": 1500, "seeds": SEEDS}
TABLE4 = {"size": 32, "n_train": 30_000, "seeds": SEEDS}
# Perceptrons see pictures as vectors, and take longer.
VECTORS = TABLE4 | {"networks": ["pixels", "linear", "mlp"], "steps": 1000}
PICTURES = TABLE4 | {"networks": ["small_cnn"], "steps": 400, "lr": 3e-3}

# Each run: template, parameters, and the file that tells that it is done.
EXPERIMENTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sprites-supervised": ("image_world", SPRITES, "result.json"),
    # Rows that are seldom seen must move fast, or they leave the class vectors bent together. The orientation comes last, since a heart and its mirror image
    # look alike at first: with half the steps one of three worlds stays folded along it.
    "sprites-diet": (
        "image_world",
        SPRITES | {"objective": "diet", "softmax": "sampled", "steps": 4000, "head_lr": 1.0},
        "result.json",
    ),
    "analogies-classes": (
        "analogies",
        SPRITES | {"labels": "classes", "trained": str(RUNS / "sprites-supervised")},
        "classes.json",
    ),
    "analogies-shape": ("analogies", {"labels": "shape", "steps": 600, "lr": 1e-3, "head_lr": 1e-2, "seeds": SEEDS}, "shape.json"),
    "table4-sprites-vectors": ("dislib", VECTORS | {"dataset": "sprites"}, "result.json"),
    "table4-sprites-pictures": ("dislib", PICTURES | {"dataset": "sprites"}, "result.json"),
    "table4-room-vectors": ("dislib", VECTORS | {"dataset": "room", "networks": ["pixels", "mlp"]}, "result.json"),
    "table4-room-pictures": ("dislib", PICTURES | {"dataset": "room"}, "result.json"),
    "table4-sprites-official": (
        "dislib",
        VECTORS | {"dataset": "sprites", "networks": ["pixels", "mlp"], "objectives": ["supervised"], "protocol": "official"},
        "result.json",
    ),
    "figure3-offline": ("imagenetx", {"n_pictures": 1500}, "result.json"),
}  # fmt: skip


def execute(name: str) -> None:
    "Run one experiment, unless its notebook has been executed to the end with these parameters."
    template, parameters, _ = EXPERIMENTS[name]
    folder = RUNS / name
    done, wanted = folder / "done.json", json.loads(json.dumps(parameters))
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == wanted:
        print(f"{name} is there", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        ROOT / "nbs" / "experiments" / f"{template}.ipynb",
        folder / "executed.ipynb",
        parameters=parameters | {"out": str(folder)},
        kernel_name="python3",
        progress_bar=False,
        log_output=True,
    )
    write_json(done, wanted)


def read(name: str) -> dict[str, Any] | None:
    "What an experiment left, once it is done."
    folder = RUNS / name
    if not (folder / "done.json").exists():
        return None
    return json.loads((folder / EXPERIMENTS[name][2]).read_text(encoding="utf-8"))


def gather_sprites() -> None:
    "Write vmf_sprites.json: the records of both objectives, and some recovered latents."
    found = {name: read(f"sprites-{name}") for name in ("supervised", "diet")}
    if all(found.values()):
        content = {
            "environment": found["supervised"]["environment"],
            "recovered": {name: result["recovered"] for name, result in found.items()},
            "records": [record for result in found.values() for record in result["records"]],
        }
        write_json(RESULTS / "vmf_sprites.json", content)


def gather_table4() -> None:
    "Write table4.json: means over seeds, a record for each factor and learner."
    names = [name for name in EXPERIMENTS if name.startswith("table4")]
    found = {name: read(name) for name in names}
    if not all(found.values()):
        return
    frame = pd.concat([pd.DataFrame(result["records"]) for result in found.values()])
    keys = ["dataset", "factor", "kind", "category", "model", "objective", "protocol"]
    table = frame.groupby(keys, sort=False).agg(
        pearson_mean=("pearson", "mean"),
        pearson_std=("pearson", "std"),
        r2_circular_mean=("r2_circular", "mean"),
        r2_circular_std=("r2_circular", "std"),
        accuracy_mean=("accuracy", "mean"),
        seconds_mean=("seconds", "mean"),
        n_seeds=("seed", "nunique"),
    )
    write_json(
        RESULTS / "table4.json",
        {
            "environment": found[names[0]]["environment"],
            "configs": {name: result["config"] for name, result in found.items()},
            "records": json.loads(table.reset_index().to_json(orient="records")),
        },
    )


def gather_analogies() -> None:
    "Write analogies.json: both parts of both classifiers."
    found = {name: read(f"analogies-{name}") for name in ("classes", "shape")}
    if all(found.values()):
        parts = {part: [row for result in found.values() for row in result[part]] for part in ("analogies", "transfer")}
        configs = {name: result["config"] for name, result in found.items()}
        write_json(
            RESULTS / "analogies.json",
            {"environment": found["classes"]["environment"], "configs": configs, **parts},
        )


def gather_figure3() -> None:
    "Write figure3_offline.json: what the template found on the stand-in."
    found = read("figure3-offline")
    if found:
        write_json(RESULTS / "figure3_offline.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS, help="which experiments")
    options = parser.parse_args()
    os.environ["CEGEN_PROGRESS"] = "0"
    for name in options.only:
        execute(name)
    for gather in (gather_sprites, gather_table4, gather_analogies, gather_figure3):
        gather()
    missing = [name for name in EXPERIMENTS if read(name) is None]
    sys.exit(f"not there yet: {', '.join(missing)}" if missing else 0)


if __name__ == "__main__":
    main()
