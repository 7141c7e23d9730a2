"""Sweeps with real processes: what is killed, broken or full is finished by the next call, and nothing is counted twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cegen.execute import EXECUTED
from cegen.grid import Grid, expand, read_template
from cegen.report import interval, over_seeds, plot_combinations, plot_sweep
from cegen.sweep import collect, execute_run, is_done, plan, state_of, sweep, threads_of_run, write_report, write_table

ROOT = Path(__file__).resolve().parent.parent
CEGEN = Path(sys.executable).parent / "cegen"
pytestmark = pytest.mark.slow

# The cell tells a file of all runs that it has begun, so that executions can be counted, and waits for as long as it is told.
BODY = """
import json, pathlib, time
with open(log, "a") as file:
    file.write(f"{x}\\n")
time.sleep(wait)
if x in bad:
    raise RuntimeError(f"x is {x}")
if x in full:
    with open("/dev/full", "w") as file:
        file.write("no room")
_ = (pathlib.Path(out) / "result.json").write_text(json.dumps({"records": [{"y": 2 * x, "seed": seed}]}))
"""


def write_notebook(path: Path, parameters: str, *cells: str) -> Path:
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel)
    notebook.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, path)
    return path


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CEGEN_PROGRESS", "0")


@pytest.fixture
def tiny(tmp_path):
    "Makes a grid over x of a template that doubles it."
    parameters = "x = 0\nseed = 0\nwait = 0.0\nbad = []\nfull = []\nlog = ''\nout = '.'"
    template = write_notebook(tmp_path / "double.ipynb", parameters, BODY)

    def make(n: int, base: dict | None = None, **options) -> Grid:
        base = {"log": str(tmp_path / "log"), **(base or {})}
        return Grid("tiny", template, base, {"product": {"x": list(range(n))}}, out=tmp_path / "runs", **options)

    return make


def begun(grid: Grid) -> Counter:
    "How often each x was begun."
    return Counter(int(line) for line in Path(grid.base["log"]).read_text().split())


def as_file(grid: Grid, path: Path) -> Path:
    content = {"template": str(grid.template), "base": dict(grid.base), "axes": dict(grid.axes), "out": str(grid.out)}
    content |= {"seeds": list(grid.seeds), "retries": grid.retries, "time_limit": grid.time_limit}
    path.write_text(yaml.safe_dump(content))
    return path


def command(*arguments) -> subprocess.Popen:
    "`cegen sweep` as a terminal starts it: where tests run in the background, SIGINT may be ignored."
    return subprocess.Popen(
        [str(CEGEN), "sweep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def n_done(grid: Grid) -> int:
    return len(list(Path(grid.out).glob("*/DONE")))


def kernels_in(folder: Path) -> list[psutil.Process]:
    "Processes that execute something below a folder."
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


# ---- threads


@pytest.mark.parametrize(
    ("said", "asked", "workers", "here", "threads"),
    [
        (None, None, 2, True, 4),
        (None, None, 16, True, 1),
        (None, None, 2, False, 1),
        ("3", None, 2, True, 3),
        ("3", 5, 2, True, 5),
        ("3", None, 2, False, 1),
        ("4,2", None, 4, True, 4),
        ("0", None, 4, True, 2),
    ],
)
def test_threads_are_those_asked_for_or_set_or_a_share_of_the_cores(monkeypatch, said, asked, workers, here, threads):
    monkeypatch.setattr("cegen.sweep.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_of_run(asked, workers, here) == threads
    with pytest.raises(ValueError, match="threads=0"):
        threads_of_run(0, workers, here)


@pytest.mark.parametrize(("policy", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_run_has_its_threads_and_waits_without_spinning_unless_told_otherwise(tmp_path, monkeypatch, policy, seen):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    cell = "import json, os, pathlib\nsaid = {n: os.environ[n] for n in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY')}\n"
    cell += "_ = (pathlib.Path(out) / 'result.json').write_text(json.dumps({'records': [{'y': 1.0}], 'said': said}))"
    template = write_notebook(tmp_path / "threads.ipynb", "x = 0\nout = '.'", cell)
    grid = Grid("threads", template, {}, {}, out=tmp_path / "runs")
    assert sweep(grid, workers=1, threads=2).n_unfinished == 0
    (result,) = grid.folder.glob("*/result.json")
    assert json.loads(result.read_text())["said"] == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": seen}
    assert json.loads((result.parent / "env.json").read_text())["threads"] == 2


# ---- the table


def test_every_run_gives_one_row(tiny):
    grid = tiny(15, seeds=(0, 1))
    result = sweep(grid, workers=2)
    assert repr(result) == "30 done, 0 failed, 0 open"
    table = pd.read_parquet(grid.folder / "results.parquet")
    assert len(table) == 30 and set(table.metric) == {"y"}
    assert (table.value == 2 * table.x).all()
    assert (table.groupby(["x", "seed"]).size() == 1).all()
    assert (plan(grid).seconds > 0).all()


def test_table_can_be_read_without_cegen_or_pandas(tiny):
    import pyarrow.parquet

    grid = tiny(2)
    sweep(grid, workers=2)
    columns = pyarrow.parquet.read_table(grid.folder / "results.parquet").to_pydict()
    assert sorted(columns["x"]) == [0, 1] and sorted(columns["value"]) == [0.0, 2.0]
    assert list(columns) == ["run", "template", "x", "seed", "record", "metric", "value"]


# ---- what goes wrong in a run


def test_failing_run_is_recorded_and_waits_for_retry_failed(tiny):
    grid = tiny(3, {"bad": [1]})
    result = sweep(grid, workers=2)
    assert repr(result) == "2 done, 1 failed, 0 open"
    (failed,) = [run for run in grid.runs() if run.parameters["x"] == 1]
    record = json.loads((grid.folder / failed.key / "FAILED").read_text())
    assert record["error"] == "RuntimeError: x is 1" and "raise RuntimeError" in record["traceback"]
    assert "\x1b" not in record["traceback"]
    executed = nbformat.read(grid.folder / failed.key / EXECUTED, as_version=4)
    assert any(output.output_type == "error" for cell in executed.cells for output in cell.get("outputs", []))
    assert len(sweep(grid).outcomes) == 0
    assert begun(grid) == {0: 1, 1: 1, 2: 1}
    assert [outcome.key for outcome in sweep(grid, retry_failed=True).outcomes] == [failed.key]


def test_retries_are_counted(tiny):
    grid = tiny(1, {"bad": [0]}, retries=2)
    sweep(grid, workers=1)
    assert begun(grid) == {0: 3}
    assert json.loads((grid.folder / grid.runs()[0].key / "FAILED").read_text())["tries"] == 3


def test_time_limit_ends_the_run_and_its_kernel(tiny):
    grid = tiny(1, {"wait": 600.0}, time_limit=5)
    start = time.monotonic()
    (outcome,) = sweep(grid, workers=1).outcomes
    assert outcome.state == "failed" and outcome.message == "took longer than 5 s"
    assert time.monotonic() - start < 30
    assert kernels_in(grid.folder) == []


def test_full_disk_is_no_failure_of_the_run(tiny):
    grid = tiny(2, {"full": [1]})
    result = sweep(grid, workers=2)
    assert repr(result) == "1 done, 0 failed, 1 open"
    assert "No space left on device" in next(o.message for o in result.outcomes if o.state == "stopped")


def test_folder_that_cannot_be_made_is_reported_and_the_others_go_on(tiny):
    grid = tiny(2)
    grid.folder.mkdir()
    (grid.folder / grid.runs()[0].key).write_text("a file where a folder should be")
    result = sweep(grid, workers=2)
    assert repr(result) == "1 done, 0 failed, 1 open"
    assert {outcome.state for outcome in result.outcomes} == {"done", "stopped"}


def test_process_that_is_killed_is_tried_once_more(tiny):
    grid = tiny(1, {"wait": 3.0})
    process = command(as_file(grid, grid.folder.parent / "grid.yaml"))
    wait_until(lambda: Path(grid.base["log"]).exists())
    victims = kernels_in(grid.folder)
    assert victims
    for victim in victims:
        victim.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert begun(grid) == {0: 2} and n_done(grid) == 1


def test_kernel_that_is_killed_is_no_failure_of_the_run(tmp_path):
    body = ("import json, os, pathlib\nmark = pathlib.Path(out) / 'begun'\nagain = mark.exists()\nmark.touch()\n"
            "if not again or always:\n    os.kill(os.getpid(), 9)\n"
            "_ = (pathlib.Path(out) / 'result.json').write_text(json.dumps({'records': [{'y': 1}]}))")  # fmt: skip
    template = write_notebook(tmp_path / "t.ipynb", "always = False\nout = '.'", body)
    grid = Grid("kernel", template, axes={"product": {"always": [False, True]}}, out=tmp_path / "runs")
    result = sweep(grid, workers=2)
    assert repr(result) == "1 done, 0 failed, 1 open"
    (done,) = grid.folder.glob("*/DONE")
    assert json.loads(done.read_text())["tries"] == 2
    assert "Kernel died" in next(o.message for o in result.outcomes if o.state == "stopped")


# ---- what goes wrong with the sweep


def test_sweep_that_is_killed_is_finished_by_the_next(tiny):
    grid = tiny(6, {"wait": 1.0})
    file = as_file(grid, grid.folder.parent / "grid.yaml")
    process = command(file, "--workers", 2)
    wait_until(lambda: n_done(grid) >= 2)
    process.kill()
    process.communicate()
    wait_until(lambda: kernels_in(grid.folder) == [], seconds=10)
    before = n_done(grid)
    assert 2 <= before < 6
    finished = command(file, "--workers", 2)
    output, _ = finished.communicate(timeout=120)
    assert finished.returncode == 0 and "6 done" in output
    assert sorted(collect(grid.folder).x) == list(range(6))
    assert sum(begun(grid).values()) <= 6 + 2, "only what was under way is executed again"


def test_interrupted_sweep_leaves_no_process_and_goes_on(tiny):
    grid = tiny(4, {"wait": 2.0})
    file = as_file(grid, grid.folder.parent / "grid.yaml")
    process = command(file, "--workers", 2)
    wait_until(lambda: n_done(grid) >= 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in output
    assert kernels_in(grid.folder) == []
    assert not list(grid.folder.glob("*/FAILED")), "an interruption is no failure"
    assert repr(sweep(grid, workers=2)) == "4 done, 0 failed, 0 open"


def test_two_sweeps_on_one_folder_share_the_work(tiny):
    grid = tiny(6, {"wait": 0.5})
    file = as_file(grid, grid.folder.parent / "grid.yaml")
    processes = [command(file, "--workers", 1) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "6 done" in output
    assert begun(grid) == dict.fromkeys(range(6), 1), "each run is executed once"
    assert len(collect(grid.folder)) == 6


def test_exit_status_is_the_number_of_runs_that_are_not_done(tiny):
    grid = tiny(4, {"bad": [0, 1, 2]})
    process = command(as_file(grid, grid.folder.parent / "grid.yaml"), "--workers", 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert output.count("RuntimeError: x is") == 3 and "1 done, 3 failed, 0 open" in output


# ---- broken files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A sweep of two runs, made once."
    folder = tmp_path_factory.mktemp("finished")
    template = write_notebook(folder / "t.ipynb", "x = 0\nout = '.'", "import json, pathlib\n"
                              "_ = (pathlib.Path(out) / 'result.json').write_text(json.dumps({'records': [{'y': x}]}))")  # fmt: skip
    grid = Grid("finished", template, axes={"product": {"x": [1, 2]}}, out=folder / "runs")
    os.environ["CEGEN_PROGRESS"] = "0"
    assert sweep(grid, workers=2).n_unfinished == 0
    return grid


@pytest.fixture
def copied(finished, tmp_path):
    "A copy of the finished sweep, with the folder of its first run."
    shutil.copytree(finished.folder, tmp_path / "runs")
    grid = Grid("finished", finished.template, axes=finished.axes, out=tmp_path / "runs")
    return grid, tmp_path / "runs" / grid.runs()[0].key


BREAKAGES = {
    "corrupt metrics": lambda run: (run / "metrics.json").write_text("{" * (run / "metrics.json").stat().st_size),
    "truncated notebook": lambda run: (run / EXECUTED).write_text((run / EXECUTED).read_text()[:50]),
    "no mark": lambda run: (run / "DONE").unlink(),
    "broken mark": lambda run: (run / "DONE").write_text("{"),
    "mark of another kind": lambda run: (run / "DONE").write_text("[]"),
    "no configuration": lambda run: (run / "config.json").unlink(),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_run_is_open_and_not_in_the_table(copied, breakage):
    grid, run = copied
    assert is_done(run) and len(collect(grid.folder)) == 2
    BREAKAGES[breakage](run)
    assert state_of(run) == "open"
    assert list(collect(grid.folder).x) == [2]
    assert list(plan(grid).state) == ["open", "done"]


def test_broken_run_is_executed_again(copied):
    grid, run = copied
    before = collect(grid.folder)
    BREAKAGES["corrupt metrics"](run)
    assert [outcome.key for outcome in sweep(grid, workers=1).outcomes] == [run.name]
    pd.testing.assert_frame_equal(collect(grid.folder), before)


def test_clock_skew_does_not_matter(copied):
    grid, run = copied
    for file in run.iterdir():
        os.utime(file, (4e9, 4e9))
    for file in [*run.iterdir()][:2]:
        os.utime(file, (0, 0))
    assert state_of(run) == "done" and len(sweep(grid).outcomes) == 0


def test_table_of_another_sweep_in_the_same_folder_holds_its_own_runs_only(copied):
    grid, _ = copied
    other = Grid("finished", grid.template, axes={"product": {"x": [2, 3]}}, out=grid.out)
    result = sweep(other, workers=1)
    assert len(result.outcomes) == 1, "x = 2 was there"
    assert sorted(result.table.x) == [2, 3]


# ---- a cluster


def test_worker_of_a_cluster_that_is_killed_costs_no_run(tiny):
    from distributed import Client, LocalCluster

    grid = tiny(6, {"wait": 1.0})
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            pids = client.run(os.getpid)
            process = command(as_file(grid, grid.folder.parent / "grid.yaml"), "--scheduler", cluster.scheduler_address)
            wait_until(lambda: n_done(grid) >= 1)
            os.kill(next(iter(pids.values())), signal.SIGKILL)
            output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert sorted(collect(grid.folder).x) == list(range(6))
    assert (collect(grid.folder).value == 2 * collect(grid.folder).x).all()


def test_scheduler_started_by_hand_gives_the_same_table(tiny, tmp_path):
    python, options = sys.executable, {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address_file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen([python, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
                                  "--scheduler-file", address_file], **options)  # fmt: skip
    worker = subprocess.Popen([python, "-m", "distributed.cli.dask_worker", "--scheduler-file", address_file,
                               "--nworkers", "2", "--nthreads", "1", "--no-dashboard"], cwd=tmp_path, **options)  # fmt: skip
    try:
        wait_until(lambda: address_file.exists() and address_file.read_text().strip().endswith("}"))
        here = tiny(4)
        sweep(here, workers=2)
        there = Grid("tiny", here.template, here.base, here.axes, out=tmp_path / "there")
        result = sweep(there, scheduler=json.loads(address_file.read_text())["address"])
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait()
    pd.testing.assert_frame_equal(result.table, collect(here.folder))


def test_scheduler_that_does_not_answer_is_told(tiny):
    with pytest.raises(ValueError, match="the address of a Dask scheduler that answers"):
        sweep(tiny(1), scheduler="tcp://127.0.0.1:9")


def test_worker_that_does_not_see_the_folder_says_so(tiny, tmp_path):
    from cegen.sweep import Limits

    with pytest.raises(ValueError, match="a folder that all workers see"):
        execute_run(tiny(1).runs()[0], tmp_path / "elsewhere", tmp_path, Limits())


# ---- grids


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(), min_size=1, max_size=4, unique=True), max_size=3),
    st.lists(st.integers(), min_size=1, max_size=4, unique=True),
)
def test_product_and_zip_are_crossed(product, zipped):
    combinations = expand({"product": product, "zip": {"d": zipped, "e": zipped}})
    count = len(zipped)
    for values in product.values():
        count *= len(values)
    assert len(combinations) == count
    assert len({json.dumps(c, sort_keys=True) for c in combinations}) == count
    assert all(c["d"] == c["e"] for c in combinations)


def test_ten_thousand_runs_are_planned():
    template = ROOT / "nbs" / "experiments" / "identify.ipynb"
    axes = {"product": {"kappa": [float(k) for k in range(1, 101)], "dim": list(range(2, 12))}}
    runs = Grid("many", template, axes=axes, seeds=range(10)).runs()
    assert len({run.key for run in runs}) == 10_000


GRIDS = sorted((ROOT / "nbs" / "experiments" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("file", GRIDS, ids=lambda f: f.stem)
def test_shipped_grid_is_valid(file):
    grid = Grid.load(file)
    frame = plan(Grid(**{**grid.__dict__, "out": "nowhere"}))
    assert len(frame) and frame.key.is_unique
    assert frame.seconds.notna().all(), "a grid tells how long a run takes"
    assert file.read_text(encoding="utf-8").startswith("# "), "a grid says what it is for"


def test_every_template_takes_a_folder_for_its_results():
    for path in (ROOT / "nbs" / "experiments").glob("*.ipynb"):
        assert "out" in read_template(path).defaults, path.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("template: [", "a YAML file that can be read"),
        ("- 1", "a YAML mapping"),
        ("template: none.ipynb", "a notebook that can be read"),
        ("name: a/b", "letters, digits"),
        ("template: T\nbase: {seed: 1.5}", "seed=1.5 is not valid: it must be an integer"),
        ("template: T\nbase: {wait: '3'}", "wait='3' is not valid: it must be a number"),
        ("template: T\nbase: {bad: 3}", "bad=3 is not valid: it must be a list"),
        ("template: T\nbase: {x: true}", "x=True is not valid: it must be an integer"),
        ("template: T\nbase: {xx: 1}", "Did you mean 'x'?"),
        ("template: T\nbase: {out: here}", "left to the sweep"),
        ("template: T\nbase: {log: 2024-01-01}", "log=datetime.date(2024, 1, 1) is not valid"),
        ("template: T\nseeds: [1, 1]", "all different"),
        ("template: T\nretries: -1", "retries=-1"),
        ("template: T\naxes: {product: {x: 3}}", "a list of values"),
        ("template: T\naxes: {list: {x: 3}}", "a list of mappings"),
        ("template: T\naxes: {list: []}", "left out, or not empty"),
        ("template: T\naxes: {zip: {}}", "left out, or not empty"),
        ("template: T\naxes: {product: {x: [1], x: [2]}}", "x is given twice"),
        ("template: T\naxes:\n  product: {x: [1]}\n  product: {seed: [1]}", "product is given twice"),
        ("base0: &B {x: 1}\nd: {e: &A {<<: *B, x: 2}}\nc: {<<: *A, y: 1}", "grid key='base0'"),
        ("template: T\naxes: {product: {value: [1, 2]}}", "names other than run, record"),
        ("template: T\naxes: {product: {state: [1, 2]}}", "names other than run, record"),
        ("template: T\nseeds: 3", "seeds=3 is not valid: it must be a list"),
        ("template: T\nseeds:", "seeds=None"),
        ("template: T\nbase: {seed: 7}\nseeds: [0, 1]", "left out where `base` or `axes` give 'seed'"),
        ("template: T\naxes: {product: {seed: [5]}}\nseeds: [0, 1]", "left out where `base` or `axes` give 'seed'"),
        ("template: T\nout: 5", "out=5"),
        ("template: 5", "template=5"),
        ("axes: {product: {template: [null]}}", "template=None"),
    ],
)
def test_bad_grid_is_refused(unchecked, tiny, tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("template: T", f"template: {tiny(1).template}"))
    with pytest.raises(ValueError) as error:
        Grid.load(path).runs()
    assert message in str(error.value)


def test_parameters_that_are_no_plain_python_are_named(tmp_path):
    magic = write_notebook(tmp_path / "magic.ipynb", "%matplotlib inline\nx = 0")
    with pytest.raises(ValueError, match="parameters cell is plain Python"):
        read_template(magic)


def test_all_of_several_conditions_must_fit(tiny):
    grid = tiny(3, {"wait": 0.5})
    assert list(plan(grid, ["x=1"]).x) == list(plan(grid, ["x=1.0", "wait=0.50"]).x) == [1]
    with pytest.raises(ValueError, match="what some run has"):
        plan(grid, ["x=0", "x=1"])


def test_results_of_any_form_end_a_run_well(tmp_path):
    "A number that is none is left out, and a file that only looks like records is no reason to stop."
    contents = {
        "nan": '{"records": [{"y": NaN, "z": 1}]}',
        "null": '{"records": null}',
        "list": "[1]",
        "huge": '{"records": [{"y": 1e999}, 3, {"y": 1' + 400 * "0" + "}]}",
    }
    cell = "import pathlib\n_ = (pathlib.Path(out) / 'r.json').write_text(contents[kind])"
    template = write_notebook(tmp_path / "t.ipynb", f"kind = ''\ncontents = {contents}\nout = '.'", cell)
    result = sweep(
        Grid("forms", template, axes={"product": {"kind": list(contents)}}, out=tmp_path / "runs"), workers=2
    )
    assert result.n_unfinished == 0
    assert result.table[["kind", "metric", "value"]].values.tolist() == [["nan", "z", 1.0]]


def test_scientific_notation_is_a_number(tiny, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(f"template: {tiny(1).template}\naxes: {{product: {{wait: [1e-3, 2.5e-1, 1E2, .5]}}}}")
    assert [run.parameters["wait"] for run in Grid.load(path).runs()] == [0.001, 0.25, 100.0, 0.5]


# ---- training


def test_training_that_is_killed_goes_on_from_its_checkpoint(tmp_path):
    base = {
        "dim": 2,
        "n_classes": 10,
        "n_instances": 20,
        "batch_size": 64,
        "steps": 4000,
        "eval_every": 100,
        "n_test": 100,
    }
    grid = Grid("resumed", ROOT / "nbs" / "experiments" / "identify.ipynb", base, seeds=(0,), out=tmp_path / "runs")
    curve = grid.folder / grid.runs()[0].key / "seed0.csv"
    file = as_file(grid, tmp_path / "resumed.yaml")
    process = command(file)
    wait_until(lambda: curve.exists() and len(pd.read_csv(curve)) >= 5, seconds=120)
    process.kill()
    process.communicate()
    wait_until(lambda: kernels_in(grid.folder) == [], seconds=10)
    before = pd.read_csv(curve)
    assert before.step.max() < 4000
    output, _ = command(file).communicate(timeout=300)
    assert "1 done" in output
    after = pd.read_csv(curve)
    assert list(after.step) == list(range(100, 4001, 100))
    kept = len(before) - 1  # the last row may have been written a moment before its checkpoint
    pd.testing.assert_frame_equal(
        after.head(kept), before.head(kept)
    )  # the seconds too: those steps were not taken again


# ---- the report


def test_report_holds_means_a_figure_and_no_run_that_is_not_done(copied, tmp_path):
    grid, run = copied
    (run / "DONE").unlink()
    done = subprocess.run([CEGEN, "report", grid.folder, "--out", tmp_path / "report"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# finished\n") and "Finished runs: 1." in text and "| 2 | y | 2 | – | – | 1 |" in text
    assert list(pd.read_csv(tmp_path / "report" / "means.csv")["mean"]) == [2.0]
    shown = subprocess.run([CEGEN, "report", grid.folder], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.split()[:2] == ["template", "x"]


def rows_of(cells: list[dict], metric: str = "r2_z", **same) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": "r", "template": "t", "metric": metric, "value": float(k), **same, **cell}
            for k, cell in enumerate(cells)
        ]
    )


def test_seeds_inside_a_run_are_averaged_and_other_records_are_not():
    seeds = [{"run": f"r{a}", "a": a, "seed": s, "record": s} for a in (1, 2) for s in range(3)]
    means = over_seeds(rows_of(seeds))
    assert "record" not in means and list(means.n) == [3, 3] and list(means["mean"]) == [1, 4]
    assert "record" not in over_seeds(rows_of([{"run": f"r{a}", "a": a, "record": 0} for a in (1, 2)])), (
        "no seeds at all"
    )
    cells = [{"seed": s, "record": 2 * cell + s} for cell in range(2) for s in range(2)]
    assert list(over_seeds(rows_of(cells)).record) == [0, 1, 2, 3]


def test_columns_of_several_types_are_written_as_text(tmp_path):
    table = rows_of([{"noise": 1}, {"noise": "auto"}, {"noise": None}])
    stored = pd.read_parquet(write_table(tmp_path / "t.parquet", table))
    assert stored.noise.tolist()[:2] == ["1", "auto"] and pd.isna(stored.noise[2])


def test_a_parameter_that_some_cases_leave_out_is_one_that_varies(tmp_path):
    cell = "import json, pathlib\n_ = (pathlib.Path(out) / 'r.json').write_text(json.dumps({'records': [{'y': x}]}))"
    template = write_notebook(tmp_path / "t.ipynb", "x = 0\nkind = 'a'\nout = '.'", cell)
    cases = [{"x": 1}, {"x": 1, "kind": "b"}, {"x": 2}]
    sweep(Grid("some", template, axes={"list": cases}, out=tmp_path / "runs"), workers=2)
    assert "y by x, kind" in write_report(tmp_path / "runs", tmp_path / "report").read_text()


def test_results_that_were_cut_off_are_named(copied, tmp_path):
    grid, run = copied
    (run / "result.json").write_text('{"records": [{"y"')
    with pytest.raises(ValueError, match=f"unlike {run.name}"):
        write_report(grid.folder, tmp_path / "report")


def test_report_of_an_unfinished_sweep_is_refused(copied, tmp_path):
    grid, _ = copied
    for mark in grid.folder.glob("*/DONE"):
        mark.unlink()
    with pytest.raises(ValueError, match="at least one finished run"):
        write_report(grid.folder, tmp_path / "report")
    shown = subprocess.run([CEGEN, "report", grid.folder], capture_output=True, text=True)
    assert shown.returncode == 2 and "at least one finished run" in shown.stderr


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    bounds = np.array([interval(row) for row in draws])
    assert np.allclose(bounds[:, 0], draws.mean(axis=1))
    covered = np.mean((bounds[:, 1] <= 0) & (bounds[:, 2] >= 0))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_figure_shows_every_combination_however_many_axes_there_are():
    cells = [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (0.5, 1.5) for c in ("x", "y")]
    rows = [{"run": f"{k}{seed}", "template": "t", **cell, "seed": seed, "record": 0, "metric": "r2_z", "value": k + seed / 10}
            for k, cell in enumerate(cells) for seed in range(3)]  # fmt: skip
    table = pd.DataFrame(rows)
    with pytest.raises(ValueError, match="several means for one a and b"):
        plot_sweep(table, "a", hue="b")
    axes = plot_combinations(table).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 8 and labels[0] == "a 1, b 0.5, c x"
    drawn = axes.containers[0].lines[0].get_xdata()
    assert np.allclose(drawn, [k + 0.1 for k in range(8)])
