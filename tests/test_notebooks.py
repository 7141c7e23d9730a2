"""Every experiment runs under papermill with parameters that are small but not its defaults, and they take effect."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from imagenetx_files import chosen, write_validation

from cegen.images.imagenetx import FACTORS
from cegen.images.pretrained import lite0_weights

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
STUDIES = [f for f in EXPERIMENTS if f.stem.startswith("falsify_")]

# Experiments that write a result.json, with parameters that are small enough for seconds. The others have tests of their own below.
# (Reference and theory notebooks are tests themselves: tools/check_notebooks.py.)
SMOKE = {"identify": {"dim": 3, "n_classes": 20, "n_instances": 100, "steps": 100}}

pytestmark = pytest.mark.slow


def run(name: str, folder: Path, **parameters) -> Path:
    "Execute an experiment as `make demo` does; returns where the executed notebook lies."
    executed = folder / f"{name}.ipynb"
    papermill.execute_notebook(
        ROOT / "nbs" / "experiments" / f"{name}.ipynb",
        executed,
        parameters={"out": str(folder), **parameters},
        kernel_name="python3",
        progress_bar=False,
        cwd=folder,
    )
    return executed


def strict_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


@pytest.fixture(scope="module", params=list(SMOKE))
def executed(request, tmp_path_factory):
    "Name, folder and notebook of an experiment that has run."
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    return name, folder, run(name, folder, **SMOKE[name])


def test_parameters_take_effect(executed):
    name, folder, _ = executed
    config = strict_json(folder / "result.json")["config"]
    assert {key: config[key] for key in SMOKE[name]} == SMOKE[name]


def test_result_holds_scores_of_that_run(executed):
    name, folder, _ = executed
    (record,) = strict_json(folder / "result.json")["records"]
    for key in ("dim", "n_classes", "n_instances", "steps"):
        assert record[key] == SMOKE[name][key]
    assert -1 < record["r2_z"] <= 1
    assert record["excess"] > -5 * record["excess_se"], "no model beats the Bayes optimum"


def test_executed_notebook_tells_its_parameters_and_shows_pictures(executed):
    name, _, notebook = executed
    content = nbformat.read(notebook, as_version=4)
    assert content.metadata.papermill.parameters.items() >= SMOKE[name].items()
    kinds = {kind for cell in content.cells for out in cell.get("outputs", []) for kind in out.get("data", {})}
    assert "image/png" in kinds


def test_unknown_parameter_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as failure:
        run("identify", tmp_path, **SMOKE["identify"], n_clases=20)
    assert failure.value.ename == "ValueError"
    assert "'n_clases'" in failure.value.evalue
    assert "Did you mean 'n_classes'?" in failure.value.evalue
    assert not (tmp_path / "result.json").exists(), "nothing may run under a wrong name"


def test_invalid_value_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as failure:
        run("identify", tmp_path, **{**SMOKE["identify"], "dim": 1})
    assert failure.value.ename == "ValueError"
    assert "dim=1" in failure.value.evalue
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("path", STUDIES, ids=lambda f: f.stem)
def test_study_runs_and_judges_its_prediction(path, tmp_path):
    run(path.stem, tmp_path, steps=10, batch_size=64)
    study = strict_json(tmp_path / f"{path.stem.removeprefix('falsify_')}.json")
    assert study["prediction"] and study["question"] and study["verdict"]
    assert study["held"] in (True, False)
    assert study["settings"] == {"steps": 10, "batch_size": 64}
    assert len(study["records"]) > 2
    assert all(r["excess"] > -5 * r["excess_se"] and r["findings"] for r in study["records"])


def test_reference_notebook_that_fails_or_dies_is_named(tmp_path):
    cells = {
        "fine": "import cegen",
        "fails": "assert 1 == 2",
        "dies": "import os\nos._exit(3)",
        "skipped": "#| cuda\n1 / 0",
    }
    for name, source in cells.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, ROOT / "tools" / "check_notebooks.py", *(tmp_path / f"{name}.ipynb" for name in cells)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    named = done.stderr.strip().splitlines()[-1]
    assert [name for name in cells if f"{name}.ipynb" in named] == ["fails", "dies"]


def test_every_experiment_is_tested():
    others = {"relatives", "surface", "image_world", "analogies", "dislib", "imagenetx"}
    assert {f.stem for f in EXPERIMENTS} == {*SMOKE, *(f.stem for f in STUDIES), *others}


def test_relatives_learn_on_one_world(tmp_path):
    run("relatives", tmp_path, dim=3, n_classes=20, n_instances=40, steps=60, batch_size=128)
    stored = strict_json(tmp_path / "relatives.json")
    assert [record["method"] for record in stored["records"]] == ["diet", "supervised", "infonce", "tcl", "gcl"]
    assert stored["config"]["steps"] == 60
    assert all(-1 < record["r2_z"] <= 1 for record in stored["records"])
    assert stored["records"][0]["broken"] == [] and "uniform marginal" in stored["records"][2]["broken"]


SURFACE = {"rows": "dim", "row_values": [2, 3], "columns": "kappa", "column_values": [5.0, 20.0], "seeds": [0, 1],
           "base": {"n_classes": 10, "n_instances": 50, "steps": 10, "n_test": 400, "g_law": "conditioned"}}  # fmt: skip


def test_surface_has_a_record_for_each_run_of_each_cell(tmp_path):
    run("surface", tmp_path, **SURFACE)
    content = strict_json(tmp_path / "surface.json")
    cells = [(record["dim"], record["kappa"], record["seed"]) for record in content["records"]]
    assert cells == [(d, kappa, seed) for d in (2, 3) for kappa in (5.0, 20.0) for seed in (0, 1)]
    assert {record["steps"] for record in content["records"]} == {10}


def test_surface_refuses_a_wrong_cell_before_the_first_run(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="dim"):
        run("surface", tmp_path, **{**SURFACE, "row_values": [3, -1]})
    assert not (tmp_path / "surface.json").exists()


SMALL = {"size": 16, "steps": 40, "batch_size": 64, "seeds": [0]}


def test_image_world_is_learnt_better_than_by_an_untrained_network(tmp_path):
    notebook = run("image_world", tmp_path, **SMALL, dim=3, n_classes=20, n_instances=40, n_test=400)
    content = strict_json(tmp_path / "result.json")
    (record,) = content["records"]
    assert record["r2_untrained"] + 0.05 < record["r2_z"] <= 1
    assert 0 < record["accuracy"] < record["accuracy_bayes"] + 0.05
    assert record["excess"] > -5 * record["excess_se"]
    assert len(content["recovered"]["z"]) == len(content["recovered"]["aligned"]) == 200
    assert "injective generator" in notebook.read_text(encoding="utf-8"), "the assumptions are checked and shown"


@pytest.mark.parametrize(("labels", "n_factors"), [("classes", 5), ("shape", 4)])
def test_analogies_are_measured_for_every_pair_of_factors(tmp_path, labels, n_factors):
    run("analogies", tmp_path, **SMALL, labels=labels, n_analogies=30, n_labelled=[10, 40], n_test=100)
    content = strict_json(tmp_path / f"{labels}.json")
    pairs = n_factors * (n_factors - 1) // 2
    codes = ["trained", "untrained", "pixels"]
    assert [row["code"] for row in content["analogies"]] == [code for code in codes for _ in range(pairs)]
    assert all(0 < row["parallelogram_error"] and 0 <= row["retrieval_accuracy"] <= 1 for row in content["analogies"])
    assert [(row["code"], row["n_labelled"]) for row in content["transfer"]] == [
        (c, n) for c in codes for n in (10, 40)
    ]
    assert all(0 <= row["r2"] <= 1 for row in content["transfer"])


DISLIB = {"n_train": 300, "n_validation": 60, "n_test": 60, "networks": ["pixels", "mlp"]}


@pytest.mark.parametrize("protocol", ["sound", "official"])
def test_table_4_scores_every_factor_of_every_learner(tmp_path, protocol):
    run("dislib", tmp_path, **SMALL, **DISLIB, protocol=protocol, objectives=["none", "supervised", "diet"])
    records = strict_json(tmp_path / "result.json")["records"]
    learners = [("pixels", "none"), ("mlp", "none"), ("mlp", "supervised"), ("mlp", "diet")]
    factors = ["shape", "scale", "orientation", "posX", "posY"]
    found = [(r["model"], r["objective"], r["factor"]) for r in records]
    assert found == [(*learner, factor) for learner in learners for factor in factors]
    circular = [r for r in records if r["factor"] == "orientation"]
    assert all(
        ("r2_circular" in r) == (protocol == "sound") and ("pearson" in r) != (protocol == "sound") for r in circular
    )
    assert all((r["accuracy"] is None) == (r["objective"] != "supervised") for r in records)


QUICK = {"n_seeds": 2, "min_rows": 1, "baselines": ["untrained"]}


def test_imagenetx_runs_offline_on_edited_photographs(tmp_path):
    notebook = run("imagenetx", tmp_path, n_pictures=60, **QUICK)
    content = strict_json(tmp_path / "result.json")
    models = ["efficientnet_lite0 trained", "efficientnet_lite0 untrained"]
    assert [model["model"] for model in content["models"]] == models
    found = {(row["split"], row["model"], row["factor"]) for row in content["records"]}
    assert len(found) == len(content["records"]) == 2 * 2 * 14
    scored = [row for row in content["records"] if not row["skipped"]]
    assert scored and all(0 <= row["accuracy_mean"] <= 1 and row["n_positive"] > 0 for row in scored)
    assert {row["baseline"] for row in content["comparisons"]} == {models[1]}
    assert "image/png" in notebook.read_text(encoding="utf-8")


@pytest.mark.parametrize(("by_class", "protocol"), [(False, "sound"), (True, "official")])
def test_imagenetx_makes_figure_3_from_a_folder_and_weights(tmp_path, by_class, protocol):
    "The real path on made-up pictures: both layouts, both variants, factors with too few positives named."
    annotations = chosen()
    folder = write_validation(tmp_path / "val", annotations, by_class)
    weights = {"efficientnet_lite0": str(lite0_weights())}
    options = {"imagenet_val": str(folder), "partial": True, "weights": weights, "protocol": protocol}
    run("imagenetx", tmp_path, **QUICK | {"min_rows": 3, "baselines": []}, **options)
    content = strict_json(tmp_path / "result.json")
    assert content["config"]["weights"] == {"efficientnet_lite0": lite0_weights().name}, "no path of this machine"
    variants = {which: [row for row in content["records"] if row["variant"] == which] for which in ("top", "multi")}
    for rows in variants.values():
        assert [row["factor"] for row in rows if row["split"] == "random"] == ["class", *FACTORS]
    counts = {row["factor"]: row["n_positive"] for row in variants["multi"]}
    assert {name: counts[name] for name in FACTORS} == annotations[list(FACTORS)].sum().to_dict()
    splits = ["class", "random"] if protocol == "sound" else ["random"]
    assert list(dict.fromkeys(row["split"] for row in content["records"])) == splits
    skipped = {row["factor"]: row["skipped"] for row in variants["top"] if row["skipped"] and row["split"] == "random"}
    assert skipped and all("fewer than 3" in reason for reason in skipped.values())
    assert all((row["accuracy_mean"] is None) == bool(row["skipped"]) for row in content["records"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"imagenet_val": "val"}, "a weight file for each network"),
        ({"weights": {"resnet5": "resnet50-11ad3fa6.pth"}}, "resnet50"),
        ({"imagenet_val": "val", "weights": {"resnet50": "resnet50-11ad3fa6.pth"}}, "a folder that exists"),
        ({"baselines": ["pixel"]}, "Did you mean 'pixels'?"),
    ],
)
def test_imagenetx_refuses_before_anything_is_computed(tmp_path, given, message):
    with pytest.raises(papermill.PapermillExecutionError) as failure:
        run("imagenetx", tmp_path, **given)
    assert failure.value.ename == "ValueError" and message in failure.value.evalue
    assert not (tmp_path / "result.json").exists() and not (tmp_path / "features").exists()
