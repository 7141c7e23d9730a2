"""The tools behind the reports: every row and cell is asked for, and what is committed is what was asked for."""

import importlib.util
import itertools
import json
import math
import sys
from collections import Counter
from dataclasses import fields, replace

import papermill
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cegen import Config
from cegen.model import ARCHITECTURES
from cegen.report import paper_table


def tool(root, name):
    "A file of tools/ as a module."
    spec = importlib.util.spec_from_file_location(name, root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables(root):
    return tool(root, "tables")


@pytest.fixture(scope="module")
def surfaces(root):
    return tool(root, "surfaces")


@pytest.fixture(scope="module")
def recipe(root):
    return tool(root, "recipe")


@pytest.fixture(scope="module")
def held_out(tables, root):
    return tool(root, "held_out")


@pytest.fixture(scope="module")
def trials(root):
    return tool(root, "trials")


@pytest.mark.parametrize(("number", "cases"), [(2, 2), (3, 1)])
def test_every_row_of_the_paper_is_run_under_both_laws(tables, number, cases):
    rows, paper = tables.rows(number), paper_table(number)
    assert len(rows) == 2 * cases * len(paper)
    assert all([run.varied["seed"] for run in runs] == [0, 1, 2, 3, 4] for runs in rows.values())
    names = [name for name in ("n_instances", "dim", "n_classes", "conditional") if name in paper]
    asked = {tuple(runs[0].parameters[name] for name in names) for runs in rows.values()}
    assert asked == set(paper[names].itertuples(index=False, name=None))
    assert {runs[0].parameters["objective"] for runs in rows.values()} == {{2: "diet", 3: "supervised"}[number]}


def test_committed_tables_are_the_means_of_the_rows_files(tables, root, tmp_path):
    committed = sorted((root / "results").glob("table[23].json"))
    assert committed
    for path in committed:
        tables.gather(int(path.stem[-1]), tmp_path)
        fresh, kept = (
            json.loads((folder / path.name).read_text(encoding="utf-8")) for folder in (tmp_path, path.parent)
        )
        assert fresh == kept
        assert {record["n_seeds"] for record in kept["records"]} == {5}


@pytest.mark.parametrize("number", [2, 3])
def test_committed_rows_are_those_that_the_grids_ask_for(tables, number):
    rows = tables.rows(number)
    assert {path.stem for path in tables.DONE.glob(f"table{number}-*.json")} == set(rows)
    assert all(tables.is_stored(name, runs) for name, runs in rows.items())


def test_a_row_is_run_again_if_it_was_run_otherwise(tables):
    done = [(name, runs) for name, runs in tables.rows(2).items() if tables.is_stored(name, runs)]
    assert done
    name, runs = done[0]
    for change in (
        {"steps": 17},
        {"n_classes": 7},
        {"head_lr": 0.3},
        {"head_decay": "other"},
        {"negative_slope": 0.5},
        {"row_map": True},
    ):
        assert not tables.is_stored(name, [replace(run, parameters=dict(run.parameters) | change) for run in runs])
    assert not tables.is_stored(name, runs[:4]), "other seeds"


def test_worlds_kept_back_are_new_and_their_records_those_asked_for(held_out):
    runs = [run for _, run in held_out.planned()]
    rows = Counter(run.parameters["objective"] for run in runs)
    each = {"diet": 12, "supervised": 6}  # ten classes and κ = 50 under both laws, d = 10 and 20 under one
    assert rows == {objective: n * len(held_out.SEEDS) for objective, n in each.items()}
    assert not set(held_out.SEEDS) & {0, 1, 2, 3, 4}, "the seeds of the tables"
    records = json.loads(held_out.OUT.read_text(encoding="utf-8"))["records"]
    assert len(records) == len(runs) and all(map(held_out.is_of, records, runs))
    other = replace(runs[0], parameters=dict(runs[0].parameters) | {"steps": 17})
    assert not held_out.is_of(records[0], other) and not held_out.is_of(records[0], runs[-1])


def test_worlds_kept_back_continue_where_they_stopped(held_out, tmp_path, monkeypatch):
    runs = {run.key: run for _, run in held_out.planned()}
    committed = json.loads(held_out.OUT.read_text(encoding="utf-8"))["records"]
    record_of = dict(zip(runs, committed, strict=True))
    asked_for, limit = [], [2]

    def sweep(grid, workers, only, retry_failed):
        asked_for.append(list(only))

    def finished(grid, run):
        limit[0] -= 1
        return record_of[run.key] if limit[0] >= 0 else None

    monkeypatch.setattr(held_out, "sweep", sweep)
    monkeypatch.setattr(held_out, "finished", finished)
    path = tmp_path / "held_out.json"
    assert held_out.update(path, 1) == len(runs) - 2
    kept = json.loads(path.read_text(encoding="utf-8"))["records"]
    assert kept == [record_of[key] for keys in asked_for for key in keys][:2], (
        "what was done before the stop is in the file"
    )
    for record in kept:
        del record["row_map"]  # as if the parameter were younger than the record
    path.write_text(json.dumps({"records": kept}), encoding="utf-8")
    first, asked_for[:], limit[0] = asked_for[0], [], len(runs)
    assert held_out.update(path, 1) == 0
    assert sorted(itertools.chain(*asked_for)) == sorted(set(runs) - set(first[:2]))
    asked_for.clear()
    assert held_out.update(path, 1) == 0 and not asked_for, "nothing is left to do"


def test_surfaces_vary_what_the_appendix_of_the_paper_varies(surfaces):
    varied = {run.parameters[axis] for run in surfaces.RUNS.values() for axis in ("rows", "columns")}
    assert varied >= {"batch_size", "dim", "kappa", "conditional", "label_noise"}


def test_committed_surfaces_are_those_that_the_grid_asks_for(surfaces, monkeypatch):
    assert {path.stem for path in surfaces.DONE.glob("*.json")} == set(surfaces.RUNS)
    assert all(surfaces.is_stored(name) for name in surfaces.RUNS)
    more = {
        name: replace(run, parameters={**run.parameters, "seeds": [0, 1, 2, 3]}) for name, run in surfaces.RUNS.items()
    }
    monkeypatch.setattr(surfaces, "RUNS", more)
    assert not any(surfaces.is_stored(name) for name in more)


@pytest.mark.parametrize(
    "name", ["as it is", "Adam for all weights", "average of weights, decay .99", "self-distillation"]
)
def test_variants_of_the_recipe_train(recipe, monkeypatch, name):
    monkeypatch.setitem(recipe.WORLDS, "default", recipe.WORLDS["default"] | {"steps": 60, "dim": 3, "n_classes": 20})
    monkeypatch.setitem(recipe.VARIANTS, "no steps", replace(recipe.VARIANTS[name], config={"steps": 2}))
    trained, untrained = recipe.run("default", name, 0), recipe.run("default", "no steps", 0)
    assert trained["r2_z"] > untrained["r2_z"] + 0.05
    assert 0 < trained["excess"] < untrained["excess"]


def test_every_variant_changes_the_model_or_the_configuration(recipe):
    for name, variant in recipe.VARIANTS.items():
        for world in variant.worlds:
            config = recipe.WORLDS[world] | variant.config
            Config(**config)
            changed = variant.change or variant.average or variant.distil or config != recipe.WORLDS[world]
            assert (name == "as it is") != bool(changed), (name, world)


@pytest.fixture(scope="module")
def images(root):
    return tool(root, "images")


def test_image_runs_name_parameters_of_their_templates(images, root):
    for template, parameters, _ in images.EXPERIMENTS.values():
        known = papermill.inspect_notebook(root / "nbs" / "experiments" / f"{template}.ipynb")
        assert set(parameters) | {"out"} <= set(known), template


def test_committed_table_4_has_every_learner_of_both_sets(root):
    records = json.loads((root / "results" / "table4.json").read_text(encoding="utf-8"))["records"]
    asked = {"dataset", "factor", "model", "objective", "pearson_mean", "pearson_std", "n_seeds", "protocol"}
    assert all(asked <= record.keys() and record["n_seeds"] == 3 for record in records)
    found = {(r["dataset"], r["model"], r["objective"]) for r in records if r["protocol"] == "sound"}
    learners = {("pixels", "none"), *((model, how) for model in ("mlp", "small_cnn") for how in ("supervised", "diet"))}
    assert {(dataset, *learner) for dataset in ("sprites", "room") for learner in learners} <= found
    for record in records:
        ring = record["kind"] == "circular" and record["protocol"] == "sound"
        assert (record["pearson_mean"] is None) == ring
        assert -1 <= (record["r2_circular_mean"] if ring else record["pearson_mean"]) <= 1


def test_committed_image_worlds_are_recovered(root):
    records = json.loads((root / "results" / "vmf_sprites.json").read_text(encoding="utf-8"))["records"]
    assert [(r["objective"], r["seed"]) for r in records] == [
        (how, seed) for how in ("supervised", "diet") for seed in range(3)
    ]
    assert all(r["r2_z"] > r["r2_x"] and r["r2_z"] > r["r2_untrained"] for r in records)
    assert all(r["r2_z"] >= 0.99 for r in records if r["objective"] == "supervised")


def test_trials_called_those_of_the_table_are_so(tables, trials):
    wanted = [run.parameters for runs in tables.rows(2).values() for run in runs]
    for setting in (trials.TEN | trials.TEN_TABLE, trials.TEN | trials.TEN_FREE, trials.FIFTY | trials.FIFTY_TABLE):
        assert any(setting.items() <= parameters.items() for parameters in wanted)
    hard = trials.PUBLISHED | trials.PUBLISHED_TABLE
    assert any(hard.items() <= runs[0].parameters.items() for runs in tables.rows(3).values())


def test_recipe_has_every_variant(root, recipe):
    records = json.loads((root / "results" / "recipe.json").read_text(encoding="utf-8"))["records"]
    there = {(row["world"], row["variant"], row["seed"]) for row in records}
    assert there == {
        (w, name, seed) for name, variant in recipe.VARIANTS.items() for w in variant.worlds for seed in recipe.SEEDS
    }


@pytest.mark.parametrize("name", ["flat_minima", "free_rows_d20", "published_d20"])
def test_every_trial_has_its_record_and_every_record_its_trial(root, trials, name):
    rows = json.loads((root / "results" / f"{name}.json").read_text(encoding="utf-8"))["records"]
    assert [trials.place(row, trials.TRIALS[name]) for row in rows] == list(range(len(trials.TRIALS[name])))


@pytest.mark.parametrize("case", ["C1", "C2"])
def test_rows_of_a_class_scatter_unless_it_has_one(trials, case):
    world = {"n_classes": 10, "n_instances": 40, "case": case, "steps": 30, "batch_size": 128}
    by_instance, by_class = trials.run(world), trials.run(world | {"objective": "supervised", "n_instances": 10})
    assert by_instance["row_scatter"] > 0.01 and by_class["row_scatter"] == 0
    assert trials.place(by_instance, [world | {"steps": 31}, world]) == 1


@pytest.fixture(scope="module")
def bench(root):
    return tool(root, "bench")


@pytest.fixture
def training(bench):
    return bench.default_training(n_instances=200, batch=32, architecture="mlp")


def test_arithmetic_of_a_step_is_that_of_encoder_and_head(bench, training):
    flops, products = bench.products_of_step(training)
    layers = [*itertools.pairwise([5, 50, 250, 250, 250, 250, 50, 5]), (5, 200)]
    # Forward, and backward with respect to weights and inputs; no gradient is asked for the observations.
    assert flops == 2 * 32 * (3 * sum(a * b for a, b in layers) - 5 * 50)
    assert len(products()) == 3 * len(layers) - 1


def test_products_are_all_that_the_step_has(bench):
    flops, products = bench.products_of_step(bench.default_training(n_instances=200, batch=32))
    with FlopCounterMode(display=False) as counter:
        products()
    assert counter.get_total_flops() == flops


def test_products_have_the_layout_of_the_step(bench, training, monkeypatch):
    seen = []
    _, products = bench.products_of_step(training)
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append((a, b)) or matmul(a, b))
    products()
    by_coordinate = [b.stride() for a, b in seen if a.shape == (32, 200) and b.shape == (200, 5)]
    assert by_coordinate == [(1, 200)], "the gradient with respect to the features"


