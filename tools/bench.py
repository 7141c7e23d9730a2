"""Measure the vMF sampler beside SciPy's and the parts of one training step; prints a table and writes results/bench/."""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch.nn.functional import cross_entropy, normalize

from cegen import ClusterDGP, Encoder, Head, InvertibleMLP, SyntheticSource, VonMisesFisher
from cegen.core import random_stream, write_json

ROOT = Path(__file__).resolve().parent.parent


def seconds(task: Callable[[], object], repeat: int = 5, at_least: float = 0.2) -> float:
    "Median time of one call, over batches of calls that take at least `at_least` seconds each."
    task()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < at_least:
        task()
        calls += 1
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(calls):
            task()
        times.append((time.perf_counter() - start) / calls)
    return float(np.median(times))


def sampler(n: int = 10_000) -> list[dict]:
    "Samples a second around one mean, from both; and around n different means, which SciPy does not offer."
    rows = []
    for dim in (3, 5, 20, 100):
        for kappa in (1.0, 10.0, 100.0):
            g = random_stream(0, "bench")
            mu = normalize(torch.randn(n, dim, generator=g), dim=1)
            one, each = VonMisesFisher(mu[0], kappa), VonMisesFisher(mu, kappa)
            theirs = scipy.stats.vonmises_fisher(mu[0].double().numpy() / np.linalg.norm(mu[0].double().numpy()), kappa)
            rng = np.random.default_rng(0)
            rows.append(
                {
                    "dim": dim,
                    "kappa": kappa,
                    "cegen_per_second": n / seconds(lambda d=one, g=g: d.sample((n,), generator=g)),
                    "cegen_own_mean_per_second": n / seconds(lambda d=each, g=g: d.sample(generator=g)),
                    "scipy_per_second": n / seconds(lambda d=theirs, rng=rng: d.rvs(n, random_state=rng)),
                }
            )
    return rows


def step(n: int = 1024) -> list[dict]:
    "Where the time of a training step of the default row goes: drawing, forward, backward, update."
    source = SyntheticSource(ClusterDGP(5, 100, 1000, 10.0, seed=0), InvertibleMLP(5, seed=0))
    g = random_stream(0, "bench")
    rows = []
    for architecture in ("residual", "mlp"):
        encoder, head = Encoder(5, 5, architecture), Head(1000, 5, "C4")
        optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()])
        batch = source.sample(n, g)

        def loss(encoder=encoder, head=head, batch=batch):
            return cross_entropy(head(encoder(batch.x)), batch.instance)

        def gradient(loss=loss, optimiser=optimiser):
            optimiser.zero_grad()
            loss().backward()

        drawing, forward, both = seconds(lambda: source.sample(n, g)), seconds(loss), seconds(gradient)
        rows.append(
            {
                "architecture": architecture,
                "batch": n,
                "draw_ms": 1e3 * drawing,
                "forward_ms": 1e3 * forward,
                "backward_ms": 1e3 * (both - forward),
                "update_ms": 1e3 * seconds(optimiser.step),
            }
        )
    return rows


def show(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    print("  ".join(f"{name:>{max(9, len(name))}}" for name in rows[0]))
    for row in rows:
        cells = (
            f"{v:,.0f}" if isinstance(v, float) and v >= 1000 else f"{v:.3g}" if isinstance(v, float) else v
            for v in row.values()
        )
        print("  ".join(f"{cell!s:>{max(9, len(name))}}" for name, cell in zip(row, cells, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench", help="folder for the JSON file")
    out = parser.parse_args().out
    environment = {
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    samples, steps = sampler(), step()
    show("vMF samples a second (one mean; a mean for each sample; SciPy, one mean)", samples)
    show("One training step on the default row, in milliseconds", steps)
    path = write_json(out / "cpu.json", {"environment": environment, "sampler": samples, "step": steps})
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    main()
