"""Change one thing at a time about how cegen trains, in four worlds, three seeds each; writes results/recipe.json.

Runs that are there are not run again, so the tool continues where it stopped.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cegen import Config, Encoder, Head, fit
from cegen.core import Batch, random_stream, write_json
from cegen.objective import OBJECTIVES
from cegen.run import make_model, make_source, watch_latents

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
WORLDS: dict[str, dict[str, Any]] = {
    "default": {"case": "C1", "steps": 1000},
    "κ = 50": {"case": "C1", "softmax": "sampled", "kappa": 50.0, "batch_size": 1024, "steps": 1000, "head_lr": 1.0},
    "d = 10": {"objective": "supervised", "case": "C1", "dim": 10, "width": 128, "batch_size": 1024, "steps": 600},
    "d = 20": {
        "objective": "supervised",
        "case": "C1",
        "dim": 20,
        "g_law": "conditioned",
        "width": 128,
        "n_blocks": 4,
        "batch_size": 1024,
        "steps": 1000,
    },
}
ALL = tuple(WORLDS)
THREE = ("default", "κ = 50", "d = 10")


@dataclass(frozen=True)
class Variant:
    "One change: fields of the configuration, and what is done to the untrained model."

    config: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Encoder, Head], None] | None = None
    worlds: tuple[str, ...] = THREE
    average: float | None = None  # decay of an average of the weights, which is scored in their place
    distil: bool = False  # second half: the encoder learns the softmax of the first half's model


class NoHidden(Encoder):
    "An encoder that names no matrix for Muon."

    hidden_weights = ()  # type: ignore[assignment]


def adam_alone(encoder: Encoder, head: Head) -> None:
    encoder.__class__ = NoHidden


def not_whitened(encoder: Encoder, head: Head) -> None:
    encoder.whitening = None


def smooth(encoder: Encoder, head: Head) -> None:
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.SiLU())


def beta_from(beta: float) -> Callable[[Encoder, Head], None]:
    def change(encoder: Encoder, head: Head) -> None:
        head.log_beta.data.fill_(torch.tensor(beta).log())

    return change


VARIANTS = {
    "as it is": Variant(worlds=ALL),
    "input not whitened": Variant(change=not_whitened, worlds=ALL),
    "Adam for all weights": Variant(change=adam_alone, worlds=ALL),
    "SiLU": Variant(change=smooth),
    "leaky ReLU's slope .2": Variant({"negative_slope": 0.2}, worlds=ALL),
    "leaky ReLU's slope .4": Variant({"negative_slope": 0.4}, worlds=ALL),
    "half the width": Variant({"width": 32}, worlds=("default", "κ = 50")),
    "twice the width": Variant({"width": 128}, worlds=("default", "κ = 50")),
    "width 64": Variant({"width": 64}, worlds=("d = 10",)),
    "width 256": Variant({"width": 256}, worlds=("d = 10",)),
    "one block": Variant({"n_blocks": 1}, worlds=("default", "d = 10")),
    "six blocks": Variant({"n_blocks": 6}, worlds=("default", "d = 10")),
    "hidden rate / 2": Variant({"hidden_lr": 1.5e-2}, worlds=ALL),
    "hidden rate × 3": Variant({"hidden_lr": 1e-1}, worlds=ALL),
    "encoder's rate / 3": Variant({"lr": 3e-3}),
    "encoder's rate × 3": Variant({"lr": 3e-2}),
    "head's rate .01": Variant({"head_lr": 0.01}),
    "head's rate .1": Variant({"head_lr": 0.1}, worlds=("κ = 50",)),
    "head's rate .3": Variant({"head_lr": 0.3}),
    "head's rate 1": Variant({"head_lr": 1.0}, worlds=("default", "d = 10")),
    "head's rate as 1/t": Variant({"head_decay": "inverse"}, worlds=ALL),
    "head's rate as 1/t, from .3": Variant({"head_decay": "inverse", "head_lr": 0.3}, worlds=("default", "d = 10")),
    "head's rate as 1/t, from 3": Variant({"head_decay": "inverse", "head_lr": 3.0}, worlds=("κ = 50",)),
    "rows share a map": Variant({"row_map": True}, worlds=ALL),
    "no warm-up": Variant({"warmup": 0}, worlds=("default", "d = 10")),
    "batch 256, twice the steps": Variant({"batch_size": 256, "steps": 2000}, worlds=("default",)),
    "batch 1,024, half the steps": Variant({"batch_size": 1024, "steps": 500}, worlds=("default",)),
    "sampled softmax": Variant({"softmax": "sampled"}, worlds=("default",)),
    "β from 10": Variant(change=beta_from(10.0)),
    "case C2": Variant({"case": "C2"}, worlds=("default", "κ = 50")),
    "case C3": Variant({"case": "C3"}, worlds=("default", "κ = 50")),
    "case C4": Variant({"case": "C4"}, worlds=("default", "κ = 50")),
    "average of weights, decay .99": Variant(average=0.99),
    "average of weights, decay .999": Variant(average=0.999),
    "self-distillation": Variant(distil=True, worlds=("default", "d = 10")),
    "the paper's encoder and rates": Variant(
        {"architecture": "mlp", "lr": 1e-3, "head_lr": 1e-3, "warmup": 0}, worlds=("default", "d = 10")
    ),
}


@dataclass(frozen=True)
class Distil:
    "Cross-entropy with the softmax of a trained model in place of the label."

    teacher: nn.Module
    teacher_head: Head
    name: str
    level: str

    def n_rows(self, source) -> int:
        return OBJECTIVES[self.name].n_rows(source)

    def loss(self, features: torch.Tensor, head: Head, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            target = self.teacher_head(self.teacher(batch.x)).softmax(dim=1)
        return nn.functional.cross_entropy(head(features), target)


def run(world: str, name: str, seed: int) -> dict:
    "R² and excess of one run."
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    config = Config(**WORLDS[world] | variant.config)
    source, objective = make_source(config, seed), OBJECTIVES[config.objective]
    encoder, head = make_model(config, source, seed)
    if variant.change is not None:
        variant.change(encoder, head)
    average = variant.average and AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(variant.average))
    if average:
        encoder.register_forward_pre_hook(
            lambda module, _: average.update_parameters(module) if module.training else None
        )
    steps = config.steps // 2 if variant.distil else config.steps
    options: dict[str, Any] = config.settings | {"device": "cpu", "seed": seed, "eval_every": steps, "steps": steps}
    result = fit(source, encoder, head, objective, **options)
    seconds = result.seconds
    if variant.distil:
        teacher = Distil(copy.deepcopy(encoder).eval(), copy.deepcopy(head).eval(), config.objective, objective.level)
        seconds += fit(source, encoder, head, teacher, **options | {"seed": seed + 1000}).seconds
    test = source.sample(10_000, random_stream(seed, "test"))
    scores = watch_latents(source, objective.level, test)(config.steps, (average or encoder).eval(), head.eval())
    return {"world": world, "variant": name, "seed": seed, **scores, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "recipe.json", help="file; what it holds is kept"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, a thread each")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CEGEN_PROGRESS": "0"}
    rows = json.loads(options.out.read_text(encoding="utf-8"))["records"] if options.out.exists() else []
    done = {(row["world"], row["variant"], row["seed"]) for row in rows}
    # Seed by seed, so that a tool that is stopped has told something about everything.
    wanted = [
        (world, name, seed) for seed in SEEDS for world in WORLDS for name in VARIANTS if world in VARIANTS[name].worlds
    ]
    todo = [key for key in wanted if key not in done]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there", flush=True)
    order = {key: k for k, key in enumerate(wanted)}
    with ProcessPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(run, *key) for key in todo]):
            rows.append(future.result())
            rows.sort(key=lambda row: order.get((row["world"], row["variant"], row["seed"]), len(order)))
            write_json(options.out, {"worlds": WORLDS, "records": rows})
            row = future.result()
            print(
                f"{row['world']:>8}  {row['variant']:<32} seed {row['seed']}: R² {row['r2_z']:.4f} in {row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
