"""Training: killed with SIGKILL and resumed to the same bits, wrong checkpoints refused, and recovery beside its control."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch

from cegen import (
    CheckpointError,
    ClusterDGP,
    Config,
    Encoder,
    Head,
    InvertibleMLP,
    SyntheticSource,
    TrainingDiverged,
    fit,
)
from cegen.core import random_stream
from cegen.run import make_model, make_source, run_seed, score
from cegen.train import CHECKPOINT, load_checkpoint

OPTIONS = {"steps": 400, "batch_size": 64, "eval_every": 10, "device": "cpu"}

CHILD = textwrap.dedent("""
    import sys
    import torch
    from cegen import ClusterDGP, Encoder, Head, InvertibleMLP, SyntheticSource, fit

    torch.set_num_threads(1)
    source = SyntheticSource(ClusterDGP(3, 12, 120, seed=0), InvertibleMLP(3))
    fit(source, Encoder(3, 3, width=16, n_blocks=1), Head(120, 3), checkpoint=sys.argv[1],
        steps=400, batch_size=64, eval_every=10, device="cpu")
""")


def world(seed=0):
    source = SyntheticSource(ClusterDGP(3, 12, 120, seed=seed), InvertibleMLP(3))
    return source, Encoder(3, 3, width=16, n_blocks=1), Head(120, 3)


def child(folder):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "CEGEN_PROGRESS": "0"})


def weights(folder):
    tensors, header = load_checkpoint(folder / CHECKPOINT)
    return tensors, header["step"]


def test_run_killed_with_sigkill_resumes_to_the_same_bits(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = child(killed)
    for _ in range(2000):
        if (killed / CHECKPOINT).exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, step = weights(killed)
    assert 0 < step < 400, "the run was killed in its middle"
    assert child(killed).wait() == 0
    assert child(whole).wait() == 0
    (a, last), (b, _) = weights(killed), weights(whole)
    assert last == 400
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoint_of_another_configuration_world_or_model_is_refused(tmp_path):
    options = {**OPTIONS, "steps": 10}
    fit(*world(), checkpoint=tmp_path, **options)
    with pytest.raises(CheckpointError, match="lr=0.01"):
        fit(*world(), checkpoint=tmp_path, **{**options, "lr": 1e-3})
    with pytest.raises(CheckpointError, match="source="):
        fit(*world(seed=1), checkpoint=tmp_path, **options)
    source, _, head = world()
    with pytest.raises(CheckpointError, match="encoder="):
        fit(source, Encoder(3, 3, width=8), head, checkpoint=tmp_path, **options)


def test_truncated_checkpoint_is_named(tmp_path):
    options = {**OPTIONS, "steps": 10}
    fit(*world(), checkpoint=tmp_path, **options)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        fit(*world(), checkpoint=tmp_path, **options)


def test_divergence_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    class Poisoned(SyntheticSource):
        draws = 0

        def sample(self, n, generator):
            batch = super().sample(n, generator)
            Poisoned.draws += n == OPTIONS["batch_size"]
            if Poisoned.draws > 25:
                batch.x.fill_(float("nan"))
            return batch

    source, encoder, head = world()
    with pytest.raises(TrainingDiverged, match="NaN or infinity in x"):
        fit(Poisoned(source.dgp, source.mixing), encoder, head, checkpoint=tmp_path, **OPTIONS)
    tensors, step = weights(tmp_path)
    assert step >= 10
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_a_nan_of_one_early_step_is_not_blamed_on_the_rate():
    class OnceBad(SyntheticSource):
        draws = 0

        def sample(self, n, generator):
            batch = super().sample(n, generator)
            if n == OPTIONS["batch_size"]:
                OnceBad.draws += 1
                if OnceBad.draws == 7:
                    batch.x.fill_(float("nan"))
            return batch

    source, encoder, head = world()
    with pytest.raises(TrainingDiverged, match="at step 7. Likely cause: the source gives NaN"):
        fit(OnceBad(source.dgp, source.mixing), encoder, head, **{**OPTIONS, "eval_every": 100})


def test_what_a_source_gives_is_looked_at_before_training():
    class Wrong(SyntheticSource):
        def sample(self, n, generator):
            batch = super().sample(n, generator)
            return replace(batch, **{name: change(getattr(batch, name)) for name, change in self.changes.items()})

    source, encoder, head = world()
    for changes, message in (
        ({"x": lambda x: x / 0}, "NaN or infinity"),
        ({"instance": lambda i: i + 1}, r"within 0 … 119"),
        ({"label": lambda c: c - 1}, r"within 0 … 11"),
    ):
        wrong = Wrong(source.dgp, source.mixing)
        wrong.changes = changes
        with pytest.raises(ValueError, match=message):
            fit(wrong, encoder, head, **OPTIONS)


def test_callbacks_add_numbers_of_their_own():
    options = {**OPTIONS, "steps": 10}
    history = fit(*world(), callbacks=[lambda step, f, head: {"twice": torch.tensor(2 * step)}], **options).history
    assert list(history.twice) == [20.0]
    with pytest.raises(ValueError, match="returns 'loss'"):
        fit(*world(), callbacks=[lambda step, f, head: {"loss": 0.0}], **options)


def test_what_is_no_source_is_named(unchecked):
    _, encoder, head = world()
    with pytest.raises(ValueError, match="a Source"):
        fit(torch.zeros(10, 3), encoder, head, **OPTIONS)


def test_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="can be written to"):
        fit(*world(), checkpoint=tmp_path / "file" / "runs", **OPTIONS)


def test_training_recovers_the_latents_and_an_untrained_encoder_does_not():
    config = Config(dim=3, n_classes=20, n_instances=200, case="C1", steps=500, batch_size=512, width=64, n_blocks=2,
                    g_law="conditioned", n_test=4000, device="cpu")  # fmt: skip
    trial = run_seed(config, seed=0)
    source = make_source(config, 0)
    encoder, head = make_model(config, source, 0)
    untrained = score(source, encoder, head, "instance", source.sample(4000, random_stream(0, "test")), 0)
    assert trial.record["r2_z"] > 0.95 > untrained["r2_z"] + 0.05
    assert trial.record["excess"] < 0.2 < untrained["excess"]
    assert trial.record["r2_w"] > 0.9 > trial.record["r2_w_random"]
