"""One experiment end to end: what defines it, what it leaves, and what happens when it is interrupted."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cegen import Config, identify
from cegen import run as run_module
from cegen.cli import app, config_options
from cegen.model import SampledHead
from cegen.run import RECIPES, checkpoint_folder, run_seed

SMALL = Config(dim=3, n_classes=8, n_instances=40, g_law="conditioned", steps=40, batch_size=64, width=16, n_blocks=1,
               eval_every=20, n_test=400, device="cpu")  # fmt: skip
ARGUMENTS = "identify --dim 3 --n-classes 8 --n-instances 40 --g-law conditioned --steps 40 --batch-size 64".split()
ARGUMENTS += "--width 16 --n-blocks 1 --eval-every 20 --n-test 400 --device cpu".split()


def scores(result):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in result.records]


def test_same_configuration_same_numbers_and_each_seed_its_own():
    a, b = identify(replace(SMALL, seeds=(0, 1))), identify(replace(SMALL, seeds=(1,)))
    assert scores(a)[1] == scores(b)[0]
    assert scores(a)[0]["r2_z"] != scores(a)[1]["r2_z"]


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    identify(SMALL)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("case", ["C1", "C2", "C3", "C4"])
@pytest.mark.parametrize("objective", ["diet", "supervised"])
def test_every_case_and_objective_gives_a_whole_record(case, objective):
    (record,) = identify(replace(SMALL, case=case, objective=objective)).records
    assert record["case"] == case
    assert record["floor"] <= record["loss"] + 5 * record["excess_se"]
    assert record["r2_z_low"] <= record["r2_z"] <= record["r2_z_high"]
    for name in ("r2_z", "r2_procrustes", "official_r2_z", "mcc", "excess", "beta", "kappa", "seconds"):
        assert isinstance(record[name], float), name


@pytest.mark.parametrize("conditional", ["normal", "laplace", "generalized_normal"])
def test_other_conditionals_have_a_floor_and_no_kappa(conditional):
    (record,) = identify(replace(SMALL, conditional=conditional, scale=0.5)).records
    assert record["kappa"] is None
    assert record["concentration"] == 0.5
    assert record["excess"] > -5 * record["excess_se"]


@pytest.mark.parametrize(
    "extra",
    [
        {"label_noise": 0.2, "noisy_classes": 4},
        {"observed_dim": 6},
        {"class_vectors": "concentrated"},
        {"architecture": "mlp"},
        {"n_classes": 1},
        {"n_classes": 40},
        {"kappa": 0.0},
        {"precision": "bf16-mixed"},
        {"softmax": "sampled"},
        {"head_decay": "inverse"},
        {"negative_slope": 0.2},
        {"row_map": True},
        {"softmax": "sampled", "case": "C1", "objective": "supervised", "row_map": True},
        {"softmax": "sampled", "case": "C1", "objective": "supervised"},
    ],
)
def test_corners_run_to_valid_json(extra, tmp_path):
    identify(replace(SMALL, **extra), out=tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert stored["config"].items() >= extra.items()


def test_sampled_softmax_trains_a_head_of_its_kind_that_is_scored_on_all_labels():
    full, sampled = identify(SMALL), identify(replace(SMALL, softmax="sampled"))
    assert type(sampled.trials[0].fit.head) is SampledHead
    assert sampled.records[0]["softmax"] == "sampled"
    assert sampled.records[0]["floor"] == full.records[0]["floor"]
    assert sampled.records[0]["loss"] != full.records[0]["loss"]
    assert 0 < sampled.records[0]["excess"] < math.log(SMALL.n_instances)


def test_result_on_disk_is_the_result_in_memory_and_a_second_call_gives_it_again(tmp_path):
    first = identify(SMALL, out=tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["records"] == json.loads(json.dumps(first.records))
    again = identify(SMALL, out=tmp_path)
    assert again.records[0]["seconds"] == first.records[0]["seconds"], "nothing was trained again"
    assert scores(again) == scores(first)


def test_a_folder_of_another_configuration_is_refused_and_left_alone(tmp_path):
    identify(SMALL, out=tmp_path)
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(ValueError, match=r"there, kappa is 10\.0"):
        identify(replace(SMALL, kappa=20.0), out=tmp_path)
    assert (tmp_path / "result.json").read_text() == before
    assert checkpoint_folder(tmp_path, replace(SMALL, kappa=20.0), 0) != checkpoint_folder(tmp_path, SMALL, 0)


def test_more_seeds_are_added_to_those_that_are_there(tmp_path):
    identify(SMALL, out=tmp_path)
    identify(replace(SMALL, seeds=(1,)), out=tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert [record["seed"] for record in stored["records"]] == stored["config"]["seeds"] == [0, 1]


def test_seeds_that_another_process_adds_meanwhile_are_kept(tmp_path, monkeypatch):
    def meanwhile(config, seed, out, log):
        if seed == 0:
            identify(replace(config, seeds=[7]), out)
        return run_seed(config, seed, out, log)

    monkeypatch.setattr(run_module, "run_seed", meanwhile)
    identify(replace(SMALL, seeds=[0]), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["config"]["seeds"] == [0, 7]


def test_a_curve_is_of_one_run_only(tmp_path):
    def interrupt(step, *args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            identify(replace(SMALL, eval_every=SMALL.steps // 2 - 1), tmp_path)
    identify(SMALL, tmp_path)
    assert list(pd.read_csv(tmp_path / "seed0.csv").step) == list(
        range(SMALL.eval_every, SMALL.steps + 1, SMALL.eval_every)
    )


def test_numbers_of_numpy_are_numbers(unchecked, tmp_path):
    plain = identify(SMALL, tmp_path / "plain")
    numpy = replace(
        SMALL, dim=np.int64(SMALL.dim), kappa=np.float32(SMALL.kappa), steps=np.int16(SMALL.steps), seeds=np.array([0])
    )
    assert identify(numpy, tmp_path / "numpy").records[0]["loss"] == plain.records[0]["loss"]
    stored = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("plain", "numpy")]
    assert stored[0]["config"] == stored[1]["config"]


def test_features_of_a_trial_may_be_trained_on():
    z_tilde = identify(SMALL).trials[0].z_tilde()
    torch.nn.Linear(z_tilde.shape[1], 1)(z_tilde).sum().backward()


def test_broken_result_is_refused_and_a_half_written_checkpoint_does_no_harm(tmp_path):
    folder = checkpoint_folder(tmp_path, SMALL, 0)
    folder.mkdir(parents=True)
    (folder / ".last.safetensors.0123.tmp").write_bytes(b"half")
    identify(SMALL, out=tmp_path)
    (tmp_path / "result.json").write_text('{"records": [')
    with pytest.raises(ValueError, match="Delete that file"):
        identify(SMALL, out=tmp_path)


def test_interrupt_keeps_the_last_checkpoint_and_the_next_call_finishes(tmp_path):
    arguments = [*ARGUMENTS, "--steps", "1500", "--out", str(tmp_path)]
    command = [sys.executable, "-c", "from cegen.cli import app; app()", *arguments]
    process = subprocess.Popen(
        command,
        env={**os.environ, "CEGEN_PROGRESS": "0"},
        stderr=subprocess.DEVNULL,
        # A background job of a shell is born deaf to Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = checkpoint_folder(tmp_path, replace(SMALL, steps=1500), 0) / "last.safetensors"
    for _ in range(2000):
        if checkpoint.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert checkpoint.exists()
    assert not (tmp_path / "result.json").exists()
    done = subprocess.run(
        command, env={**os.environ, "CEGEN_PROGRESS": "0"}, capture_output=True, text=True, check=True
    )
    assert "R² z̃→z" in done.stdout
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditional": "gauss"}, "one of 'vmf'"),
        ({"case": "c1"}, "one of 'C1', 'C2', 'C3', 'C4'"),
        ({"objective": "dite"}, "Did you mean 'diet'"),
        ({"g_law": "haar"}, "one of 'conditioned', 'published'"),
        ({"architecture": "cnn"}, "architecture='cnn'"),
        ({"softmax": "half"}, "one of 'full', 'sampled'"),
        ({"row_map": "yes"}, "row_map='yes' is not valid: it must be True or False"),
        ({"precision": "fp8"}, "one of 'fp32', 'bf16-mixed'"),
        ({"n_test": 3}, "n_test=3"),
        ({"n_test": 21, "dim": 6}, "n_test=21"),
        ({"kappa": "ten"}, "kappa='ten'"),
        ({"steps": "100"}, "steps='100'"),
        ({"seeds": "0,1"}, "a list of integers"),
        ({"seeds": None}, "a list of integers"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, 0)}, "all different"),
        ({"seeds": (-1,)}, "seeds=-1"),
        ({"dim": 1}, "dim=1"),
        ({"kappa": -1.0}, r"kappa=-1\.0"),
        ({"n_classes": 41}, "n_classes=41"),
        ({"steps": 0}, "steps=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"precision": "fp8"}, "one of 'fp32', 'bf16-mixed'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"n_instances": 1, "n_classes": 1}, "nothing to predict"),
    ],
)
def test_bad_configurations_are_named_before_training(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        identify(replace(SMALL, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "precision='fp16' is not valid: it must be one of 'fp32', 'bf16-mixed'"),
        ({"batch_size": 0}, "batch_size=0 is not valid: it must be an integer ≥ 1"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"lr": 0.0}, r"lr=0\.0 is not valid: it must be a finite number > 0"),
        ({"head_decay": "linear"}, "head_decay='linear'"),
        ({"negative_slope": 2.0}, r"negative_slope=2\.0"),
        ({"label_noise": 1.1}, r"label_noise=1\.1"),
    ],
)
def test_a_configuration_checks_what_training_takes(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can be written to"):
        identify(SMALL, out=tmp_path / "file")


# ---- the command line


def test_options_are_the_fields_of_config_with_their_defaults():
    options = {option.name: option for option in config_options()}
    assert list(options) == [field.name for field in fields(Config)]
    assert options["seeds"].default == [0]
    assert all(options[f.name].default == f.default for f in fields(Config) if f.name != "seeds")


def test_json_is_one_object_and_the_same_result():
    done = CliRunner().invoke(app, [*ARGUMENTS, "--json", "--seeds", "0", "--seeds", "3"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert [record["seed"] for record in answer["records"]] == [0, 3]
    assert answer["records"][0]["r2_z"] == identify(SMALL).records[0]["r2_z"]


def test_options_beside_a_recipe_go_before_it_even_at_their_default():
    quick = CliRunner().invoke(app, [*ARGUMENTS, "--recipe", "quick", "--hidden-lr", "0.03", "--json"])
    config = json.loads(quick.stdout)["config"]
    assert config["case"] == RECIPES["quick"]["case"] and config["steps"] == SMALL.steps
    again = CliRunner().invoke(app, [*ARGUMENTS, "--recipe", "quick", "--case", "C4", "--json"])
    assert json.loads(again.stdout)["config"]["case"] == "C4"


def test_help_names_every_recipe():
    shown = CliRunner().invoke(app, ["identify", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_configurations(recipe):
    config = Config.from_parameters({"dim": 4}, recipe)
    assert config == Config(dim=4, **RECIPES[recipe])
    with pytest.raises(ValueError, match="recipe='nope'"):
        Config.from_parameters({}, "nope")


def test_table_names_what_matters():
    shown = CliRunner().invoke(app, ARGUMENTS).stdout
    for words in ("R² z̃→z", "R² x→z", "R² w→v", "excess loss", "κ is 10.00", "seconds"):
        assert words in shown


def test_report_shows_what_identify_stored(tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, [*ARGUMENTS, "--out", str(tmp_path)]).stdout
    assert runner.invoke(app, ["report", str(tmp_path)]).stdout == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["identify", "--case", "C7"], "one of 'C1', 'C2', 'C3', 'C4'"),
        (["identify", "--kappa", "-3"], "kappa=-3.0"),
        (["report", "no/such/place"], "exists"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_status_2(unchecked, arguments, message):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_broken_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text("{")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "result.json" in done.stderr
