"""The floor: against independent computations, limits that are known, and models that must not beat it."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch import nn

from cegen import ArraySource, ClusterDGP, InvertibleMLP, SyntheticSource, VonMisesFisher, fit, theory
from cegen.core import AssumptionViolated, Batch, random_stream
from cegen.model import CASES, Encoder, Head
from cegen.source import PairedSource
from cegen.sphere import SphericalCauchy, normalize, random_orthogonal
from cegen.theory import (
    FINDINGS,
    METHODS,
    bayes_cross_entropy,
    bayes_surprise,
    certify,
    check_assumptions,
    effective_beta,
    fisher_information,
    log_class_posterior,
    mean_of,
    optimal_model,
    surprise,
)


def test_floor_of_two_classes_on_the_circle_by_quadrature():
    kappa, vectors = 3.0, torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    dgp = ClusterDGP(2, 2, 6, kappa=kappa, class_vectors=vectors)

    def integrand(angle, c):
        dots = np.array([np.cos(angle), np.sin(angle)])
        density = np.exp(kappa * dots[c]) / (2 * np.pi * special.i0(kappa))
        return density * (special.logsumexp(kappa * dots) - kappa * dots[c]) / 2

    exact = sum(integrate.quad(integrand, 0, 2 * np.pi, args=(c,))[0] for c in (0, 1))
    floor = bayes_cross_entropy(dgp, level="class")
    assert abs(floor.value - exact) < 4 * floor.standard_error
    assert floor.standard_error < 2e-3
    assert float(bayes_cross_entropy(dgp)) == pytest.approx(floor.value + math.log(3), abs=1e-9)


@pytest.mark.parametrize("dim", [2, 5, 20])
def test_limits(dim):
    assert float(bayes_cross_entropy(ClusterDGP(dim, 7, 70, kappa=0.0))) == pytest.approx(math.log(70), abs=1e-6)
    certain = ClusterDGP(dim, 2, 20, kappa=1e4, class_vectors=torch.eye(dim)[:2])
    assert float(bayes_cross_entropy(certain)) == pytest.approx(math.log(10), abs=1e-6)


@pytest.mark.parametrize("conditional", ["vmf", "normal", "laplace", "generalized_normal"])
@pytest.mark.parametrize("extra", [{}, {"label_noise": 0.3}, {"class_weights": torch.tensor([4.0, 2.0, 1.0, 1.0])}])
def test_posterior_is_calibrated(conditional, extra):
    dgp = ClusterDGP(3, 4, 13, kappa=4.0, scale=0.5, conditional=conditional, seed=2, **extra)
    z, _, label = dgp.sample(20_000, random_stream(0, "data"))
    posterior = log_class_posterior(dgp, z.double()).exp()
    torch.testing.assert_close(posterior.sum(1), torch.ones(20_000, dtype=torch.float64))
    shown = torch.nn.functional.one_hot(label, 4).double()
    for low in (0.0, 0.2, 0.4, 0.6):
        inside = (posterior >= low) & (posterior < low + 0.2)
        if inside.sum() > 500:
            assert abs(shown[inside].mean() - posterior[inside].mean()) < 0.03


@pytest.mark.parametrize(
    "extra", [{}, {"label_noise": 0.4, "noisy_classes": 3}, {"class_weights": torch.arange(1.0, 7)}]
)
def test_surprise_averages_to_the_floor_at_both_levels(extra):
    dgp = ClusterDGP(3, 6, 40, kappa=8.0, seed=1, **extra)
    z, instance, label = dgp.sample(20_000, random_stream(3, "data"))
    batch = Batch(x=z, instance=instance, label=label, z=z)
    for level in ("instance", "class"):
        floor, surprise = bayes_cross_entropy(dgp, level), mean_of(bayes_surprise(dgp, batch, level))
        assert abs(floor.value - surprise.value) < 4 * math.hypot(floor.standard_error, surprise.standard_error)


def test_no_logits_beat_the_floor_and_the_true_ones_reach_it():
    dgp = ClusterDGP(3, 6, 60, kappa=10.0, seed=3)
    source = SyntheticSource(dgp, InvertibleMLP(3))
    batch = source.sample(20_000, random_stream(0, "data"))
    rows = dgp.class_vectors[dgp.instance_class]

    def excess(logits):
        paid = torch.nn.functional.cross_entropy(logits, batch.instance, reduction="none")
        return mean_of(paid.double() - bayes_surprise(dgp, batch))

    truth = 10 * batch.z @ rows.T
    assert abs(excess(truth).value) < 1e-5
    noise = torch.randn(truth.shape, generator=random_stream(0, "noise"))
    for other in (0.5 * truth, 1.5 * truth, truth + noise, truth.roll(1, dims=1)):
        worse = excess(other)
        assert worse.value > 10 * worse.standard_error


def test_effective_beta_is_kappa_at_every_optimum():
    dgp = ClusterDGP(4, 12, 36, kappa=7.0)
    z = dgp.sample(500, random_stream(0, "data"))[0]
    v = dgp.class_vectors[dgp.instance_class]
    A = torch.randn(4, 4, generator=random_stream(0, "A"))
    psi = torch.randn(4, generator=random_stream(0, "psi"))
    w = 7.0 * v @ torch.linalg.inv(A).T + psi  # C4: any invertible features, rows absorb the rest
    assert effective_beta(v, w, z, z @ A) == pytest.approx(7.0, rel=1e-3)
    assert effective_beta(v, v, z, z, beta=7.0) == pytest.approx(7.0, rel=1e-4)


@pytest.mark.parametrize("chunk_elements", [700, 500 * 7, 2**22])
def test_chunks_change_no_result(chunk_elements):
    dgp = ClusterDGP(5, 100, 1000)
    whole = bayes_cross_entropy(dgp, n_samples=1001)
    parts = bayes_cross_entropy(dgp, n_samples=1001, chunk_elements=chunk_elements)
    assert whole.n == parts.n == 1001
    assert whole.value == pytest.approx(parts.value, abs=1e-9)
    assert whole.standard_error == pytest.approx(parts.standard_error, rel=1e-6)


def test_floor_of_a_large_world_takes_little_memory():
    code = """
