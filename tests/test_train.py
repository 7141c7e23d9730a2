"""Training: killed with SIGKILL and resumed to the same bits, many runs as each alone, no waiting for the device, and recovery."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_vmf import Largest, NoLook
from torch import nn

from cegen import (
    ArraySource,
    CheckpointError,
    ClusterDGP,
    Config,
    Encoder,
    Head,
    InvertibleMLP,
    PairedSource,
    SyntheticSource,
    TrainingDiverged,
    VonMisesFisher,
    fit,
    fit_many,
    probe,
    vmf,
)
from cegen import dgp as dgp_module
from cegen import source as source_module
from cegen import sphere as sphere_module
from cegen import train as train_module
from cegen.core import random_stream
from cegen.model import SampledHead, Similarity
from cegen.objective import GCL, CrossEntropy, get_objective
from cegen.optim import Muon, RowAdam
from cegen.run import make_model, make_source, run_seed, score
from cegen.train import (
    BETAS,
    CHECKPOINT,
    DECAYS,
    N_PREPARE,
    RecordedStep,
    Run,
    Settings,
    alone,
    bytes_kept,
    check_alike,
    evaluate,
    evaluating,
    is_recordable,
    kinds,
    load_checkpoint,
    logits_held,
    mean_losses,
    save_checkpoint,
    schedule,
    set_rates,
    side_by_side,
    start_run,
    step_of,
    take_step,
    training_step,
)

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
    source, encoder, _ = world()
    with pytest.raises(CheckpointError, match="head="):
        fit(source, encoder, Head(120, 3, row_map=True), checkpoint=tmp_path, **options)


def test_checkpoint_of_other_labels_another_loss_or_other_trained_weights_is_refused(tmp_path):
    options, x = {**OPTIONS, "steps": 10}, torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 4

    def train_on(folder, label=labels, objective="supervised", frozen=(), head=None):
        encoder, head = Encoder(3, 3, width=16, n_blocks=2), head or Head(4, 3)
        for name in frozen:
            encoder.get_parameter(name).requires_grad_(False)
        fit(ArraySource(x, label=label), encoder, head, objective, checkpoint=tmp_path / folder, **options)

    train_on("labels")
    shown = ArraySource(x).sample(16, random_stream(0, "identity")).instance
    hidden_rows = [row for row in range(300) if row not in shown][:2]
    other = labels.clone()
    other[hidden_rows] = other[hidden_rows[::-1]]  # the first samples are the same
    assert not torch.equal(other, labels)
    with pytest.raises(CheckpointError, match="another source: its label differs"):
        train_on("labels", label=other)
    with pytest.raises(CheckpointError, match="log_beta='frozen', not 'head'"):
        train_on("labels", head=Head(4, 3, learn_beta=True))
    hidden = Encoder(3, 3, n_blocks=2).hidden_weights[0]
    with pytest.raises(CheckpointError, match=f"{hidden}='hidden', not 'frozen'"):
        train_on("labels", frozen=[hidden])
    gcl = [GCL(level=level) for level in ("class", "instance")]
    train_on("gcl", objective=gcl[0], head=gcl[0].make_head(ArraySource(x, label=labels), 3))
    with pytest.raises(CheckpointError, match=r"objective=.*level='class'.*not .*level='instance'"):
        source = ArraySource(x, label=labels, instance=labels)
        fit(
            source,
            Encoder(3, 3, width=16, n_blocks=2),
            gcl[1].make_head(source, 3),
            gcl[1],
            checkpoint=tmp_path / "gcl",
            **options,
        )


def test_fit_and_fit_many_do_not_resume_one_another(tmp_path):
    options = {**OPTIONS, "steps": 10}
    fit(*world(), checkpoint=tmp_path, **options)
    with pytest.raises(CheckpointError, match="use another folder"):
        fit_many(*([part] for part in world()), checkpoint=tmp_path, **options)


def test_a_checkpoint_that_lacks_something_is_named(tmp_path):
    fit(*world(), checkpoint=tmp_path, **{**OPTIONS, "steps": 10})
    tensors, header = load_checkpoint(tmp_path / CHECKPOINT)
    for without in ("run.0.encoder.whitening.mean", "run.0.generator", "layers"):
        save_checkpoint(tmp_path / CHECKPOINT, {name: t for name, t in tensors.items() if name != without}, header)
        with pytest.raises(CheckpointError, match="(?s)of another version.*start afresh"):
            fit(*world(), checkpoint=tmp_path, **{**OPTIONS, "steps": 10})


def test_an_objective_or_a_source_of_ones_own_resumes_whatever_it_holds(tmp_path):
    @dataclass(frozen=True)
    class Scaled:
        scale: float
        function: object
        name: str = "scaled"

        def n_rows(self, source):
            return source.n_instances

        def loss(self, features, head, batch):
            return self.function(self.scale * head.cross_entropy(features, batch.instance))

    class Counting(SyntheticSource):
        def __init__(self, *parts):
            super().__init__(*parts)
            self.register_buffer("drawn", torch.tensor(0))

        def sample(self, n, generator):
            self.drawn += 1
            return super().sample(n, generator)

    def losses(scale):
        source, encoder, head = world()
        source = Counting(source.dgp, source.mixing)
        return list(
            fit(
                source, encoder, head, Scaled(scale, lambda x: x), checkpoint=tmp_path, **{**OPTIONS, "steps": 20}
            ).history.loss
        )

    assert losses(1.0) == losses(1.0)
    with pytest.raises(CheckpointError, match="objective=.*1.0.* not .*2.0"):
        losses(2.0)


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


def with_layers_that_have_modes():
    layers = [Encoder(3, 8, width=8, n_blocks=0), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)]
    torch.manual_seed(0)
    layers[-1].reset_parameters()
    return nn.Sequential(*layers)


def test_evaluation_mode_is_left_in_the_way_in_which_it_was_entered():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    module = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2)).train()
    module[1].eval()
    with pytest.raises(KeyError), evaluating(module):
        assert module[0].merged and not module.training
        raise KeyError
    assert not module[0].merged and module[0].training and not module[1].training


def test_watching_changes_nothing():
    source, seen = world()[0], []

    def watch(step, encoder, head):
        seen.append(any(part.training for module in (encoder, head) for part in module.modules()))
        encoder(source.sample(100, 0).x)
        if step == 20:
            encoder.train(), head.eval()
        return {"spread": float(encoder[1].running_var.mean())}

    options = {**OPTIONS, "steps": 60}
    alone, watched = (
        fit(source, with_layers_that_have_modes(), Head(120, 3), callbacks=c, **options) for c in ([], [watch])
    )
    assert len(seen) == 6 and not any(seen), "callbacks find both modules in evaluation mode"
    assert list(alone.history.loss) == list(watched.history.loss)
    assert int(watched.encoder[1].num_batches_tracked) == 60, "and training goes on in training mode"


def test_layers_that_draw_follow_the_seed_and_resume_to_the_same_bits(tmp_path):
    def interrupt(step, encoder, head):
        if step == 30:
            raise KeyboardInterrupt

    def losses(disturbed=0, **options):
        source, encoder, head = world()[0], with_layers_that_have_modes(), Head(120, 3)
        torch.rand(disturbed)
        before = torch.get_rng_state()
        try:
            return list(fit(source, encoder, head, **{**OPTIONS, "steps": 60, **options}).history.loss)
        finally:
            assert torch.equal(torch.get_rng_state(), before), (
                "the program's own random numbers go on as if nothing had been"
            )

    whole = losses()
    assert losses(disturbed=5) == whole != losses(seed=1)
    with pytest.raises(KeyboardInterrupt):
        losses(checkpoint=tmp_path, callbacks=[interrupt])
    assert weights(tmp_path)[1] == 20
    assert losses(disturbed=3, checkpoint=tmp_path) == whole


def test_numbers_of_numpy_are_settings(unchecked, tmp_path):
    options = {**OPTIONS, "steps": np.int64(10), "lr": np.float32(0.01), "seed": np.int64(3)}
    fit(*world(), checkpoint=tmp_path, **options)
    assert weights(tmp_path)[1] == 10


def test_a_new_head_on_a_frozen_encoder_leaves_its_features_alone():
    options = {**OPTIONS, "steps": 20}
    source, encoder, head = world()
    fit(source, encoder, head, **options)
    encoder.requires_grad_(False)
    x = source.sample(50, 0).x
    before = encoder(x)
    head = Head(12, 3)
    other = SyntheticSource(ClusterDGP(3, 12, 120, kappa=30.0, seed=1), source.mixing)
    fit(other, encoder, head, "supervised", **options)
    assert torch.equal(encoder(x), before)
    assert not torch.equal(head.weight, Head(12, 3).weight)


def test_weights_that_are_lost_in_the_last_step_are_no_result():
    with pytest.raises(TrainingDiverged, match="After step 1 of the run with seed 0 .* is nan"):
        fit(*world(), **{**OPTIONS, "steps": 1, "lr": 1e38, "head_lr": 1e38, "warmup": 0})


def test_what_cannot_be_trained_is_named(unchecked):
    source, encoder, head = world()

    class Short(SyntheticSource):
        def sample(self, n, generator):
            batch = super().sample(n, generator)
            return replace(batch, label=batch.label.int())

    for parts, message in (
        ((source, lambda x: x, head), "encoder='function'.*an nn.Module"),
        ((source, encoder, None), "head='NoneType'.*"),
        ((source, nn.Identity(), Head(120, 3).requires_grad_(False)), "without a parameter that is trained"),
        ((Short(source.dgp, source.mixing), encoder, head), r"label='of torch.int32'.*\.long\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*parts, **OPTIONS)


def test_a_source_with_weights_of_its_own_is_not_trained():
    class Learnt(SyntheticSource):
        def __init__(self, *parts):
            super().__init__(*parts)
            self.scale = nn.Parameter(torch.ones(()))

        def sample(self, n, generator):
            batch = super().sample(n, generator)
            return replace(batch, x=self.scale * batch.x)

    source, encoder, head = world()
    source = Learnt(source.dgp, source.mixing)
    fit(source, encoder, head, **{**OPTIONS, "steps": 10})
    assert source.scale.grad is None


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
    trial = run_seed(config, seed=1)
    source = make_source(config, 1)
    encoder, head = make_model(config, source, 1)
    untrained = score(source, encoder, head, "instance", source.sample(4000, random_stream(1, "test")), 1)
    assert trial.record["r2_z"] > 0.95 > untrained["r2_z"] + 0.05
    assert trial.record["excess"] < 0.2 < untrained["excess"]
    assert trial.record["r2_w"] > 0.9 > trial.record["r2_w_random"]


# ---- before the first step, and the modes of the modules


class Prepared(Encoder):
    "An encoder that remembers what it was shown."

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.shown = []
        self.register_buffer("mean", torch.zeros(self.in_dim))

    def prepare(self, x):
        self.shown.append(x)
        self.mean = x.mean(0)


def test_an_encoder_is_shown_samples_once_and_not_when_a_run_is_resumed(tmp_path):
    source, _, head = world()
    encoder = Prepared(3, 3, width=16, n_blocks=1)
    fit(source, encoder, head, checkpoint=tmp_path, **{**OPTIONS, "steps": 10, "seed": 4})
    assert len(encoder.shown) == 1
    assert torch.equal(encoder.shown[0], source.sample(N_PREPARE, random_stream(4, "prepare")).x)
    again = Prepared(3, 3, width=16, n_blocks=1)
    fit(source, again, head, checkpoint=tmp_path, **{**OPTIONS, "steps": 10, "seed": 4})
    assert again.shown == []
    assert torch.equal(again.mean, encoder.mean), "what it saw the first time is part of the checkpoint"


def test_showing_samples_does_not_disturb_the_data_stream():
    plain = world()
    fit(*plain, **{**OPTIONS, "steps": 10})
    source, _, head = world()
    prepared = Prepared(3, 3, width=16, n_blocks=1)
    if prepared.whitening is not None:
        prepared.prepare = lambda x: Encoder.prepare(prepared, x)
    fit(source, prepared, head, **{**OPTIONS, "steps": 10})
    assert all(torch.equal(a, b) for a, b in zip(plain[1].parameters(), prepared.parameters(), strict=True))


def test_evaluation_sees_both_modules_in_evaluation_mode_and_training_in_training_mode():
    class Watched(Head):
        def forward(self, f):
            seen.append((len(f), self.training))
            return super().forward(f)

    seen = []
    source, encoder, _ = world()
    head = Watched(120, 3)
    result = fit(source, encoder, head, **{**OPTIONS, "steps": 10, "n_eval": 100})
    assert set(seen) == {(64, True), (100, False)}
    assert not result.encoder.training
    assert not result.head.training
    head.train()
    evaluate(source, encoder, head, get_objective("diet"), 100)
    assert head.training
    assert not encoder.training


# ---- sparse gradients


def sparse_world(n_instances=120, row_map=False):
    source = SyntheticSource(ClusterDGP(3, 12, n_instances, seed=0), InvertibleMLP(3))
    return source, Encoder(3, 3, width=16, n_blocks=1), SampledHead(n_instances, 3, learn_beta=True, row_map=row_map)


@pytest.mark.parametrize("row_map", [False, True])
def test_rows_with_sparse_gradients_get_an_adam_of_their_own_with_the_heads_rate(row_map):
    source, encoder, head = sparse_world(row_map=row_map)
    settings = Settings(lr=1e-3, hidden_lr=2e-3, head_lr=1e-2, head_decay="inverse", steps=1001, warmup=1)
    training = alone([start_run(source, encoder, head, get_objective("diet"), settings, torch.device("cpu"))])
    dense, muon, sparse = training.optimizers
    assert isinstance(muon, Muon)
    assert isinstance(sparse, torch.optim.SparseAdam)
    assert dense.defaults["fused"]
    assert {group["betas"] for optimizer in (dense, sparse) for group in optimizer.param_groups} == {BETAS}
    hidden = {id(encoder.get_parameter(name)) for name in encoder.hidden_weights}
    owner = {id(p): "hidden" if id(p) in hidden else "encoder" for p in encoder.parameters()} | {
        id(head.weight): "rows",
        id(head.log_beta): "beta",
    }
    if row_map:
        owner |= {id(p): "encoder" for p in head.row_map.parameters()}

    def rates(step):
        set_rates(training.optimizers, step, settings)
        groups = [(optimizer, group) for optimizer in training.optimizers for group in optimizer.param_groups]
        assert all(
            (optimizer is sparse) == (owner[id(p)] == "rows") for optimizer, group in groups for p in group["params"]
        )
        assert len(owner) == sum(len(group["params"]) for _, group in groups)
        return {owner[id(p)]: group["lr"] for _, group in groups for p in group["params"]}

    def expected(factor, of_head):
        each = {"encoder": 1e-3 * factor, "hidden": 2e-3 * factor, "beta": 1e-2 * of_head, "rows": 1e-2 * of_head}
        return pytest.approx(each)

    assert rates(0) == expected(0.5, 0.5), "half-way through the warm-up"
    assert rates(501) == expected(0.5, 2 / 502), "half-way through the cosine"


@pytest.mark.parametrize("kind", [Head, SampledHead])
def test_parameters_are_trained_as_the_modules_say_whatever_these_are_wrapped_in(kind):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.wrapped = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("wrapped"), name)

    def kinds_with(encoder, head):
        made = kinds(Run(world()[0], encoder, head, get_objective("diet"), Settings(), torch.Generator()))
        return {name.replace(".wrapped.", "."): of for name, of in made.items()}

    encoder, head = Encoder(3, 3, width=16, n_blocks=1), kind(120, 3, "C1", row_map=True)
    made = kinds_with(encoder, head)
    assert {name for name, of in made.items() if of == "hidden"} == {f"encoder.{n}" for n in encoder.hidden_weights}
    assert {name: of for name, of in made.items() if name.startswith("head.")} == {
        "head.weight": "head" if kind is Head else "rows",
        "head.log_beta": "head",
        "head.row_map.weight": "encoder",
        "head.row_map.bias": "encoder",
    }
    assert kinds_with(Wrapped(encoder), Wrapped(head)) == made
    encoder.__class__ = type("Misspelt", (Encoder,), {"hidden_weights": ["net.nowhere"]})
    with pytest.raises(AttributeError, match="nowhere"):
        kinds_with(encoder, head)


def test_inverse_of_time_follows_the_warm_up_whatever_the_number_of_steps():
    for steps, warmup in ((1, 0), (50, 0), (50, 20), (50, 50), (50, 200)):
        factors = [schedule(step, steps, warmup, "inverse") for step in range(steps)]
        at = range(1, steps + 1)
        assert factors == pytest.approx([min(t / (warmup + 1), (warmup + 1) / t) for t in at])
    with pytest.raises(ValueError, match="'inverse'"):
        schedule(0, 10, 0, "inverted")


def test_rates_that_are_tensors_are_filled_in_place():
    source, encoder, head = sparse_world()
    settings = Settings(head_decay="inverse", steps=100, warmup=0)
    training = alone([start_run(source, encoder, head, get_objective("diet"), settings, torch.device("cpu"))])
    groups = [group for optimizer in training.optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = torch.tensor(0.0)
    before = [group["lr"] for group in groups]
    set_rates(training.optimizers, 50, settings)
    assert all(group["lr"] is tensor for group, tensor in zip(groups, before, strict=True))
    factors = [float(group["lr"]) / group["base_lr"] for group in groups]
    assert factors == pytest.approx([0.5 if group["decay"] == "cosine" else 1 / 51 for group in groups])
    assert {group["decay"] for group in groups} == {"cosine", "inverse"}


def test_only_rows_that_were_drawn_move():
    source, encoder, head = sparse_world(n_instances=2000)
    before, drawn = head.weight.detach().clone(), []

    class Watched(SyntheticSource):
        def sample(self, n, generator):
            batch = super().sample(n, generator)
            if n == OPTIONS["batch_size"]:
                drawn.append(batch.instance)
            return batch

    fit(Watched(source.dgp, source.mixing), encoder, head, **{**OPTIONS, "steps": 10})
    moved = (head.weight.detach() != before).any(dim=1)
    assert torch.equal(moved.nonzero()[:, 0], torch.cat(drawn).unique())


@pytest.mark.parametrize(("decay", "row_map"), [*((decay, False) for decay in DECAYS), ("inverse", True)])
def test_sparse_and_dense_moments_resume_to_the_same_bits(tmp_path, decay, row_map):
    def interrupt(step, encoder, head):
        if step == 30:
            raise KeyboardInterrupt

    options = {**OPTIONS, "steps": 50, "head_decay": decay}
    whole = fit(*sparse_world(row_map=row_map), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(*sparse_world(row_map=row_map), callbacks=[interrupt], checkpoint=tmp_path, **options)
    assert weights(tmp_path)[1] == 20
    resumed = fit(*sparse_world(row_map=row_map), checkpoint=tmp_path, **options)
    for part in ("encoder", "head"):
        a, b = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert list(whole.history.loss) == list(resumed.history.loss)


# ---- many runs side by side


def worlds(n, **options):
    parts = []
    for seed in range(n):
        source = SyntheticSource(ClusterDGP(3, 12, 120, seed=seed), InvertibleMLP(3, seed=seed))
        encoder = Encoder(3, 3, width=16, n_blocks=1, generator=seed)
        parts.append((source, encoder, Head(120, 3, generator=seed, **options)))
    return [list(column) for column in zip(*parts, strict=True)]


def first_steps(objective, n_runs, heads, precision="fp32"):
    "The losses of the first twenty steps: of runs side by side, and of each alone."
    objective, losses = get_objective(objective), []
    for join in (side_by_side, alone):
        sources, encoders, _ = worlds(n_runs)
        models = zip(sources, encoders, heads(sources), strict=True)
        runs = [
            start_run(*model, objective, Settings(seed=k, batch_size=64, precision=precision), torch.device("cpu"))
            for k, model in enumerate(models)
        ]
        table = []
        for training in [join(runs)] if join is side_by_side else [join([run]) for run in runs]:
            set_rates(training.optimizers, 100, training.settings)
            rows = []
            for _ in range(20):
                batches = [run.source.sample(64, run.generator) for run in training.runs]
                rows.append(training_step(batches, training.losses_of, training.optimizers))
            table.append(torch.stack(rows))
        losses.append(torch.cat(table, dim=1))
    return losses


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("diet", {"case": "C4"}),
        ("diet", {"case": "C1"}),
        ("diet", {"case": "C1", "row_map": True}),
        ("supervised", {"case": "C2"}),
        ("supervised", {"case": "C3", "row_map": True}),
        ("tcl", {"case": "C4"}),
        ("gcl", {"case": "C4"}),
    ],
)
def test_the_first_steps_of_many_runs_are_those_of_each_alone(objective, options):
    def heads(sources):
        return [get_objective(objective).make_head(s, 3, generator=k, **options) for k, s in enumerate(sources)]

    together, each = first_steps(objective, 3, heads)
    assert together.shape == (20, 3)
    assert (each[-1] < each[0]).all(), "they learn"
    torch.testing.assert_close(together, each, rtol=1e-4, atol=0)


def test_half_precision_is_the_same_side_by_side_up_to_its_rounding():
    def heads(sources):
        return [Head(120, 3, generator=k) for k in range(len(sources))]

    together, each = first_steps("diet", 2, heads, precision="bf16-mixed")
    torch.testing.assert_close(together, each, rtol=0.05, atol=0)
    assert not torch.equal(each, first_steps("diet", 2, heads)[1])


def latents_explained(source, result):
    test = source.sample(2000, random_stream(0, "test"))
    with torch.inference_mode():
        z_tilde = result.head.features(result.encoder(test.x))
    return probe.r2_affine(test.z[:1000], z_tilde[:1000], test.z[1000:], z_tilde[1000:])


@pytest.mark.parametrize("model", [{}, {"case": "C2", "row_map": True}])
def test_many_runs_end_where_each_alone_would(model):
    options = {**OPTIONS, "steps": 200, "batch_size": 128, "eval_every": 100, "head_decay": "inverse"}
    seen = []
    callbacks = [[lambda step, f, head, k=k: seen.append((k, step)) or {"number": k}] for k in range(2)]
    sources, encoders, heads = worlds(2, **model)
    results = fit_many(sources, encoders, heads, seeds=[5, 6], callbacks=callbacks, **options)
    assert seen == [(k, step) for step in (100, 200) for k in range(2)]
    for k, (result, source) in enumerate(zip(results, sources, strict=True)):
        _, own_encoders, own_heads = worlds(2, **model)
        own = fit(source, own_encoders[k], own_heads[k], seed=5 + k, **options)
        assert result.encoder is encoders[k]
        assert result.settings == own.settings
        assert list(result.history.number) == [k] * 2
        assert list(result.history.step) == list(own.history.step)
        assert list(result.history.loss) == pytest.approx(list(own.history.loss), abs=0.02)
        assert latents_explained(source, result) == pytest.approx(latents_explained(source, own), abs=0.01)
        assert latents_explained(source, result) > 0.9
        # The model owns its memory: the stack of all runs is gone.
        sizes = {
            p.untyped_storage().nbytes() == p.nbytes for p in (*result.encoder.parameters(), *result.head.buffers())
        }
        assert sizes == {True}
        assert not result.encoder.training


def test_one_source_may_serve_several_runs_and_running_statistics_stay_apart():
    def parts():
        encoders = [nn.Sequential(nn.BatchNorm1d(3), Encoder(3, 3, width=8, n_blocks=0, generator=k)) for k in range(2)]
        return encoders, [Head(120, 3, generator=k) for k in range(2)]

    source, options = world()[0], {**OPTIONS, "steps": 20}
    encoders, heads = parts()
    together = fit_many([source, source], encoders, heads, **options)
    encoders, heads = parts()
    for k in range(2):
        own = fit(source, encoders[k], heads[k], seed=k, **options)
        mine, theirs = together[k].encoder[0], own.encoder[0]
        assert int(mine.num_batches_tracked) == 20
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0].encoder[0].running_mean, together[1].encoder[0].running_mean)


def test_many_runs_resume_to_the_same_bits_and_from_nothing_else(tmp_path):
    def interrupt(step, encoder, head):
        if step == 30:
            raise KeyboardInterrupt

    options = {**OPTIONS, "steps": 50}
    whole = fit_many(*worlds(2), **options)
    with pytest.raises(KeyboardInterrupt):
        fit_many(*worlds(2), callbacks=[[], [interrupt]], checkpoint=tmp_path, **options)
    assert weights(tmp_path)[1] == 20
    resumed = fit_many(*worlds(2), checkpoint=tmp_path, **options)
    for a, b in zip(whole, resumed, strict=True):
        pairs = zip(
            (*a.encoder.parameters(), *a.head.parameters()),
            (*b.encoder.parameters(), *b.head.parameters()),
            strict=True,
        )
        assert all(torch.equal(p, q) for p, q in pairs)
        assert list(a.history.loss) == list(b.history.loss)
    with pytest.raises(CheckpointError, match="n_runs=2, not 3"):
        fit_many(*worlds(3), checkpoint=tmp_path, **options)
    with pytest.raises(CheckpointError, match="seed=1, not 2"):
        fit_many(*worlds(2), seeds=[0, 2], checkpoint=tmp_path, **options)


def test_divergence_of_one_of_many_runs_is_named_with_its_seed():
    sources, encoders, heads = worlds(3)

    class Poisoned(SyntheticSource):
        def sample(self, n, generator):
            batch = super().sample(n, generator)
            if n == OPTIONS["batch_size"]:
                batch.x.fill_(float("nan"))
            return batch

    sources[1] = Poisoned(sources[1].dgp, sources[1].mixing)
    with pytest.raises(TrainingDiverged, match="run with seed 8 .* at step 1. Likely cause: the source gives NaN"):
        fit_many(sources, encoders, heads, seeds=[7, 8, 9], **OPTIONS)
    with torch.inference_mode():
        assert torch.isfinite(encoders[0](torch.ones(1, 3))).all(), "a run does not disturb its neighbours"


def test_what_cannot_go_side_by_side_is_named():
    sources, encoders, heads = worlds(2)
    for arguments, options, message in (
        ((sources, encoders, heads[:1]), {}, "heads='1 of them'.*each of 2 runs"),
        ((sources, encoders, heads), {"seeds": [1]}, "seeds='1 of them'"),
        ((sources, encoders, heads), {"seeds": [3, 3]}, r"seeds=\[3, 3\].*all different"),
        ((sources, encoders, heads), {"seed": 3}, "Use seeds="),
        ((sources, encoders, heads), {"callbacks": [[], [], []]}, "callbacks='3 of them'"),
        (([], [], []), {}, "sources='0 of them'"),
        ((sources, encoders, 2 * heads[:1]), {}, "a module of its own for each run"),
        (
            (sources, encoders, [heads[0], Head(120, 3, "C2")]),
            {},
            r"heads\[1\]=.*case='C2'.*like heads\[0\], with .*case='C4'",
        ),
        ((sources, [encoders[0], Encoder(3, 3, width=8)], heads), {}, r"encoders\[1\]=.*net.*like encoders\[0\]"),
        ((sources, encoders, [SampledHead(120, 3, generator=k) for k in range(2)]), {}, "heads with dense gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_many(*arguments, **options, **OPTIONS)


def scaled(by):
    return lambda x: by * x


@pytest.mark.parametrize(
    "values",
    [
        ([1.0], [30.0]),
        (torch.tanh, torch.cos),
        (scaled(1.0), scaled(2.0)),
        (torch.zeros(2000), torch.zeros(2000).index_fill(0, torch.tensor(1000), 1e-6)),
    ],
)
def test_modules_with_other_attributes_do_not_go_side_by_side(values):
    heads = [Head(9, 3), Head(9, 3)]
    for head, value in zip(heads, values, strict=True):
        head.own = value
    with pytest.raises(ValueError, match=r"heads\[1\].*own="):
        check_alike("heads", heads)
    heads[1].own = heads[0].own
    check_alike("heads", heads)
    for head in heads:
        head.own = scaled(3.0)  # two functions, but the same
    check_alike("heads", heads)


def test_a_head_with_a_loss_of_its_own_keeps_it_side_by_side():
    class Smooth(Head):
        def cross_entropy(self, f, labels, reduction="mean"):
            return nn.functional.cross_entropy(self(f), labels, reduction=reduction, label_smoothing=0.5)

    class Same(Head):
        def cross_entropy(self, f, labels, reduction="mean"):
            return super().cross_entropy(f, labels, reduction)

    source = SyntheticSource(ClusterDGP(3, 12, 20_000), InvertibleMLP(3))
    with pytest.raises(ValueError, match="Same, with a loss of its own and 40960000 logits a step.*smaller batch_size"):
        fit_many([source], [Encoder(3, 3, width=16, n_blocks=1)], [Same(20_000, 3)], **{**OPTIONS, "batch_size": 2048})

    options = {**OPTIONS, "steps": 10}
    source, encoder, _ = world()
    one = fit(source, encoder, Smooth(120, 3), **options)
    (many,) = fit_many([source], [Encoder(3, 3, width=16, n_blocks=1)], [Smooth(120, 3)], **options)
    assert abs(one.history.train_loss[0] - many.history.train_loss[0]) < 1e-5
    plain = fit(source, Encoder(3, 3, width=16, n_blocks=1), Head(120, 3), **options)
    assert abs(one.history.train_loss[0] - plain.history.train_loss[0]) > 1e-3


def test_interrupted_runs_hold_no_more_than_their_own_weights():
    def interrupt(step, encoder, head):
        raise KeyboardInterrupt

    sources, encoders, heads = worlds(2)
    with pytest.raises(KeyboardInterrupt):
        fit_many(sources, encoders, heads, callbacks=[[interrupt], []], **OPTIONS)
    for p in (*encoders[0].parameters(), *heads[1].parameters()):
        assert p.untyped_storage().nbytes() == p.nbytes


def test_latents_that_only_some_sources_know_are_left_out():
    sources, encoders, heads = worlds(2)

    class Blind(SyntheticSource):
        def sample(self, n, generator):
            return replace(super().sample(n, generator), z=None)

    sources[1] = Blind(sources[1].dgp, sources[1].mixing)
    assert len(fit_many(sources, encoders, heads, **{**OPTIONS, "steps": 10})) == 2


def test_a_parameter_that_is_frozen_in_one_run_only_is_a_difference():
    heads = [Head(9, 3), Head(9, 3)]
    heads[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"weight: torch.float32 of shape \(9, 3\)'.*trained"):
        check_alike("heads", heads)


def test_a_loss_that_looks_at_numbers_cannot_be_batched_and_is_refused_before_training():
    class Looks(CrossEntropy):
        def loss(self, features, head, batch):
            assert bool(torch.isfinite(features).all())
            return super().loss(features, head, batch)

    sources, encoders, heads = worlds(2)
    before = [p.detach().clone() for p in encoders[0].parameters()]
    with pytest.raises(ValueError, match="torch.vmap can batch; it says.*Use fit"):
        fit_many(sources, encoders, heads, Looks("looks", "instance"), **OPTIONS)
    assert all(torch.equal(p, q) for p, q in zip(before, encoders[0].parameters(), strict=True))


# ---- a step never waits for the device


def prepared_trainings():
    sources, encoders, heads = worlds(3)
    runs = [
        start_run(source, encoder, head, get_objective("diet"), Settings(seed=k, batch_size=64), torch.device("cpu"))
        for k, (source, encoder, head) in enumerate(zip(sources, encoders, heads, strict=True))
    ]
    return {"alone": alone(runs[:1]), "side by side": side_by_side(runs[1:])}


def whole_step(training):
    set_rates(training.optimizers, 0, training.settings)
    return take_step(training)


@pytest.mark.parametrize("which", ["alone", "side by side"])
def test_a_whole_step_has_no_output_that_the_host_must_wait_for(monkeypatch, which):
    training = prepared_trainings()[which]
    monkeypatch.setattr(vmf, "_redraw_until_accepted", vmf._redraw_blindly)  # as on a GPU
    with NoLook():
        traces = [whole_step(training) for _ in range(3)]
    training.step = 3
    with NoLook(), pytest.raises(AssertionError, match="looks at data"):
        mean_losses(traces, training)  # this is the place where the loop waits, every fiftieth step
    assert len(mean_losses(traces, training)) == len(training.runs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_whole_step_on_a_gpu_never_waits():
    run = start_run(*world(), get_objective("diet"), Settings(batch_size=64), torch.device("cuda"))
    training = alone([run])
    whole_step(training)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole_step(training)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- recorded steps


def test_a_finished_model_holds_no_gradients():
    for result in (fit(*world(), **OPTIONS | {"steps": 2}), *fit_many(*worlds(2), **OPTIONS | {"steps": 2})):
        assert all(p.grad is None for part in (result.encoder, result.head) for p in part.parameters())


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setenv("CEGEN_CUDA_GRAPH", "1")


class Own(torch.nn.Linear):
    "A layer that a researcher has written: nobody knows what it does besides."


def test_steps_are_recorded_only_if_all_parts_are_known_to_be_the_same_operations_every_time():
    def run(source=None, encoder=None, head=None, objective="diet"):
        known = world()
        parts = (source or known[0], encoder or known[1], head or known[2])
        return start_run(*parts, get_objective(objective), Settings(batch_size=64), torch.device("cpu"))

    mixing, hooked = InvertibleMLP(3), Encoder(3, 3)
    hooked.register_forward_hook(lambda *args: None)
    arrays = ArraySource(torch.randn(200, 3), instance=torch.arange(200) % 120)
    assert is_recordable(run())
    assert is_recordable(run(encoder=torch.nn.Sequential(torch.nn.Linear(3, 3))))
    assert is_recordable(run(arrays))
    assert is_recordable(run(head=SampledHead(120, 3)))
    for other in (
        run(SyntheticSource(ClusterDGP(3, 12, 120, label_noise=0.1), mixing)),
        run(SyntheticSource(ClusterDGP(3, 12, 120, class_weights=torch.arange(1.0, 13)), mixing)),
        run(SyntheticSource(ClusterDGP(3, 12, 120, conditional=lambda mu: VonMisesFisher(mu, 5.0)), mixing)),
        run(SyntheticSource(ClusterDGP(3, 12, 120), Own(3, 3))),
        run(encoder=torch.nn.Sequential(Own(3, 3))),
        run(encoder=hooked),
        run(objective=CrossEntropy("own", "instance"), head=torch.nn.Sequential(Own(3, 120))),
    ):
        assert not is_recordable(other)


def test_on_a_processor_steps_are_taken_one_operation_at_a_time(recording):
    for training in prepared_trainings().values():
        assert not isinstance(step_of(training), RecordedStep)


def without_data(module):
    "A module whose tensors have shapes, but no numbers."
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for name, p in part._buffers.items():
            if p is not None:
                part._buffers[name] = torch.empty_like(p, device="meta")
    return module


def refuse(*args, **options):
    raise AssertionError("copies from the host")


@pytest.mark.parametrize("head", ["full", "sampled"])
@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("options", [{}, {"conditional": "normal"}, {"class_weights": torch.arange(1.0, 13)}], ids=str)
def test_a_step_works_where_there_are_no_numbers_to_look_at(monkeypatch, unchecked, head, n_runs, options):
    sources, encoders, heads = gpu_parts(head, range(n_runs))
    sources = [SyntheticSource(ClusterDGP(3, 12, 120, **options), source.mixing) for source in sources]
    for module in (dgp_module, source_module, sphere_module):
        monkeypatch.setattr(module, "check_device", lambda *args: None)  # generators have no such device
    monkeypatch.setattr(train_module, "autocast", lambda *args: nullcontext())  # nor has autocast
    parts = [[without_data(part) for part in run] for run in zip(sources, encoders, heads, strict=True)]
    settings, diet = Settings(batch_size=600), get_objective("diet")
    runs = [Run(*run, diet, settings, torch.Generator()) for run in parts]
    training = alone(runs) if n_runs == 1 else side_by_side(runs)
    adam = training.optimizers.pop(0)  # PyTorch's own, whose fused form is only there for processors and GPUs
    assert isinstance(adam, torch.optim.Adam)
    assert [type(optimizer) for optimizer in training.optimizers] == [Muon, RowAdam][: 1 + (head == "sampled")]
    for group in (group for optimizer in training.optimizers for group in optimizer.param_groups):
        group["lr"] = torch.empty((), device="meta")
    take_step(training)
    for name in ("as_tensor", "tensor"):
        monkeypatch.setattr(torch, name, refuse)
    trace = take_step(training)
    assert trace.shape == (n_runs, 2)
    assert trace.device.type == "meta"


def gpu_parts(head, seeds=(0,)):
    rows = {"full": Head, "sampled": SampledHead}[head]
    return (
        [SyntheticSource(ClusterDGP(3, 12, 120, seed=k), InvertibleMLP(3, seed=k)) for k in seeds],
        [Encoder(3, 3, width=16, n_blocks=1, generator=k) for k in seeds],
        [rows(120, 3, "C1", generator=k) for k in seeds],
    )


def gpu_fit(head, checkpoint=None, **options):
    parts = (part[0] for part in gpu_parts(head))
    return fit(
        *parts, device="cuda", checkpoint=checkpoint, **{"steps": 60, "batch_size": 64, "eval_every": 20} | options
    )


def state(result):
    return {
        **result.encoder.state_dict(),
        **{f"head.{name}": value for name, value in result.head.state_dict().items()},
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("head", ["full", "sampled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_recorded_steps_are_the_steps_themselves(recording, monkeypatch, head, precision):
    recorded, again = gpu_fit(head, precision=precision), gpu_fit(head, precision=precision)
    assert all(torch.equal(p, state(again)[name]) for name, p in state(recorded).items())
    monkeypatch.setattr(train_module, "is_recordable", lambda run: False)
    plain = gpu_fit(head, precision=precision)
    # Rates are rounded to single precision in a recorded step, and rounding grows with the steps.
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert recorded.history.loss.to_numpy() == pytest.approx(plain.history.loss.to_numpy(), rel=tolerance)
    assert recorded.history.train_loss.to_numpy() == pytest.approx(plain.history.train_loss.to_numpy(), rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("head", ["full", "sampled"])
def test_a_recorded_run_resumes_to_the_same_bits(recording, tmp_path, head):
    def interrupt(step, encoder, head):
        if step == 40:
            raise KeyboardInterrupt

    whole = gpu_fit(head)
    with pytest.raises(KeyboardInterrupt):
        gpu_fit(head, tmp_path, callbacks=[interrupt])
    resumed = gpu_fit(head, tmp_path)
    assert all(torch.equal(p, state(resumed)[name]) for name, p in state(whole).items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("head", ["full", "sampled"])
def test_recorded_runs_side_by_side_are_those_of_fit(recording, head):
    options = {"steps": 40, "batch_size": 64, "eval_every": 20, "device": "cuda"}
    together = fit_many(*gpu_parts(head, (0, 1, 2)), seeds=[0, 1, 2], **options)
    for k, result in enumerate(together):
        single = fit(*(part[0] for part in gpu_parts(head, (k,))), seed=k, **options)
        assert result.history.loss.to_numpy() == pytest.approx(single.history.loss.to_numpy(), rel=1e-3)


# ---- a batch that does not fit


FAULTS = """
import resource
from cegen.run import Config, make_model, make_source
from cegen import fit

