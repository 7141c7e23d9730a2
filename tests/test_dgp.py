"""The process: its labels, latents, weights and swaps, and what it refuses."""

import numpy as np
import pytest
import torch
from scipy import stats

from cegen import ClusterDGP, ProjectedNormal, VonMisesFisher
from cegen.core import random_stream
from cegen.sphere import ProjectedAnisotropicNormal, SphereMixture, SphericalCauchy, scatter_around

N_SAMPLES = 20_000


def draw(dgp, n=N_SAMPLES, seed=0):
    return dgp.sample(n, random_stream(seed, "data"))


@pytest.mark.parametrize("dim", [2, 3, 10, 50])
@pytest.mark.parametrize("conditional", ["vmf", "normal", "laplace", "generalized_normal"])
def test_latents_are_unit_vectors_around_their_class_vector(dim, conditional):
    dgp = ClusterDGP(dim=dim, n_classes=5, n_instances=20, kappa=10 * dim, scale=0.1, conditional=conditional)
    z, instance, label = draw(dgp, 2000)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2000), atol=1e-5, rtol=0)
    assert torch.equal(label, dgp.instance_class[instance])
    for c in range(5):
        mean = torch.nn.functional.normalize(z[label == c].mean(0), dim=0)
        assert mean @ dgp.class_vectors[c] > 0.98


def test_instances_are_uniform_and_every_class_is_in_use():
    dgp = ClusterDGP(n_classes=7, n_instances=50)
    _, instance, _ = draw(dgp)
    assert stats.chisquare(torch.bincount(instance, minlength=50).numpy()).pvalue > 1e-3
    assert torch.equal(dgp.class_size, torch.tensor([8, 7, 7, 7, 7, 7, 7]))


def test_class_weights_set_the_share_of_classes_and_leave_instances_uniform_within():
    weights = torch.tensor([5.0, 3.0, 2.0])
    dgp = ClusterDGP(n_classes=3, n_instances=10, class_weights=weights)
    _, instance, label = draw(dgp)
    assert stats.chisquare(torch.bincount(label).numpy(), (weights / 10 * N_SAMPLES).numpy()).pvalue > 1e-3
    within = torch.bincount(instance[label == 0])[dgp.by_class[:4]]
    assert stats.chisquare(within.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("noisy", "members"), [(2, [0, 1]), ([1, 3, 4], [1, 3, 4]), (None, range(5))])
def test_label_noise_swaps_the_stated_share_within_the_stated_classes(noisy, members):
    dgp = ClusterDGP(dim=5, n_classes=5, n_instances=40, kappa=1e4, label_noise=0.3, noisy_classes=noisy, seed=1)
    z, instance, shown = draw(dgp)
    true = (z @ dgp.class_vectors.T).argmax(1)
    assert torch.equal(shown, dgp.instance_class[instance])
    for c in range(5):
        swapped = (shown[true == c] != c).float().mean()
        assert abs(swapped - (0.3 if c in members else 0)) < 0.03
    assert set(shown[true != shown].tolist()) <= set(members)


def test_kappa_may_differ_between_classes():
    dgp = ClusterDGP(dim=3, n_classes=2, n_instances=2, kappa=torch.tensor([1.0, 100.0]))
    z, _, label = draw(dgp)
    spread = [1 - (z[label == c] @ dgp.class_vectors[c]).mean() for c in range(2)]
    expected = 1 - dgp.distribution().mean.norm(dim=1)
    torch.testing.assert_close(torch.stack(spread), expected, atol=0.02, rtol=0)


def test_own_class_vectors_instance_map_and_conditional_are_used():
    vectors, instances = torch.eye(4), torch.tensor([3, 3, 0, 1, 2])
    dgp = ClusterDGP(
        4, 4, 5, class_vectors=vectors, instance_class=instances, conditional=lambda mu: ProjectedNormal(mu, 0.01)
    )
    z, instance, label = draw(dgp, 500)
    assert torch.equal(dgp.class_vectors, vectors)
    assert torch.equal(label, instances[instance])
    assert ((z * vectors[label]).sum(1) > 0.99).all()


CONDITIONALS = {
    "cauchy": lambda mu: SphericalCauchy(mu, 0.8),
    "anisotropic": lambda mu: ProjectedAnisotropicNormal(mu, [0.6, 0.1, 0.3]),
    "mixture": lambda mu: SphereMixture(VonMisesFisher(scatter_around(mu, 4, 0.7, generator=5), 50.0), [4, 3, 2, 1]),
    "scale of each class": lambda mu: ProjectedNormal(mu, torch.linspace(0.1, 1.0, 6).to(mu)),
}