from cegen import ClusterDGP
from cegen.theory import bayes_cross_entropy
floor = bayes_cross_entropy(ClusterDGP(5, 10_000, 1_000_000), n_samples=1000)
# Not ru_maxrss, which starts with what the parent process, the tests, took.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(floor.standard_error, int(peak.split()[1]) / 2**20)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    standard_error, gibibytes = map(float, out.split())
    assert standard_error < 3e-3
    assert gibibytes < 0.75


def test_bad_input(unchecked):
    dgp = ClusterDGP()
    with pytest.raises(ValueError, match="one of 'instance', 'class'"):
        bayes_cross_entropy(dgp, level="pixel")
    with pytest.raises(ValueError, match="n_samples=1"):
        bayes_cross_entropy(dgp, n_samples=1)
    with pytest.raises(ValueError, match="chunk_elements=0"):
        bayes_cross_entropy(dgp, chunk_elements=0)
    one = torch.zeros(3).long()
    with pytest.raises(ValueError, match="needs the true latents"):
        theory.bayes_surprise(dgp, Batch(x=torch.ones(3, 5), instance=one, label=one))


# The optimum


def world(dim=3, n_classes=12, n_instances=60, seed=0, mixing=None, **options):
    "A small world, good unless options spoil it."
    dgp = ClusterDGP(dim, n_classes, n_instances, seed=seed, **options)
    return SyntheticSource(dgp, InvertibleMLP(dim, seed=seed) if mixing is None else mixing)


def excess(model, source, level="instance", n=3000):
    "The paired excess over the posterior on fresh samples."
    batch = source.sample(n, random_stream(7, "data"))
    return mean_of(surprise(*model, batch, level).double() - bayes_surprise(source.dgp, batch, level))