def test_parts_of_a_step_train(bench, training):
    run = training.runs[0]
    before = [p.detach().clone() for p in run.head.parameters()]
    parts = bench.parts_of_step(training)
    assert list(parts) == ["draw", "forward", "gradient", "update", "step"]
    assert len(parts["draw"]().x) == 32 and parts["forward"]().requires_grad
    parts["gradient"]()
    assert all(torch.equal(a, b) for a, b in zip(before, run.head.parameters(), strict=True))
    parts["update"]()
    after = [p.detach().clone() for p in run.head.parameters()]
    assert not torch.equal(before[0], after[0])
    parts["step"]()
    assert not torch.equal(after[0], run.head.weight)


def test_tasks_take_turns(bench):
    calls = []
    took = bench.seconds_in_turn(
        {name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, at_least=0.001
    )
    assert [name for name, _ in itertools.groupby(calls)] == ["a", "b"] * 4, "once to count, then three rounds"
    assert took.keys() == {"a", "b"} and min(took.values()) > 0


def test_a_step_is_timed_with_weights_that_stay_beside_its_limit(bench, monkeypatch):
    trainings, small = [], bench.default_training

    def remembered(batch, architecture):
        trainings.append(small(n_instances=200, batch=batch // 32, architecture=architecture))
        return trainings[-1]

    def told(tasks, rounds):
        before = [p.detach().clone() for group in trainings[-1].optimizers for p in group.param_groups[0]["params"]]
        for task in tasks.values():
            task()
        after = [p for group in trainings[-1].optimizers for p in group.param_groups[0]["params"]]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return {"draw": 1, "forward": 2, "gradient": 5, "update": 1, "step": 8, "products": 4, "square": 2}

    monkeypatch.setattr(bench, "default_training", remembered)
    monkeypatch.setattr(bench, "seconds_in_turn", told)
    rows = bench.step()
    assert {(row["architecture"], row["batch"]) for row in rows} == set(itertools.product(ARCHITECTURES, (512, 1024)))
    for row in rows:
        assert row["backward_ms"] == 3e3 and row["step_over_products"] == 2
        assert row["step_over_limit"] == pytest.approx(8 / (2 * row["mflop"] * 1e6 / 2**31))
        assert row["limit_ms"] * row["step_over_limit"] == pytest.approx(row["step_ms"])


@pytest.fixture(scope="module")
def gpu(tables, root):
    return tool(root, "gpu")


@pytest.mark.parametrize("number", [2, 3])
def test_groups_for_a_gpu_are_all_runs_of_a_table(gpu, tables, number):
    groups = gpu.groups(number).values()
    wanted = [
        run.parameters | {"seeds": (run.varied["seed"],)} for runs in tables.rows(number).values() for run in runs
    ]
    own = {field.name for field in fields(Config)} - {"device"}

    def said(run):
        return repr(sorted((name, value) for name, value in run.items() if name in own))

    assert Counter(said(run) for group in groups for run in group) == Counter(said(run) for run in wanted)
    for group in groups:
        configs = [Config(**member) for member in group]
        assert len({(config.g_law, config.seeds) for config in configs}) == len(group)
        assert len({replace(config, g_law="published", seeds=(0,)) for config in configs}) == 1


def test_a_group_gives_a_record_for_each_law_that_it_has(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    member = {"n_instances": 40, "n_classes": 10, "steps": 3, "batch_size": 16, "device": "cpu"}
    both = [member | {"g_law": law, "seeds": (seed,)} for law in ("published", "conditioned") for seed in (0, 1, 2)]
    needed = gpu.operations(Config(**member)) * 3 / 1e9
    for group, seeds in ((both[:5], {"published": 3, "conditioned": 2}), (both[:3], {"published": 3})):
        records = {record["g_law"]: record for record in gpu.run_group(group)}
        assert {law: record["n_seeds"] for law, record in records.items()} == seeds
        assert math.isfinite(records["published"]["r2_z_mean"])
        each = records["published"]["seconds"] / 3
        for law, n in seeds.items():
            assert records[law]["gflop"] == pytest.approx(n * needed)
            assert records[law]["seconds"] == pytest.approx(n * each)