def faults(step, encoder, head):
    return {"faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt}

config = Config()
source = make_source(config, 0)
result = fit(source, *make_model(config, source, 0), callbacks=[faults], steps=90, eval_every=30, device="cpu")
print(result.history.faults.diff().iloc[-1] / 30)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux clears")
def test_memory_that_a_step_frees_is_there_for_the_next():
    logits = 512 * 1000 * 4 / 4096  # pages
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2 * logits


@pytest.mark.parametrize("n_runs", [1, 3])
def test_a_batch_larger_than_the_memory_is_refused_without_being_made(n_runs):
    with Largest() as largest, pytest.raises(ValueError, match="batch_size=10000000000 .*GiB are free") as error:
        if n_runs == 1:
            fit(*world(), **{**OPTIONS, "batch_size": 10**10})
        else:
            fit_many(*worlds(n_runs), **{**OPTIONS, "batch_size": 10**10})
    assert largest.numbers < 1e6
    fits = int(re.search(r"Use batch_size=(\d+)\.", str(error.value))[1])
    assert 64 < fits < 10**10


def test_the_batch_that_fits_follows_from_the_memory_that_is_free(monkeypatch):
    def fits(free, n_runs=1, batch_size=10**9):
        monkeypatch.setattr(train_module, "free_memory", lambda device: free)
        with pytest.raises(ValueError, match="GiB are free") as error:
            fit_many(*worlds(n_runs), **{**OPTIONS, "batch_size": batch_size})
        found = re.search(r"Use batch_size=(\d+)\.", str(error.value))
        return int(found[1]) if found else 0

    assert fits(2**30) == 2 * fits(2**29)
    assert fits(2**30, n_runs=2) == 2 * fits(2**30, n_runs=4)
    assert fits(100.0, batch_size=64) == 0
    monkeypatch.setattr(train_module, "free_memory", lambda device: 2.0**24)
    few, many = fits(2.0**24), 16 * fits(2.0**24)
    monkeypatch.setattr(train_module, "free_memory", lambda device: 2.0**24)
    fit(*world(), **{**OPTIONS, "steps": 1, "batch_size": few})
    with pytest.raises(ValueError, match=f"batch_size={many}"):
        fit(*world(), **{**OPTIONS, "steps": 1, "batch_size": many})


def test_what_a_forward_pass_keeps_is_counted_once_and_in_proportion():
    encoder = Encoder(3, 3, width=64, n_blocks=2)
    x = torch.randn(1024, 3)
    assert bytes_kept(encoder, x[:16]) == bytes_kept(encoder, x)
    twice = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid())
    both = nn.Sequential(twice, nn.Linear(8, 8), nn.Sigmoid())
    assert bytes_kept(both, x) == bytes_kept(twice, x) + 4 * 8
    assert bytes_kept(nn.Linear(3, 8).requires_grad_(False), x) == 0


def test_measuring_changes_nothing():
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
    state, x = torch.get_rng_state(), torch.ones(16, 3)
    assert bytes_kept(encoder, x) > 0
    assert torch.equal(encoder[0].running_mean, torch.zeros(3))
    assert torch.equal(state, torch.get_rng_state())
    assert encoder[2].weight.grad is None


def test_logits_that_are_taken_in_chunks_or_not_at_all_need_no_memory():
    settings, device = Settings(), torch.device("cpu")
    n_labels = 200_000
    source = SyntheticSource(ClusterDGP(3, 12, n_labels, seed=0), InvertibleMLP(3))
    encoder = Encoder(3, 3, width=16, n_blocks=1)
    full = start_run(source, encoder, Head(n_labels, 3), get_objective("diet"), settings, device)
    sampled = start_run(source, encoder, SampledHead(n_labels, 3).eval(), get_objective("diet"), settings, device)
    pairs = start_run(PairedSource(source), encoder, Similarity(), get_objective("infonce"), settings, device)
    n = 1000
    assert logits_held(full, n, chunked=False) == n * n_labels
    assert logits_held(full, n) < n * n_labels / 10
    assert logits_held(sampled, n) <= n * n
    assert logits_held(pairs, n) == n * n / 4
