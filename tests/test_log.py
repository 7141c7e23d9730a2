"""Curves reach every place they are sent to; tools that are not installed are skipped, and told to a user who asks for one."""

import subprocess
import sys

import pandas as pd
import pytest

from cegen import Config, identify
from cegen.log import check_logs, csv_log, open_logs

SMALL = {"dim": 2, "n_classes": 10, "n_instances": 40, "steps": 60, "batch_size": 64, "eval_every": 20, "n_test": 100, "device": "cpu"}  # fmt: skip
COLUMNS = {"step", "train_loss", "loss", "excess", "r2_z", "seconds"}


def test_every_run_leaves_its_curve(tmp_path):
    result = identify(Config(**SMALL, seeds=(0, 1)), tmp_path)
    for seed, trial in zip((0, 1), result.trials, strict=True):
        curve = pd.read_csv(tmp_path / f"seed{seed}.csv")
        assert set(curve) == COLUMNS and list(curve.step) == [20, 40, 60]
        pd.testing.assert_frame_equal(curve[sorted(curve)], trial.fit.history[sorted(curve)], check_dtype=False)


def test_resumed_run_goes_on_in_the_same_file(tmp_path):
    class Stop(Exception):
        pass

    def write(steps, fail_at=None):
        with csv_log(tmp_path, "seed0", {}) as log:
            for step in steps:
                if step == fail_at:
                    raise Stop
                log(step, {"loss": 1 / step})

    with pytest.raises(Stop):
        write((1, 2, 3), fail_at=3)
    write((2, 3, 4))
    assert list(pd.read_csv(tmp_path / "seed0.csv").step) == [1, 2, 3, 4]


def test_tensorboard_has_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    identify(Config(**SMALL), tmp_path, log=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "seed0")).Reload()
    assert set(events.Tags()["scalars"]) == COLUMNS - {"step"}
    assert [scalar.step for scalar in events.Scalars("r2_z")] == [20, 40, 60]
    assert [s.value for s in events.Scalars("loss")] == pytest.approx(list(pd.read_csv(tmp_path / "seed0.csv").loss))


def test_wandb_has_the_curve(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identify(Config(**SMALL), tmp_path, log=["wandb"])
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"r2_z" in run.read_bytes()


def test_mlflow_has_the_curve(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    identify(Config(**SMALL), tmp_path, log=["mlflow"])
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("cegen").experiment_id])
    assert run.data.params["dim"] == "2" and run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "r2_z")] == [20, 40, 60]


def test_nothing_is_imported_before_it_is_asked_for(tmp_path):
    code = (
        "import sys, cegen.log\nwith cegen.log.open_logs([], sys.argv[1], 'a', {}) as logs: logs[0](1, {'x': 1.0})\n"
        "sys.exit(sum(name in sys.modules for name in ('tensorboard', 'wandb', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_missing_package_is_told_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"), open_logs(["wandb"], tmp_path, "a", {}):
        pytest.fail("not opened")


def test_bad_names_are_refused_before_anything_runs(tmp_path):
    assert check_logs(["csv", "csv"]) == ["csv"]
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        identify(Config(**SMALL), tmp_path / "new", log=["wand"])
    with pytest.raises(ValueError, match="Give a folder"):
        identify(Config(**SMALL), log=["tensorboard"])
    assert not (tmp_path / "new").exists()
