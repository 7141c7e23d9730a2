"""Is a cloud a vMF? Uniform p-values where it is, tiny ones where it is not, and the formulae against quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from cegen import ClusterDGP
from cegen.core import random_stream
from cegen.sphere import normalize, sample_uniform
from cegen.vmf import VonMisesFisher, cosine_cdf, fit_kappa, isotropy_p_values, mean_resultant_length, vmf_p_values


def cloud(seed, n=4000, **options):
    "Samples of a small world, the class vector and the class of each."
    dgp = ClusterDGP(**{"dim": 4, "n_classes": 10, "n_instances": 50, "kappa": 10.0, "seed": seed, **options})
    z, _, label = dgp.sample(n, random_stream(seed, "data"))
    return z, dgp.class_vectors[label], label


@pytest.mark.parametrize("kappa", [0.0, 10.0, 500.0])
@pytest.mark.parametrize("dim", [2, 3, 10])
def test_p_values_of_a_vmf_are_uniform(dim, kappa):
    clouds = [cloud(seed, n=2000, dim=dim, kappa=kappa) for seed in range(20)]
    found = [vmf_p_values(z, mu, kappa, label) for z, mu, label in clouds]
    for part in found[0]:
        assert stats.kstest([p[part] for p in found], "uniform").pvalue > 1e-3, part


def test_a_concentration_for_each_sample_is_heeded():
    kappa = torch.linspace(2, 40, 10)
    p_values = []
    for seed in range(20):
        z, mu, label = cloud(seed, kappa=kappa)
        p_values.append(vmf_p_values(z, mu, kappa[label], label)["distance"])
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert vmf_p_values(z, mu, float(kappa.mean()), label)["distance"] < 1e-6


@pytest.mark.parametrize("conditional", ["normal", "laplace"])
@pytest.mark.parametrize("seed", range(3))
def test_other_clouds_are_found_out(conditional, seed):
    z, mu, label = cloud(seed, n=100_000, conditional=conditional, dim=5, scale=1.0)
    kappa = fit_kappa(5, float((z * mu).sum(1).mean()))
    assert min(vmf_p_values(z, mu, kappa, label).values()) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_swapped_labels_are_found_out(seed):
    z, mu, label = cloud(seed, label_noise=0.05)
    assert vmf_p_values(z, mu, 10.0, label)["distance"] < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_each_class_may_be_stretched_along_an_axis_of_its_own(seed):
    z, mu, label = cloud(seed, n=20_000)
    axis = sample_uniform(10, 4, random_stream(seed, "axes"))[label]
    stretched = normalize(z + 0.3 * (z * axis).sum(1, keepdim=True) * axis)
    stretched = normalize(stretched - ((stretched - z) * mu).sum(1, keepdim=True) * mu)
    assert vmf_p_values(stretched, mu, 10.0, label)["axes"] < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_isotropy_is_tested_for_each_group(dim):
    generator = random_stream(0, "directions")
    group = torch.arange(2000) % 4
    uniform = normalize(torch.randn(2000, dim, generator=generator, dtype=torch.float64))
    assert min(isotropy_p_values(uniform, group).values()) > 1e-3
    assert set(isotropy_p_values(uniform, group)) == ({"mean direction"} if dim == 1 else {"mean direction", "axes"})
    # Two groups lean one way and two the other: all together they have no mean direction.
    leaning = normalize(uniform + torch.where(group < 2, 1.5, -1.5)[:, None] * torch.eye(dim).double()[0])
    assert isotropy_p_values(leaning, group)["mean direction"] < 1e-6
    assert isotropy_p_values(leaning, torch.zeros_like(group))["mean direction"] > 1e-3


def test_small_groups_are_pooled():
    uniform = sample_uniform(300, 3, random_stream(0, "directions"), torch.float64)
    pooled = isotropy_p_values(uniform, torch.arange(300) // 5)
    assert pooled == pytest.approx(isotropy_p_values(uniform, torch.zeros(300).long()))


@pytest.mark.parametrize("dim", [2, 3, 10, 50, 300])
@pytest.mark.parametrize("kappa", [1e-3, 0.5, 10.0, 1e3, 1e5])
def test_fit_kappa_inverts_the_mean_resultant_length(dim, kappa):
    assert fit_kappa(dim, float(mean_resultant_length(dim, kappa))) == pytest.approx(kappa, rel=1e-5)


def test_fit_kappa_at_the_ends():
    assert fit_kappa(3, 0.0) == fit_kappa(3, -0.4) == 0.0
    assert fit_kappa(3, 1.0) == 1e8


@pytest.mark.parametrize("dim", [2, 5, 20])
def test_fit_kappa_recovers_the_concentration_of_samples(dim):
    mu = torch.eye(dim)[0].expand(20_000, dim)
    z = VonMisesFisher(mu, 20.0).sample(generator=random_stream(dim, "data"))
    assert fit_kappa(dim, float(z[:, 0].mean())) == pytest.approx(20.0, rel=0.03)


@pytest.mark.parametrize("dim", [2, 3, 5, 10, 50])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 10.0, 300.0, 1e4])
def test_cosine_cdf_by_quadrature(dim, kappa):
    def mass(angle):
        return np.sin(angle) ** (dim - 2) * np.exp(kappa * (np.cos(angle) - 1))

    edge = min(math.pi, 2 * (math.sqrt(dim) + 8) / math.sqrt(max(kappa, 1e-12)))
    angles = np.linspace(0.02, 0.98, 9) * edge
    options = {"epsabs": 0, "epsrel": 1e-9, "limit": 200}
    inner = np.array([integrate.quad(mass, 0, a, **options)[0] for a in angles])
    outer = np.array([integrate.quad(mass, a, edge, **options)[0] for a in angles])
    np.testing.assert_allclose(cosine_cdf(np.cos(angles), kappa, dim), outer / (inner + outer), atol=2e-5)


def test_cosine_cdf_is_a_distribution_function():
    values = cosine_cdf(np.linspace(-1, 1, 1001), 5.0, 4)
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[-1] == pytest.approx(1)
    assert (np.diff(values) >= 0).all()