@pytest.mark.parametrize("level", ["instance", "class"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dim", [2, 3, 5, 10])
def test_the_optimal_model_reaches_the_floor(dim, case, level):
    for seed in range(3):
        source = world(dim, 30, 90, seed=seed, kappa=4.0 + 6 * seed)
        f, W = optimal_model(source, case, level, h=random_orthogonal(dim, seed))
        loss = mean_of(surprise(f, W, source.sample(3000, random_stream(seed, "data")), level))
        floor = bayes_cross_entropy(source.dgp, level, n_samples=5000)
        assert abs(loss.value - floor.value) < 3 * math.hypot(loss.standard_error, floor.standard_error)
        assert abs(excess((f, W), source, level).value) < 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", ["rows", "beta up", "beta down", "matrix"])
def test_every_step_away_from_the_optimum_costs(what, case, seed):
    source = world(seed=seed)
    f, W = optimal_model(source, case)
    generator = random_stream(seed, "step")
    with torch.no_grad():
        if what == "rows":
            W.weight += 0.3 * W.weight.norm(dim=1).mean() * torch.randn(W.weight.shape, generator=generator)
        elif what == "matrix":
            f.matrix += 0.2 * f.matrix.norm() * torch.randn(f.matrix.shape, generator=generator)
        else:
            W.log_beta += 0.4 if what == "beta up" else -0.4
    worse = excess((f, W), source)
    assert worse.value > 4 * worse.standard_error > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [4, 9])
def test_features_may_have_more_dimensions_than_latents(width, seed):
    source = world(4, 20, 60, seed=seed)
    h = torch.randn(width, 4, generator=random_stream(seed, "h")).double()
    tall = torch.linalg.qr(h).Q
    psi = torch.randn(width, generator=random_stream(seed, "psi"))
    for case, matrix, options in [
        ("C1", tall, {}),
        ("C2", tall, {"psi": psi, "beta": 2.0}),
        ("C3", tall, {"beta": 0.5}),
        ("C4", h, {"psi": psi, "beta": 3.0}),
    ]:
        f, W = optimal_model(source, case, h=matrix.float(), **options)
        assert f(source.sample(5, 0).x).shape == (5, width)
        assert abs(excess((f, W), source).value) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"case": "C5"}, "one of 'C1', 'C2', 'C3', 'C4'"),
        ({"level": "pixel"}, "one of 'instance', 'class'"),
        ({"h": torch.eye(4)}, r"h='shape \(4, 4\)' is not valid: it must be \(k, 3\) with k ≥ 3"),
        ({"h": torch.eye(3)[:2]}, r"\(k, 3\) with k ≥ 3"),
        ({"h": torch.eye(3)[0]}, r"\(k, 3\) with k ≥ 3"),
        ({"h": torch.full((3, 3), math.nan)}, "finite everywhere"),
        ({"h": torch.ones(3, 3)}, "of full rank"),
        ({"h": 2 * torch.eye(3), "case": "C2"}, "orthogonal in case C2"),
        ({"beta": 0.0}, r"beta=0\.0"),
        ({"beta": 3.0, "case": "C1"}, "κ = 10 in case C1"),
        ({"psi": torch.ones(3), "case": "C1"}, "left out in case C1"),
        ({"psi": torch.ones(3), "case": "C3"}, "left out in case C3"),
        ({"psi": torch.ones(2)}, r"psi='shape \(2,\)'"),
        ({"psi": torch.full((3,), math.inf)}, "finite everywhere"),
    ],
)
def test_bad_arguments_of_the_optimum_are_named(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        optimal_model(world(), **arguments)


def test_without_an_inverse_there_is_no_optimum_to_build():
    with pytest.raises(ValueError, match="a source whose mixing has an `inverse`"):
        optimal_model(world(mixing=nn.Linear(3, 5)))


@pytest.mark.parametrize(
    ("options", "level", "message"),
    [
        ({"label_noise": 0.1}, "instance", "clean labels: 0.1"),
        ({"kappa": torch.linspace(5, 20, 12)}, "instance", "one concentration: 4"),
        ({"kappa": 0.0}, "instance", "κ = 0"),
        ({"conditional": "laplace"}, "class", "one concentration"),
        ({"class_weights": torch.arange(1.0, 13)}, "instance", "uniform instance labels"),
        ({"class_weights": torch.arange(1.0, 13)}, "class", "uniform class labels"),
        ({"n_instances": 61}, "class", "uniform class labels"),
    ],
)
def test_where_no_linear_head_reaches_the_floor_none_is_built(options, level, message):
    with pytest.raises(AssumptionViolated, match=message):
        optimal_model(world(**options), level=level)


# Assumptions


class Fold(nn.Module):
    "A generator that cannot tell z from its mirror image."

    def forward(self, z):
        return torch.cat([z[..., :1].abs(), z[..., 1:]], dim=-1) @ torch.diag(torch.arange(1.0, z.shape[-1] + 1)).to(z)


class Flat(nn.Module):
    "A generator that loses a direction."

    def forward(self, z):
        return z[..., 1:]


class Hidden(nn.Module):
    "A source that shows observations and labels only."

    def __init__(self, source):
        super().__init__()
        self.inner, self.n_instances, self.n_classes = source, source.n_instances, source.n_classes
        self.device = torch.device("cpu")

    def sample(self, n, generator):
        batch = self.inner.sample(n, generator)
        return Batch(x=batch.x, instance=batch.instance, label=batch.label)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_classes": 3}, "affine generator system"),
        ({"n_classes": 1}, "affine generator system"),
        ({"class_vectors": torch.eye(3)[torch.arange(12) % 2]}, "affine generator system"),
        ({"n_classes": 5}, "diverse data"),
        ({"n_classes": 8}, "rigid rows"),
        ({"label_noise": 0.1}, "clean labels"),
        ({"label_noise": 0.1}, "vMF conditional"),
        ({"class_weights": torch.arange(1.0, 13)}, "uniform instance labels"),
        ({"kappa": torch.linspace(5, 20, 12)}, "one concentration"),
        ({"kappa": 0.0}, "one concentration"),
        ({"conditional": "laplace"}, "vMF conditional"),
        ({"conditional": "normal"}, "vMF conditional"),
        ({"conditional": "generalized_normal", "shape": 3.0}, "vMF conditional"),
        ({"mixing": Fold()}, "injective generator"),
        ({"mixing": Flat()}, "injective generator"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_each_broken_assumption_is_named(options, named, seed):
    report = check_assumptions(world(seed=seed, **options), seed=seed)
    assert report[named].status == "failed"
    with pytest.raises(AssumptionViolated, match=named):
        report.require("C3", allow_unknown=True)


def test_lost_directions_are_those_without_spread():
    vectors = torch.eye(4)[torch.arange(12) % 3]
    check = check_assumptions(world(4, class_vectors=vectors))["affine generator system"]
    assert check.directions.shape == (2, 4)
    assert ((vectors - vectors.mean(0)).double() @ check.directions.T).abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_good_worlds_raise_no_alarm(seed):
    dim, kappa = (2, 3, 5, 10)[seed % 4], (0.5, 3.0, 10.0, 50.0, 200.0)[seed % 5]
    source = world(dim, 100, 1000, seed=seed, kappa=kappa, class_vectors=("uniform", "concentrated")[seed % 2])
    for method in ("diet", "supervised"):
        report = check_assumptions(source, method, n_samples=30_000, seed=seed)
        assert report.require("C3") is report
        assert not report.with_status("unknown", "C3")


@pytest.mark.parametrize("seed", range(5))
def test_false_alarms_are_rare_on_samples(seed):
    source = world(seed=seed, kappa=10.0)
    z = source.sample(500, seed)
    recorded = ArraySource(z.x, z.label)
    assert check_assumptions(recorded, n_samples=50_000, seed=seed)["uniform instance labels"].status == "passed"
    crowded = ArraySource(z.x, torch.arange(500).clamp_max(250) // 50)
    assert check_assumptions(crowded, "supervised", n_samples=50_000)["uniform class labels"].status == "failed"


@pytest.mark.parametrize("with_z", [True, False])
def test_arrays_leave_assumptions_unknown(with_z):
    batch = world().sample(400, 0)
    source = ArraySource(batch.x, batch.label, batch.instance, batch.z if with_z else None)
    report = check_assumptions(source, n_samples=5000)
    unknown = {check.name for check in report.with_status("unknown", "C3")}
    assert {"affine generator system", "one concentration", "vMF conditional", "injective generator"} <= unknown
    assert ("unit latents" in unknown) is not with_z
    assert report["surjective instance map"].status == "passed"
    with pytest.raises(AssumptionViolated, match=r"affine generator system: source\.dgp"):
        report.require("C4", allow_unknown=False)


def test_a_source_that_hides_its_latents_is_unknown_and_not_failed():
    report = check_assumptions(Hidden(world()), n_samples=5000)
    assert report["unit latents"].status == report["vMF conditional"].status == "unknown"
    assert report.require("C3", allow_unknown=True) is report


def test_an_instance_in_two_classes_is_found_on_samples():
    batch = world().sample(400, 0)
    source = ArraySource(batch.x, torch.arange(400) % 2, torch.arange(400) // 4)
    check = check_assumptions(source, n_samples=5000)["surjective instance map"]
    assert (check.status, check.value) == ("failed", 100)


def test_only_c3_needs_diverse_data():
    report = check_assumptions(world(n_classes=6))
    assert report["diverse data"].status == "passed"
    for case in ("C1", "C2", "C4"):
        report.require(case)
    with pytest.raises(AssumptionViolated, match="rigid rows: 6, must be > 8"):
        report.require("C3")
    with pytest.raises(ValueError, match="one of 'C1'"):
        report.require("C5")
    with pytest.raises(ValueError, match="Did you mean 'rigid rows'"):
        report["rigid row"]


@pytest.mark.parametrize("method", METHODS)
def test_pairs_are_looked_through(method):
    source = world()
    pairs = check_assumptions(PairedSource(source), method, n_samples=5000)
    assert repr(pairs) == repr(check_assumptions(source, method, n_samples=5000))
    assert "injective generator" in pairs._repr_html_()


def test_relatives_have_assumptions_of_their_own():
    report = check_assumptions(world(5, 1000, 1000), "infonce")
    assert report["uniform marginal"].status == "failed"  # a thousand class vectors are still not the whole sphere
    assert report["vMF pairs"].status == "failed"
    assert check_assumptions(world(kappa=0.0), "infonce")["uniform marginal"].status == "passed"
    for method in ("tcl", "gcl"):
        report = check_assumptions(world(kappa=torch.linspace(5, 20, 12)), method)
        assert report["varying natural parameters"].status == report["vMF conditional"].status == "passed"
        assert report["independent latents"].status == "failed"
        assert check_assumptions(world(n_classes=3), method)["varying natural parameters"].status == "failed"


def test_bad_arguments_of_the_checks_are_named(unchecked):
    with pytest.raises(ValueError, match="one of 'diet', 'supervised'"):
        check_assumptions(world(), "simclr")
    with pytest.raises(ValueError, match="n_samples=999"):
        check_assumptions(world(), n_samples=999)


# Certificates


class Then(nn.Module):
    "An encoder followed by a function."

    def __init__(self, encoder, function):
        super().__init__()
        self.encoder, self.function = encoder, function

    def forward(self, x):
        return self.function(self.encoder(x))


def findings(model, source, **options):
    "The names of what a certificate finds."
    return [finding.name for finding in certify(model, source, n_samples=4096, **options).findings]


@pytest.mark.parametrize("level", ["instance", "class"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_optimal_models_are_certified(case, level, seed):
    source = world(4, 30, 90, seed=seed)
    certificate = certify(optimal_model(source, case, level), source, n_samples=4096, tolerance=1e-4, seed=seed)
    assert [finding.name for finding in certificate.findings] == ["at the optimum"], certificate
    assert certificate.case == case
    assert "at the optimum" in certificate._repr_html_()


def test_finds_a_broken_assumption():
    f, W = optimal_model(world())
    assert findings((f, W), world(label_noise=0.3))[0] == "assumption broken"


@pytest.mark.parametrize("dim", [3, 5])
def test_finds_too_small_a_dimension(dim):
    source = world(dim, 40, 120)
    f, W = optimal_model(source)
    small = Head(120, dim - 1)
    small.weight.data = W.weight.data[:, :-1]
    assert findings((Then(f, lambda h: h[:, :-1]), small), source) == ["dimension too small"]
    assert findings((Encoder(dim, dim - 1), Head(120, dim - 1)), source) == ["dimension too small", "loss at ln N"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_finds_an_untrained_model(case, seed):
    source = world(5, 40, 120, seed=seed)
    model = (Encoder(5, 5, generator=seed), Head(120, 5, case, generator=seed))
    assert findings(model, source) == ["loss at ln N"]


@pytest.mark.parametrize("seed", range(3))
def test_finds_a_collapsed_code(seed):
    f, W = optimal_model(world(seed=seed), h=random_orthogonal(3, seed))
    f.matrix[2] = 0.0
    assert "code collapsed" in findings((f, W), world(seed=seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dim", "n_classes"), [(3, 40), (3, 100), (5, 100)])
def test_finds_folded_class_vectors(dim, n_classes, seed):
    source = world(dim, n_classes, 2 * n_classes, seed=seed)
    fold = Fold()
    f, W = optimal_model(source)
    W.weight.data = 10 * fold(source.dgp.class_vectors[source.dgp.instance_class])
    scale = torch.arange(1.0, dim + 1)
    assert findings((Then(f, lambda z: fold(z) / scale**2), W), source) == ["folded class vectors"]


@pytest.mark.parametrize("seed", range(3))
def test_finds_rows_without_latents(seed):
    source = world(3, 40, 120, seed=seed)
    f, W = optimal_model(source)
    generator = random_stream(seed, "noise")
    noisy = Then(f, lambda h: h + 0.3 * torch.randn(h.shape, generator=generator))
    assert findings((noisy, W), source) == ["rows recovered but not latents"]


@pytest.mark.parametrize("shift", [-0.5, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_finds_a_wrong_temperature(case, shift):
    source = world()
    f, W = optimal_model(source, case)
    W.log_beta.data += shift
    (finding,) = certify((f, W), source, n_samples=4096).findings
    effective, kappa = re.fullmatch(r"effective β ([\d.]+), κ ([\d.]+)", finding.detail).groups()
    assert finding.name == "temperature not converged"
    assert float(effective) == pytest.approx(10 * math.exp(shift), rel=0.05) and float(kappa) == 10


@pytest.mark.parametrize("seed", range(3))
def test_finds_a_model_above_the_floor(seed):
    source = world(seed=seed)
    f, W = optimal_model(source)
    W.weight.data += 2.0 * torch.randn(W.weight.shape, generator=random_stream(seed, "noise"))
    assert findings((f, W), source) == ["not at the optimum"]


def stretched_c3(source):
    "A minimiser in C3 with unit rows Bv + ψ, where six class vectors in three dimensions leave B free to stretch."
    v = source.dgp.class_vectors.double()
    i, j = torch.triu_indices(3, 3)
    equations = torch.cat([v[:, i] * v[:, j] * torch.where(i == j, 1.0, 2.0), v], dim=1)
    free = torch.linalg.svd(equations)[2][len(v)]
    S = torch.zeros(3, 3).double()
    S[i, j] = S[j, i] = free[:6]
    t, level = 0.3 / torch.linalg.eigvalsh(S).abs().max(), torch.ones(()).double()
    for _ in range(100):  # |Bv + ψ|² = v⊤(level + tS)v + t free⊤v + |ψ|² = level + |ψ|²
        B = torch.linalg.cholesky(level * torch.eye(3) + t * S).mT
        psi = torch.linalg.solve(B.mT, t * free[6:] / 2)
        level = 1 - psi.square().sum()
    f, W = optimal_model(source, "C3")
    W.weight.data = (v @ B.mT + psi)[source.dgp.instance_class].float()
    f.matrix.copy_(10 * torch.linalg.inv(B).mT)
    return f, W


@pytest.mark.parametrize("seed", range(3))
def test_finds_what_data_do_not_determine(seed):
    source = world(n_classes=6, seed=seed)
    model = stretched_c3(source)
    torch.testing.assert_close(model[1].weight.norm(dim=1), torch.ones(60))
    certificate = certify(model, source, n_samples=4096, tolerance=1e-3)
    assert abs(certificate.excess.value) < 1e-5
    assert certificate["orthogonal map"].status == "failed"
    assert [finding.name for finding in certificate.findings] == ["assumption broken", "not determined"]
    assert "rigid rows 6" in certificate.diagnosis


def test_certifies_a_short_training():
    source = world(2, 6, 24, kappa=5.0)
    result = fit(source, Encoder(2, 2, width=32, n_blocks=1), Head(24, 2), steps=400, batch_size=256, device="cpu")
    certificate = certify(result, source, tolerance=0.1)
    assert [finding.name for finding in certificate.findings] == ["at the optimum"], certificate


def test_every_finding_says_what_it_means():
    assert len(FINDINGS) == 10
    assert not any(text.endswith(".") for text in FINDINGS.values())


def test_bad_arguments_of_a_certificate_are_named(unchecked):
    source = world()
    f, W = optimal_model(source)
    for model in (f, (f, nn.Linear(3, 60)), None, (lambda x: x, W)):
        with pytest.raises(ValueError, match=r"a pair \(encoder, Head\) or the result of fit"):
            certify(model, source)
    with pytest.raises(ValueError, match="known class vectors"):
        certify((f, W), Hidden(source))
    with pytest.raises(ValueError, match="This head has 7 rows"):
        certify((f, Head(7, 3)), source)
    with pytest.raises(ValueError, match="n_samples=99"):
        certify((f, W), source, n_samples=99)
    with pytest.raises(ValueError, match="tolerance=0"):
        certify((f, W), source, tolerance=0)
    with pytest.raises(ValueError):
        certify((Then(f, lambda h: h[:, :2]), W), source)
    hidden = Hidden(source)
    hidden.dgp = source.dgp
    with pytest.raises(ValueError, match="a source whose batches have z"):
        certify((f, W), hidden)


def test_where_every_class_has_one_instance_the_level_must_be_said():
    source = world(n_classes=12, n_instances=12)
    model = optimal_model(source)
    with pytest.raises(ValueError, match="level=None"):
        certify(model, source)
    for level in ("instance", "class"):
        assert findings(model, source, level=level) == ["at the optimum"]


# Information


@pytest.mark.parametrize("extra", [{}, {"kappa": torch.linspace(2, 9, 8)}, {"class_weights": torch.arange(1.0, 9)}])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_information_is_the_curvature_of_the_excess(dim, extra):
    dgp = ClusterDGP(dim, 8, 24, **{"kappa": 5.0, **extra}).double()
    z = dgp.sample(6, random_stream(0, "data"))[0]
    natural = dgp.kappa.reshape(-1, 1) * dgp.class_vectors
    for point, information in zip(z, fisher_information(dgp, z), strict=True):
        log_p = log_class_posterior(dgp, point[None])[0]

        def kl(delta, log_p=log_p):
            return (log_p.exp() * (log_p - (log_p + natural @ delta).log_softmax(0))).sum()

        hessian = torch.autograd.functional.hessian(kl, torch.zeros(dim).double())
        torch.testing.assert_close(information, hessian, rtol=1e-6, atol=1e-8)


def test_bad_arguments_of_the_information_are_named(unchecked):
    with pytest.raises(ValueError, match="a process with conditional 'vmf'"):
        fisher_information(ClusterDGP(3, 6, 12, conditional="laplace"), torch.eye(3))
    with pytest.raises(ValueError, match="z="):
        fisher_information(ClusterDGP(3, 6, 12), torch.eye(4))


def test_temperature_without_a_single_kappa_is_unknown_and_says_so():
    def tight(mu):
        return VonMisesFisher(mu, 10.0)

    known = SyntheticSource(ClusterDGP(3, 12, 60, kappa=10.0), InvertibleMLP(3))
    custom = SyntheticSource(ClusterDGP(3, 12, 60, conditional=tight), InvertibleMLP(3))
    certificate = certify(optimal_model(known, "C1"), custom)
    assert certificate["temperature"].status == "unknown"
    assert "no single κ" in certificate["temperature"].detail
    (finding,) = certificate.findings
    assert finding.name == "at the optimum"
    assert "temperature unknown" in finding.detail


def test_a_failed_conclusion_above_the_floor_is_blamed_on_training():
    # A low κ: rows may be well off at an excess that the tolerance forgives, and yet the floor is not reached.
    source = SyntheticSource(ClusterDGP(3, 12, 60, kappa=1.0), InvertibleMLP(3))
    encoder, head = optimal_model(source, "C3")
    with torch.no_grad():
        head.weight += 0.25 * torch.randn(head.weight.shape, generator=random_stream(0, "noise"))
    certificate = certify((encoder, head), source)
    assert certificate["excess loss"].status == "passed"
    assert certificate.excess.value > 5 * certificate.excess.standard_error
    assert certificate["collapse within classes"].status == "failed"
    (finding,) = certificate.findings
    assert finding.name == "not at the optimum"
    assert "collapse within classes" in finding.detail


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_information_of_a_swapped_label_is_that_of_the_label_as_shown(noise):
    dgp = ClusterDGP(3, 5, 10, kappa=5.0, label_noise=noise, noisy_classes=4).double()
    z = dgp.sample(6, random_stream(0, "data"))[0]
    natural = dgp.kappa.reshape(-1, 1) * dgp.class_vectors
    for point, information in zip(z, fisher_information(dgp, z), strict=True):

        def log_shown(delta, point=point):
            weights = dgp.class_probability.log() + natural @ (point + delta)
            return (weights.softmax(0) @ dgp.swaps).log()

        slopes = torch.autograd.functional.jacobian(log_shown, torch.zeros(3).double())
        expected = torch.einsum("c,cd,ce->de", log_shown(torch.zeros(3).double()).exp(), slopes, slopes)
        torch.testing.assert_close(information, expected, rtol=1e-9, atol=1e-11)


def test_a_p_value_that_is_no_number_passes_nothing():
    assert theory._p_value_check("name", "line", {"a": 0.5, "b": math.nan}).status == "failed"
    assert theory._p_value_check("name", "line", {"a": 0.5, "b": 0.7}).status == "passed"
    assert theory._p_value_check("name", "line", {"a": 0.5, "b": 1e-6}).status == "failed"


def test_worlds_in_high_dimension_and_of_high_concentration_are_told_from_others():
    cauchy = ClusterDGP(300, 10, 20, conditional=lambda mu: SphericalCauchy(mu, 0.99))
    narrow = ClusterDGP(3, 10, 20, kappa=1e6)
    for dgp, status in ((cauchy, "failed"), (narrow, "passed")):
        report = check_assumptions(SyntheticSource(dgp, InvertibleMLP(dgp.dim, n_layers=1)), n_samples=5000)
        assert report["vMF conditional"].status == status


def test_very_many_class_vectors_are_checked_without_a_matrix_of_their_pairs():
    assert (
        theory._generator_check(normalize(torch.randn(200_000, 5, generator=random_stream(0, "v")))).status == "passed"
    )
