"""The process: its labels, latents, weights and swaps, and what it refuses."""

import pytest
import torch
from scipy import stats

from cegen import ClusterDGP, ProjectedNormal
from cegen.core import random_stream

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
