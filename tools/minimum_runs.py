"""Train a few dozen small models and note R² beside the excess loss at every evaluation; writes results/minimum.json."""

import argparse
import json
from itertools import product
from pathlib import Path

from cegen.core import write_json
from cegen.run import Config, Trial, environment, run_seed
from cegen.theory import fisher_information

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("kappa", "dim", "case", "seed")


def configuration(kappa: float, dim: int, case: str, steps: int) -> Config:
    "A short run of the default world with one κ and d, behind a well conditioned generator."
    return Config(
        dim=dim, kappa=kappa, case=case, g_law="conditioned", steps=steps, batch_size=512, eval_every=150,
        n_test=5000, device="cpu",
    )  # fmt: skip


def short(value: float) -> float:
    "Four significant digits."
    return float(f"{value:.4g}")


def curve(trial: Trial) -> list[dict]:
    "Step, excess and R² of each evaluation."
    rows = trial.fit.history[["step", "excess", "r2_z"]].itertuples(index=False)
    return [{"step": int(step), "excess": short(excess), "r2_z": short(r2)} for step, excess, r2 in rows]


def errors(trial: Trial) -> dict:
    "What the last error of the latents, δ, costs to second order, and what it would if it were as large in every direction."
    z = trial.test.z
    delta, information = (trial.z_aligned() - z).double(), fisher_information(trial.source.dgp, z.double())
    cost = (delta[:, None, :] @ information @ delta[:, :, None]).mean() / 2
    isotropic = delta.square().mean() * information.diagonal(dim1=1, dim2=2).sum(1).mean() / 2
    return {
        "excess": short(trial.record["excess"]), "r2_z": short(trial.record["r2_z"]), "r2_w": short(trial.record["r2_w"]),
        "latent_excess": short(float(cost)), "isotropic_excess": short(float(isotropic)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "minimum.json", help="file to write; what it holds is kept"
    )
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each configuration a seed")
    arguments = parser.parse_args()
    stored = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    evaluations, final = stored.get("evaluations", []), stored.get("final", [])
    done = {tuple(row[name] for name in COLUMNS) for row in final}
    for seed, kappa, dim, case in product(arguments.seeds, (10.0, 50.0, 5.0, 20.0), (5, 3, 10), ("C1", "C4")):
        if (kappa, dim, case, seed) in done:
            continue
        trial = run_seed(configuration(kappa, dim, case, arguments.steps), seed)
        run = dict(zip(COLUMNS, (kappa, dim, case, seed), strict=True))
        evaluations += [run | row for row in curve(trial)]
        final += [run | errors(trial)]
        write_json(
            arguments.out, {"environment": environment(trial.fit.device), "evaluations": evaluations, "final": final}
        )
        print(run, final[-1])


if __name__ == "__main__":
    main()