@pytest.mark.parametrize("name", CONDITIONALS)
def test_samples_of_own_conditionals_have_their_density(name):
    dgp = ClusterDGP(dim=3, n_classes=6, n_instances=12, conditional=CONDITIONALS[name])
    z, _, label = draw(dgp)
    whole = dgp.distribution(dtype=torch.float64)
    for c in range(6):
        found = -dgp.log_conditional(z[label == c].double())[:, c]  # single-precision samples, double-precision density
        fresh = -whole[c].log_prob(whole[c].sample((len(found),), 9))
        assert stats.ks_2samp(found.numpy(), fresh.numpy()).pvalue > 1e-4
        for k in range(3):
            other = whole[c].sample((4000,), 10 + k)[:, k]
            assert stats.ks_2samp(z[label == c, k].numpy(), other.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("name", [*CONDITIONALS, "vmf", "normal", "laplace"])
def test_log_conditional_is_the_density_of_every_class(name):
    dgp = ClusterDGP(
        dim=3, n_classes=6, n_instances=12, kappa=torch.arange(6.0), conditional=CONDITIONALS.get(name, name)
    )
    z = draw(dgp, 50)[0]
    for dtype in (torch.float32, torch.float64):
        log_p = dgp.log_conditional(z.to(dtype))
        assert log_p.dtype == dtype
        torch.testing.assert_close(
            log_p, dgp.distribution(dtype=dtype).log_prob(z.to(dtype)[:, None]), rtol=1e-5, atol=1e-4
        )


def test_own_conditional_sees_all_classes_however_few_are_drawn():
    seen = []

    def conditional(mu):
        seen.append(mu)
        return SphericalCauchy(mu, torch.linspace(0.1, 0.9, 5))

    dgp = ClusterDGP(dim=4, n_classes=5, n_instances=5, conditional=conditional)
    law = dgp.distribution(torch.tensor([4, 4, 0]))
    assert torch.equal(law.rho, torch.tensor([0.9, 0.9, 0.1]))
    assert all(torch.equal(mu, dgp.class_vectors) for mu in seen)


def test_own_conditional_may_be_a_module_that_moves_with_the_process():
    class Mixture(torch.nn.Module):
        def __init__(self, sub_vectors):
            super().__init__()
            self.register_buffer("sub_vectors", sub_vectors)

        def forward(self, mu):
            return SphereMixture(VonMisesFisher(self.sub_vectors.to(mu), 100.0))

    a, b = (ClusterDGP(3, 2, 2, conditional=Mixture(scatter_around(torch.eye(3)[:2], 3, 0.5, s))) for s in (0, 1))
    b.load_state_dict(a.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(draw(a, 50), draw(b, 50), strict=True))


def test_conditionals_from_elsewhere_are_given_the_rows_of_the_batch():
    class Still(torch.distributions.Distribution):
        "A distribution of another library: it cannot be indexed."

        def __init__(self, mu):
            self.mu = mu
            super().__init__(mu.shape[:-1], mu.shape[-1:], validate_args=False)

        def sample(self, sample_shape=(), generator=None):
            return self.mu

        def log_prob(self, value):
            return (value * self.mu).sum(-1)

    dgp = ClusterDGP(3, 4, 8, conditional=Still)
    z, _, label = draw(dgp, 100)
    assert torch.equal(z, dgp.class_vectors[label])
    torch.testing.assert_close(dgp.log_conditional(z), z @ dgp.class_vectors.T)


@pytest.mark.parametrize(
    ("conditional", "message"),
    [
        (lambda mu: SphericalCauchy(mu[0], 0.5), r"SphericalCauchy of batch shape \(\)"),
        (lambda mu: SphericalCauchy(mu[:, None], 0.5), r"batch shape \(4, 1\)'.*of batch shape \(4,\)"),
        (lambda mu: mu, "a Tensor of batch shape"),
    ],
)
def test_own_conditional_must_give_a_distribution_for_each_class(unchecked, conditional, message):
    dgp = ClusterDGP(3, 4, 8, conditional=conditional)
    with pytest.raises(ValueError, match=message):
        dgp.sample(5, 0)
    with pytest.raises(ValueError, match=message):
        dgp.log_conditional(torch.eye(3))


def test_concentrated_class_vectors_crowd_around_the_first_axis():
    dgp = ClusterDGP(dim=5, n_classes=200, class_vectors="concentrated", class_concentration=100.0)
    assert dgp.class_vectors[:, 0].mean() > 0.95


def test_one_seed_one_world_and_one_generator_one_sample():
    a, b, c = (ClusterDGP(seed=s) for s in (0, 0, 1))
    assert torch.equal(a.class_vectors, b.class_vectors)
    assert not torch.equal(a.class_vectors, c.class_vectors)
    assert all(torch.equal(x, y) for x, y in zip(draw(a, 100), draw(b, 100), strict=True))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    draw(ClusterDGP(label_noise=0.1, conditional="laplace"), 100)
    assert torch.equal(before, torch.get_rng_state())


def test_state_dict_round_trip():
    a, b = ClusterDGP(seed=0, n_classes=4, n_instances=9), ClusterDGP(seed=1, n_classes=4, n_instances=9)
    b.load_state_dict(a.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(draw(a, 50), draw(b, 50), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 1}, "dim=1"),
        ({"dim": 2.0}, r"dim=2\.0"),
        ({"n_classes": 0}, "n_classes=0"),
        ({"n_classes": 11, "n_instances": 10}, "Every class needs an instance"),
        ({"n_instances": 0}, "n_instances=0"),
        ({"kappa": -1.0}, r"kappa=-1\.0"),
        ({"kappa": float("nan")}, "kappa=nan"),
        ({"kappa": torch.ones(3)}, "one a class"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"conditional": "gaussian"}, "one of 'vmf', 'normal', 'laplace', 'generalized_normal'"),
        ({"class_vectors": "unifrom"}, "Did you mean 'uniform'"),
        ({"class_vectors": 2 * torch.eye(5), "n_classes": 5}, "class_vectors"),
        ({"class_vectors": torch.eye(4), "n_classes": 5}, r"of shape \(5, 5\)"),
        ({"class_weights": torch.tensor([1.0, -1.0]), "n_classes": 2}, "class_weights"),
        ({"class_weights": torch.ones(3), "n_classes": 2}, "2 finite numbers"),
        ({"label_noise": 1.5}, r"label_noise=1\.5"),
        ({"label_noise": 0.1, "noisy_classes": 1}, "two or more classes"),
        ({"label_noise": 0.1, "noisy_classes": [0, 1000]}, "noisy_classes"),
        ({"instance_class": torch.zeros(1000).long()}, "Every class must be in use"),
        ({"instance_class": torch.zeros(3).long()}, "1000 integers"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusterDGP(**arguments)


def test_bad_samples_are_refused(unchecked):
    dgp = ClusterDGP()
    with pytest.raises(ValueError, match="n=0"):
        dgp.sample(0, random_stream(0, "data"))
    with pytest.raises(ValueError, match="Samples are rows"):
        dgp.log_conditional(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"index \(0, 0\)"):
        dgp.log_conditional(torch.full((2, 5), float("nan")))


def test_a_process_that_is_loaded_is_the_process_that_was_saved():
    blocks = torch.arange(12) // 4
    for made, fresh in (
        ({"instance_class": blocks, "label_noise": 0.3}, {"label_noise": 0.3}),
        ({"class_weights": torch.tensor([9.0, 1.0, 1.0])}, {}),
        ({}, {"class_weights": torch.tensor([9.0, 1.0, 1.0])}),
        ({"class_weights": torch.ones(3)}, {"class_weights": torch.ones(3)}),
        ({"class_weights": torch.ones(3)}, {}),
    ):
        saved, loaded = (ClusterDGP(3, 3, 12, **arguments) for arguments in (made, fresh))
        loaded.load_state_dict(saved.state_dict())
        for a, b in zip(saved.sample(2000, 0), loaded.sample(2000, 0), strict=True):
            assert torch.equal(a, b)
        _, instance, label = loaded.sample(2000, 0)
        assert torch.equal(loaded.instance_class[instance], label)


def test_what_is_given_stays_the_callers_own():
    kappa, classes = torch.full((5,), 10.0), torch.arange(10) % 5
    dgp = ClusterDGP(3, 5, 10, kappa=kappa, instance_class=classes)
    kappa.mul_(100)
    classes[0] = 4
    assert dgp.kappa.tolist() == [10.0] * 5
    assert dgp.instance_class[0] == 0


def test_a_world_has_the_precision_that_is_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        for law in ("uniform", "concentrated"):
            dgp = ClusterDGP(3, 5, 10, class_vectors=law)
            assert dgp.class_vectors.dtype == dgp.sample(4, 0)[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("noisy", [np.int64(3), np.arange(3), torch.arange(3), [0, 1, 2], range(3), 3])
def test_noisy_classes_may_be_a_number_or_numbers_of_any_kind(unchecked, noisy):
    swaps = ClusterDGP(3, 5, 10, label_noise=0.5, noisy_classes=noisy).swaps
    assert torch.equal(swaps, ClusterDGP(3, 5, 10, label_noise=0.5, noisy_classes=3).swaps)
    torch.testing.assert_close(swaps.sum(1), torch.ones(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kappa": 1e9}, r"kappa=.*≤ 1e\+08"),
        ({"class_vectors": "concentrated", "class_concentration": 1e9}, "class_concentration="),
        ({"label_noise": 0.5, "noisy_classes": [0.0, 1.0]}, "noisy_classes="),
        ({"label_noise": 0.5, "noisy_classes": 1.5}, "noisy_classes="),
        ({"label_noise": 0.5, "noisy_classes": "all"}, "noisy_classes="),
    ],
)
def test_ranges_are_those_of_the_law(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusterDGP(3, 5, 10, **arguments)
