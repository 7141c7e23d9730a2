"""Measure cegen on a CUDA device: a step, its precision, and all runs of tables 2 and 3, side by side; writes results/bench/gpu.json.

Where there is no such device, nothing is measured and nothing is written.
"""

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tables import grids_of
from torch.utils.flop_counter import FlopCounterMode

import cegen
from cegen import fit, fit_many, probe
from cegen.core import random_stream, write_json
from cegen.mixing import LAWS
from cegen.objective import get_objective
from cegen.run import Config, make_model, make_source
from cegen.train import Settings, Training, alone, set_rates, side_by_side, start, start_run, step_of, take_step

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda")


def median_seconds(task: Callable[[], object], calls: int, repeat: int = 5) -> float:
    "Median time of one call, over several batches of calls that the device is waited for."
    for _ in range(5):
        task()
    times = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            task()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / calls)
    return float(np.median(times))


def product_rate(dtype: torch.dtype, n: int = 8192) -> float:
    "Operations a second of a large square matrix product: what the device can do at most in a precision."
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b, calls=5)


def training_of(config: Config, n_runs: int, steps: int = 10**6) -> Training:
    "Runs of one configuration about to take their first step."
    runs = []
    for seed in range(n_runs):
        source = make_source(config, seed)
        settings = Settings(**config.settings | {"seed": seed, "steps": steps})
        runs.append(
            start_run(source, *make_model(config, source, seed), get_objective(config.objective), settings, DEVICE)
        )
    return start(runs, alone if n_runs == 1 else side_by_side, None)[0]


def operations(config: Config) -> int:
    "Floating-point operations of all matrix products of a step of one run, Muon's among them."
    training = training_of(config, 1)
    with FlopCounterMode(display=False) as counter:
        take_step(training)
    return counter.get_total_flops()


def whole_step(training: Training, advance: Callable[[], object]) -> None:
    "A step as the loop takes it, with its rates."
    set_rates(training.optimizers, 0, training.settings)
    advance()


def steps(limits: dict[str, float]) -> list[dict]:
    "A step of the default row, one operation at a time and recorded, beside what its arithmetic would take."
    rows = []
    for batch, precision, n_runs in itertools.product((512, 4096), limits, (1, 10, 40)):
        config = Config(case="C1", batch_size=batch, precision=precision)
        needed = n_runs * operations(config)
        training = training_of(config, n_runs)
        plain = median_seconds(lambda t=training: whole_step(t, partial(take_step, t)), calls=10, repeat=3)
        advance = step_of(training)
        recorded = median_seconds(lambda t=training, a=advance: whole_step(t, a), calls=50)
        del advance, training  # with the graph and its memory
        rows.append(
            {
                "batch": batch,
                "precision": precision,
                "runs": n_runs,
                "plain_ms": 1e3 * plain,
                "recorded_ms": 1e3 * recorded,
                "gflop": needed / 1e9,
                "share_of_limit": needed / recorded / limits[precision],
                "samples_per_second": n_runs * batch / recorded,
            }
        )
        print(f"  {rows[-1]}", flush=True)
    return rows


def r2(result, source, seed: int, n: int = 10_000) -> float:
    "R² z̃→z on fresh samples."
    test = source.sample(n, random_stream(seed, "test", source.device))
    with torch.inference_mode():
        features = result.head.features(result.encoder(test.x)).cpu()
    z, half = test.z.cpu(), n // 2
    return probe.r2_affine(z[:half], features[:half], z[half:], features[half:])


def accuracy(seeds: int = 5) -> list[dict]:
    "R² on the default row in each precision, and the seconds that one run takes."
    rows = []
    for precision in ("fp32", "bf16-mixed"):
        for seed in range(seeds):
            config = Config(case="C1", g_law="conditioned", precision=precision)
            begin = time.perf_counter()
            source = make_source(config, seed)
            encoder, head = make_model(config, source, seed)
            settings = config.settings | {"seed": seed, "eval_every": config.steps}
            result = fit(source, encoder, head, config.objective, device=DEVICE, **settings)
            rows.append(
                {
                    "precision": precision,
                    "seed": seed,
                    "seconds": time.perf_counter() - begin,
                    "r2": r2(result, source, seed),
                }
            )
        print(f"  {rows[-1]}", flush=True)
    return rows


