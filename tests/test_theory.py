"""The floor: against independent computations, limits that are known, and models that must not beat it."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from cegen import ClusterDGP, InvertibleMLP, SyntheticSource, theory
from cegen.core import Batch, random_stream
from cegen.theory import bayes_cross_entropy, bayes_surprise, effective_beta, log_class_posterior, mean_of


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


def test_memory_stays_flat_in_chunks():
    dgp = ClusterDGP(5, 100, 1000)
    whole = bayes_cross_entropy(dgp, n_samples=1001)
    parts = bayes_cross_entropy(dgp, n_samples=1001, chunk_elements=500 * 7)
    assert whole.n == parts.n == 1001
    assert abs(whole.value - parts.value) < 4 * math.hypot(whole.standard_error, parts.standard_error)


def test_bad_input(unchecked):
    dgp = ClusterDGP()
    with pytest.raises(ValueError, match="one of 'instance', 'class'"):
        bayes_cross_entropy(dgp, level="pixel")
    with pytest.raises(ValueError, match="n_samples=1"):
        bayes_cross_entropy(dgp, n_samples=1)
    one = torch.zeros(3).long()
    with pytest.raises(ValueError, match="needs the true latents"):
        theory.bayes_surprise(dgp, Batch(x=torch.ones(3, 5), instance=one, label=one))
