"""Measure cegen on this machine: prints tables and writes one file a topic into results/bench/.

Ratios within one run mean something; times from different machines do not compare. What is measured in a process of its
own (memory, import time) is started through this same file.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

import cegen
from cegen import (
    ClusterDGP,
    Config,
    Encoder,
    Head,
    InvertibleMLP,
    SyntheticSource,
    VonMisesFisher,
    fit,
    fit_many,
    probe,
)
from cegen.core import random_stream, write_json
from cegen.grid import Grid
from cegen.model import ARCHITECTURES, SampledHead
from cegen.objective import get_objective
from cegen.run import make_model, make_source
from cegen.sweep import RUN_FILES, checked_runs, collect, plan, sweep, write_table
from cegen.train import Settings, alone, start, start_run, training_step

ROOT = Path(__file__).resolve().parent.parent
THRESHOLDS = (0.95, 0.99, 0.995)
# Learning-rate schedules of several lengths: what a threshold costs is what the shortest one that reaches it costs.
SCHEDULES = (250, 500, 600, 1500)
SEEDS = (0, 1, 2, 3, 4)
MEGABYTE = 2**20


def seconds_in_turn(tasks: dict[str, Callable[[], object]], rounds: int = 5, at_least: float = 0.2) -> dict[str, float]:
    "Median time of one call of each task, over rounds of calls that take at least `at_least` seconds for each; a slow spell falls on all."
    calls = dict.fromkeys(tasks, 0)
    for name, task in tasks.items():
        task()
        start = time.perf_counter()
        while time.perf_counter() - start < at_least:
            task()
            calls[name] += 1
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                task()
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: float(np.median(each)) for name, each in times.items()}


def seconds(task: Callable[[], object]) -> float:
    "Median time of one call."
    return seconds_in_turn({"task": task})["task"]


def wood_numpy(mu: np.ndarray, kappa: float, n: int, rng: np.random.Generator) -> np.ndarray:
    "Wood's (1994) rejection sampler as papers write it: one sample after another is proposed until it is accepted."
    d = len(mu)
    b = (d - 1) / (2 * kappa + np.sqrt(4 * kappa**2 + (d - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (d - 1) * np.log(1 - x0**2)
    samples = np.empty((n, d))
    for i in range(n):
        while True:
            beta = rng.beta((d - 1) / 2, (d - 1) / 2)
            w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
            if kappa * w + (d - 1) * np.log(1 - x0 * w) - c >= np.log(rng.uniform()):
                break
        tangent = rng.standard_normal(d)
        tangent -= tangent @ mu * mu
        samples[i] = w * mu + np.sqrt(1 - w**2) * tangent / np.linalg.norm(tangent)
    return samples


def sampler(n: int = 10_000) -> list[dict]:
    "Samples a second around one mean, from cegen, SciPy and a loop in NumPy; and around n means, which only cegen draws at once."
    rows = []
    for dim in (3, 5, 20, 100):
        for kappa in (1.0, 10.0, 100.0):
            g, rng = random_stream(0, "bench"), np.random.default_rng(0)
            mu = normalize(torch.randn(n, dim, generator=g), dim=1)
            first = mu[0].double().numpy() / np.linalg.norm(mu[0].double().numpy())
            one, each = VonMisesFisher(mu[0], kappa), VonMisesFisher(mu, kappa)
            theirs = scipy.stats.vonmises_fisher(first, kappa)
            few = n // 100
            rows.append(
                {
                    "dim": dim,
                    "kappa": kappa,
                    "cegen_per_second": n / seconds(lambda d=one, g=g: d.sample((n,), generator=g)),
                    "cegen_own_means_per_second": n / seconds(lambda d=each, g=g: d.sample(generator=g)),
                    "scipy_per_second": n / seconds(lambda d=theirs, rng=rng: d.rvs(n, random_state=rng)),
                    "numpy_loop_per_second": few
                    / seconds(lambda m=first, k=kappa, f=few, rng=rng: wood_numpy(m, k, f, rng)),
                }
            )
    return rows


def default_training(
    dim: int = 5,
    n_instances: int = 1000,
    case: str = "C1",
    softmax: str = "full",
    batch: int = 1024,
    steps: int = 10_000,
    architecture: str = "residual",
):
    "A world of the default row and a model about to take its first step."
    source = SyntheticSource(
        ClusterDGP(dim, 100, n_instances, 10.0, seed=0), InvertibleMLP(dim, law="conditioned", seed=0)
    )
    head = {"full": Head, "sampled": SampledHead}[softmax](n_instances, dim, case, generator=random_stream(0, "head"))
    encoder = Encoder(dim, dim, architecture, generator=random_stream(0, "encoder"))
    settings = Settings(steps=steps, batch_size=batch)
    run = start_run(source, encoder, head, get_objective("diet"), settings, torch.device("cpu"))
    return start([run], alone, None)[0]


def square_product(n: int = 1024) -> tuple[int, Callable[[], object]]:
    "A product of square matrices, whose rate is the arithmetic limit of the machine, and its floating-point operations."
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3, lambda: a @ b


def products_of_step(training) -> tuple[int, Callable[[], object]]:
    "All matrix products of a step (forward, backward, update) with nothing between, and their floating-point operations."
    run = training.runs[0]
    batch = run.source.sample(run.settings.batch_size, run.generator)
    operands: list[tuple[torch.Tensor, torch.Tensor]] = []
    products = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}

    class Operands(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in products:
                # Laid out as in the step: in another layout some of them take several times as long.
                a, b = (torch.empty_like(operand).normal_() for operand in args[-2:])
                operands.append((a, b))
            return func(*args, **(kwargs or {}))

    with Operands(), FlopCounterMode(display=False) as counter:
        training_step([batch], training.losses_of, training.optimizers)
    return counter.get_total_flops(), lambda: [a @ b for a, b in operands]


def parts_of_step(training) -> dict[str, Callable[[], object]]:
    "A training step, and what it does one after the other; the gradient has a forward pass in it."
    run = training.runs[0]
    batch = run.settings.batch_size
    drawn = run.source.sample(batch, run.generator)

    def draw():
        return run.source.sample(batch, run.generator)

    def forward():
        return training.losses_of([drawn]).sum()

    def gradient():
        for optimizer in training.optimizers:
            optimizer.zero_grad(set_to_none=True)
        forward().backward()

    def update():
        for optimizer in training.optimizers:
            optimizer.step()

    def whole():
        training_step([draw()], training.losses_of, training.optimizers)

    return {"draw": draw, "forward": forward, "gradient": gradient, "update": update, "step": whole}


def step() -> list[dict]:
    "Where the time of a training step of the default row goes, beside what its arithmetic would take at the machine's limit."
    rows = []
    for architecture, batch in itertools.product(ARCHITECTURES, (512, 1024)):
        training = default_training(batch=batch, architecture=architecture)
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in training.optimizers):
            group["lr"] = 0.0  # the same arithmetic, and the same weights however often a part is called
        flops, products = products_of_step(training)
        square_flops, square = square_product()
        took = seconds_in_turn(parts_of_step(training) | {"products": products, "square": square}, rounds=15)
        limit = square_flops / took["square"]
        rows.append(
            {
                "architecture": architecture,
                "batch": batch,
                "draw_ms": 1e3 * took["draw"],
                "forward_ms": 1e3 * took["forward"],
                "backward_ms": 1e3 * (took["gradient"] - took["forward"]),
                "update_ms": 1e3 * took["update"],
                "step_ms": 1e3 * took["step"],
                "mflop": flops / 1e6,
                "limit_gflops": limit / 1e9,
                "limit_ms": 1e3 * flops / limit,
                "products_ms": 1e3 * took["products"],
                "step_over_limit": took["step"] * limit / flops,
                "step_over_products": took["step"] / took["products"],
            }
        )
    return rows


def convergence() -> list[dict]:
    "R² on the default row after schedules of several lengths, and the seconds from the first draw of the generator to that R²."
    runs = []
    for steps in SCHEDULES:
        for seed in SEEDS:
            config = Config.from_parameters({"steps": steps, "eval_every": steps}, recipe="quick")
            begin = time.perf_counter()
            source = make_source(config, seed)
            encoder, head = make_model(config, source, seed)
            result = fit(source, encoder, head, config.objective, device="cpu", seed=seed, **config.settings)
            test = source.sample(10_000, random_stream(seed, "test"))
            with torch.inference_mode():
                features = result.head.features(result.encoder(test.x))
            r2 = probe.r2_affine(test.z[:5000], features[:5000], test.z[5000:], features[5000:])
            whole = time.perf_counter() - begin
            runs.append({"steps": steps, "seed": seed, "r2": r2, "seconds": whole, "training_seconds": result.seconds})
            print(f"  {steps} steps, seed {seed}: R² {r2:.4f} in {whole:.1f} s", flush=True)
    return runs


def thresholds(runs: list[dict]) -> list[dict]:
    "For each threshold the shortest schedule whose median R² reaches it."
    frame = pd.DataFrame(runs)
    medians = frame.groupby("steps").median()
    rows = []
    for threshold in THRESHOLDS:
        reached = medians[medians.r2 >= threshold]
        best = reached.iloc[0] if len(reached) else None
        steps = int(reached.index[0]) if len(reached) else None
        rows.append(
            {
                "r2": threshold,
                "steps": steps,
                "seconds": None if best is None else float(best.seconds),
                "training_seconds": None if best is None else float(best.training_seconds),
                "seeds_that_reach_it": None
                if best is None
                else int((frame[frame.steps == steps].r2 >= threshold).sum()),
            }
        )
    return rows


def peak() -> float:
    "Largest resident memory of this process so far, in bytes."
    status = Path("/proc/self/status")
    if status.exists():  # on Linux the other number starts from the parent's memory
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def probe_memory(steps: int = 10_000) -> list[dict]:
    "Peak memory of a process that trains on the default row, as it goes."
    source = SyntheticSource(ClusterDGP(5, 100, 1000, 10.0, seed=0), InvertibleMLP(5, seed=0))
    rows = [{"step": 0, "peak_mb": peak() / MEGABYTE}]

    def watch(step, encoder, head):
        rows.append({"step": step, "peak_mb": peak() / MEGABYTE})

    head = Head(1000, 5, "C1", generator=0)
    fit(source, Encoder(5, 5, generator=0), head, callbacks=[watch], steps=steps, eval_every=steps // 10, device="cpu")
    return rows


def probe_scaling(dim: int, n_instances: int, case: str, softmax: str) -> list[dict]:
    "Time of a step, and the memory that steps take beside W and the optimiser's two moments of it."
    small = default_training()  # the first optimiser of a process imports half of PyTorch
    training_step([small.runs[0].source.sample(8, small.runs[0].generator)], small.losses_of, small.optimizers)
    before = peak()
    training = default_training(dim, n_instances, case, softmax, batch=512)
    run = training.runs[0]

    def one():
        training_step([run.source.sample(512, run.generator)], training.losses_of, training.optimizers)

    one()
    taken, begin, times = peak() - before, time.perf_counter(), []
    while len(times) < 3 or (time.perf_counter() - begin < 2 and len(times) < 200):
        last = time.perf_counter()
        one()
        times.append(time.perf_counter() - last)
    taken = max(taken, peak() - before)
    model = 3 * run.head.weight.nbytes
    return [
        {
            "dim": dim,
            "n_instances": n_instances,
            "case": case,
            "softmax": softmax,
            "step_ms": 1e3 * float(np.median(times)),
            "model_mb": model / MEGABYTE,
            "beside_mb": max(0, taken - model) / MEGABYTE,
        }
    ]


def in_process(*words: Any) -> list[dict]:
    "What a probe of this file returns in a fresh process."
    command = [sys.executable, str(Path(__file__).resolve()), "--probe", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def scaling() -> list[dict]:
    rows = []
    for dim in (5, 64):
        for n in (10**3, 10**4, 10**5, 10**6):
            for case, softmax in (("C1", "full"), ("C4", "full"), ("C1", "sampled")):
                rows += in_process("scaling", dim, n, case, softmax)
                print(f"  {rows[-1]}", flush=True)
    return rows


def imports() -> list[dict]:
    "Seconds of an import in a fresh process, beyond what Python itself takes to start."

    def start_of(code: str) -> float:
        def once() -> float:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            return time.perf_counter() - begin

        return float(np.median([once() for _ in range(5)]))

    empty = start_of("pass")
    lines = (
        "import cegen",
        "import torch",
        "from cegen import fit",
        "import cegen.cli",
        "import pandas, scipy.stats, sklearn",
    )
    return [{"code": line, "seconds": start_of(line) - empty} for line in lines]


def many(steps: int = 100) -> list[dict]:
    "Runs of the default row a minute, S seeds one after another and S at once."

    def learners(n: int) -> tuple[list, list, list]:
        sources = [
            SyntheticSource(ClusterDGP(5, 100, 1000, 10.0, seed=k), InvertibleMLP(5, law="conditioned", seed=k))
            for k in range(n)
        ]
        return (
            sources,
            [Encoder(5, 5, generator=k) for k in range(n)],
            [Head(1000, 5, "C1", generator=k) for k in range(n)],
        )

    rows = []
    settings = {"steps": steps, "eval_every": steps, "device": "cpu"}
    # The first optimiser of a process imports half of PyTorch.
    fit(*(parts[0] for parts in learners(1)), **settings | {"steps": 2})
    for n in (1, 2, 4, 8, 16):
        begin = time.perf_counter()
        for k, (source, encoder, head) in enumerate(zip(*learners(n), strict=True)):
            fit(source, encoder, head, seed=k, **settings)
        alone_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        fit_many(*learners(n), seeds=range(n), **settings)
        together = time.perf_counter() - begin
        per_minute = 60 * n * steps / Settings().steps
        rows.append(
            {
                "runs": n,
                "one_by_one_per_minute": per_minute / alone_seconds,
                "together_per_minute": per_minute / together,
            }
        )
    return rows


EMPTY = (
    "x = 0.0\nout = '.'",
    "import json, pathlib\n_ = (pathlib.Path(out) / 'result.json').write_text(json.dumps({'records': [{'y': x}]}))",
)


def probe_sweep(runs: int = 16, planned: int = 10_000, metrics: int = 20) -> list[dict]:
    "What a run costs beyond its notebook, and what planning and collecting very many cost."
    rows = [{"what": "resident memory after imports, MB", "value": peak() / MEGABYTE}]
    with tempfile.TemporaryDirectory() as place:
        template, out = Path(place) / "empty.ipynb", Path(place) / "runs"
        parameters, body = map(nbformat.v4.new_code_cell, EMPTY)
        parameters.metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[parameters, body], metadata=kernel), template)
        grid = Grid("bench", template, axes={"product": {"x": [float(k) for k in range(runs)]}}, out=out)
        result = sweep(grid, workers=2)
        assert result.n_unfinished == 0
        rows.append({"what": "seconds of an empty run, two at a time", "value": float(plan(grid).seconds.median())})
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows.append({"what": "processor seconds of an empty run", "value": (used.ru_utime + used.ru_stime) / runs})
        many = Grid(
            "many", template, axes={"product": {"x": [float(k) for k in range(planned)]}}, out=Path(place) / "many"
        )
        rows.append({"what": f"seconds to plan {planned:,} runs", "value": seconds(lambda: checked_runs(many))})
        finished_runs(many, grid.folder / grid.runs()[0].key, metrics)
        begin = time.perf_counter()
        table = collect(many.folder)
        write_table(many.folder / "results.parquet", table)
        rows.append(
            {"what": f"seconds to collect {planned:,} runs, {len(table):,} rows", "value": time.perf_counter() - begin}
        )
        rows.append({"what": "peak resident memory, MB", "value": peak() / MEGABYTE})
    return rows


def finished_runs(grid: Grid, like: Path, metrics: int) -> None:
    "The folder of a sweep whose runs have all ended as one has, with more numbers."
    runs, numbers = grid.runs(), {f"metric_{k}": float(k) for k in range(metrics)}
    listed = [{"key": run.key, "template": run.template.stem, "varied": dict(run.varied)} for run in runs]
    write_json(grid.folder / "sweep.json", {"name": grid.name, "runs": listed})
    files = {name: (like / name).read_bytes() for name in RUN_FILES} | {
        "metrics.json": json.dumps({"metrics": [numbers]}).encode()
    }
    done = json.dumps({"seconds": 1.0, "sizes": {name: len(content) for name, content in files.items()}}).encode()
    for run in runs:
        (grid.folder / run.key).mkdir()
        for name, content in (files | {"DONE": done}).items():
            (grid.folder / run.key / name).write_bytes(content)


PROBES = {
    "sweep": probe_sweep,
    "memory": lambda: probe_memory(),
    "scaling": lambda dim, n, case, softmax: probe_scaling(int(dim), int(n), case, softmax),
}
TOPICS = {
    "sampler": (sampler, "vMF samples a second"),
    "step": (step, "One training step on the default row"),
    "convergence": (convergence, "The default row with the recipe quick, by length of the schedule"),
    "memory": (lambda: in_process("memory"), "Peak resident memory over 10,000 steps of the default row"),
    "scaling": (scaling, "A step at batch 512, and its memory beside W and the optimiser's moments"),
    "imports": (imports, "Import time in a fresh process"),
    "many": (many, "Runs of 2,000 steps a minute"),
    "sweep": (lambda: in_process("sweep"), "Sweeps of very many runs"),
}


def processor() -> str:
    "What the machine computes with, as it calls itself."
    described = Path("/proc/cpuinfo")  # on Linux Python knows the architecture only
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def show(title: str, rows: list[dict]) -> None:
    print(f"\n{title}\n{pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f'{v:,.4g}')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench", help="folder for the JSON files")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS), help="topics to measure")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        name, *words = options.probe
        print(json.dumps(PROBES[name](*words)))
        return
    environment = {
        "cegen": cegen.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    for topic in options.only:
        measure, title = TOPICS[topic]
        content: dict[str, Any] = {"environment": environment, "records": measure()}
        show(title, content["records"])
        if topic == "convergence":
            content["thresholds"] = thresholds(content["records"])
            show("Steps and seconds to a threshold (median of seeds)", content["thresholds"])
        write_json(options.out / f"{topic}.json", content)
    print(f"\nWritten to {options.out}")


if __name__ == "__main__":
    main()