def groups(table: int) -> dict[tuple, list[dict[str, Any]]]:
    "The runs of a table by what makes their models and settings alike: everything but the generator's law and the seed."
    known = {field.name for field in fields(Config)}
    found: dict[tuple, list[dict[str, Any]]] = {}
    for run in (run for grid in grids_of(table) for run in grid.runs()):
        parameters = {name: value for name, value in run.parameters.items() if name in known}
        parameters = parameters | {"seeds": (run.varied["seed"],), "device": "cuda"}
        key = tuple(sorted((name, value) for name, value in parameters.items() if name not in ("g_law", "seeds")))
        found.setdefault(key, []).append(parameters)
    return found


def run_group(members: list[dict[str, Any]]) -> list[dict]:
    "Train runs side by side: one record for each law of the generator."
    torch.cuda.synchronize()
    begin = time.perf_counter()
    configs = [Config(**member) for member in members]
    laws = [law for law in LAWS if any(config.g_law == law for config in configs)]
    first, seeds = configs[0], [config.seeds[0] for config in configs]
    sources = [make_source(config, seed) for config, seed in zip(configs, seeds, strict=True)]
    models = [make_model(config, source, seed) for config, source, seed in zip(configs, sources, seeds, strict=True)]
    # Two worlds of one seed differ in their generator; their data streams must differ too.
    streams = [seed + 1000 * LAWS.index(config.g_law) for config, seed in zip(configs, seeds, strict=True)]
    settings = first.settings | {"eval_every": first.steps}
    results = fit_many(sources, *zip(*models, strict=True), first.objective, streams, device=DEVICE, **settings)
    scores = [r2(result, source, seed) for result, source, seed in zip(results, sources, seeds, strict=True)]
    seconds = time.perf_counter() - begin
    gflop = operations(first) * first.steps * len(members) / 1e9
    records = []
    for law in laws:
        own = [score for score, config in zip(scores, configs, strict=True) if config.g_law == law]
        records.append(
            {
                "n_instances": first.n_instances,
                "dim": first.dim,
                "n_classes": first.n_classes,
                "conditional": first.conditional,
                "concentration": first.kappa if first.conditional == "vmf" else first.scale,
                "case": first.case,
                "g_law": law,
                "n_seeds": len(own),
                "r2_z_mean": float(np.mean(own)),
                "r2_z_std": float(np.std(own, ddof=1)),
                "seconds": seconds * len(own) / len(members),
                "gflop": gflop * len(own) / len(members),
            }
        )
    return records


def tables(out: Path, content: dict[str, Any], only: int | None) -> None:
    "All runs of tables 2 and 3; what is done is written after each group."
    content["tables"] = []
    for table in (2, 3):
        for members in list(groups(table).values())[:only]:
            rows = [{"table": table} | record for record in run_group(members)]
            content["tables"] += rows
            print(
                "  "
                + " ".join(
                    f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in rows[0].items()
                ),
                flush=True,
            )
            write_json(out, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "gpu.json", help="the file to write")
    parser.add_argument("--only", type=int, help="so many groups of runs of each table; default all")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device: nothing is measured.")
        return
    os.environ["CEGEN_CUDA_GRAPH"] = "1"
    begin = time.perf_counter()
    limits = {"fp32": product_rate(torch.float32), "bf16-mixed": product_rate(torch.bfloat16)}
    content: dict[str, Any] = {
        "environment": {
            "cegen": cegen.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(DEVICE),
            "limit_tflops": {precision: rate / 1e12 for precision, rate in limits.items()},
        }
    }
    print(content["environment"], flush=True)
    content["steps"] = steps(limits)
    write_json(options.out, content)
    content["accuracy"] = accuracy()
    write_json(options.out, content)
    print(pd.DataFrame(content["accuracy"]).groupby("precision")[["r2", "seconds"]].agg(["median", "min"]), flush=True)
    tables(options.out, content, options.only)
    print(f"{time.perf_counter() - begin:.0f} s in all; written to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
