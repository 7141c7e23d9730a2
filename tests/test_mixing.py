"""The generator: exact inverse, chosen conditioning, bounded construction time, and what it refuses."""

import time

import pytest
import torch

from cegen import InvertibleMLP
from cegen.core import random_stream
from cegen.mixing import find_preimages, gains, relative_gain, tangent_jacobian
from cegen.sphere import sample_uniform, tangent_basis


@pytest.mark.parametrize("dim", [2, 5, 20, 100])
@pytest.mark.parametrize("extra", [0, 7])
def test_round_trip_in_single_precision(dim, extra):
    g = InvertibleMLP(dim, observed_dim=dim + extra, seed=dim)
    z = sample_uniform(500, dim, random_stream(0, "data"))
    x = g(z)
    assert x.shape == (500, dim + extra)
    assert (g.inverse(x) - z).abs().max() < 1e-4


@pytest.mark.parametrize("dim", [3, 5, 10])
def test_round_trip_of_the_published_law(dim):
    g = InvertibleMLP(dim, law="published")
    z = sample_uniform(500, dim, random_stream(0, "data"))
    assert (g.inverse(g(z)) - z).abs().max() < 1e-3


@pytest.mark.parametrize("condition_number", [1.0, 3.0, 50.0])
def test_layers_have_the_chosen_condition_number(condition_number):
    g = InvertibleMLP(8, condition_number=condition_number)
    expected = torch.full((4,), condition_number)
    torch.testing.assert_close(g.layer_condition_numbers, expected, rtol=1e-4, atol=0)


def test_published_layers_have_unit_columns_and_beat_ordinary_draws():
    g = InvertibleMLP(5, law="published")
    torch.testing.assert_close(g.weights.norm(dim=1), torch.ones(4, 5))
    draws = 2 * torch.rand(1000, 5, 5, generator=random_stream(0, "draws")) - 1
    assert g.layer_condition_numbers.max() < torch.linalg.cond(draws / draws.norm(dim=1, keepdim=True)).min()


def test_construction_time_is_bounded():
    # The issue is seconds against minutes; the bounds leave room for a busy machine.
    start = time.perf_counter()
    InvertibleMLP(100)
    conditioned = time.perf_counter() - start
    InvertibleMLP(20, law="published")
    published = time.perf_counter() - start - conditioned
    assert conditioned < 3
    assert published < 20


def test_jacobian_condition_number_agrees_with_finite_differences():
    g = InvertibleMLP(3, seed=2).double()
    z = sample_uniform(5, 3, random_stream(0, "data"), dtype=torch.float64)
    step = 1e-7 * torch.eye(3, dtype=torch.float64)
    jacobian = torch.stack([(g(z + e) - g(z)) / 1e-7 for e in step], dim=2)
    torch.testing.assert_close(g.condition_number(z), torch.linalg.cond(jacobian), rtol=1e-4, atol=0)


def test_embedding_keeps_distances():
    flat, embedded = InvertibleMLP(4), InvertibleMLP(4, observed_dim=9)
    z = sample_uniform(50, 4, random_stream(0, "data"))
    torch.testing.assert_close(torch.pdist(flat(z)), torch.pdist(embedded(z)), rtol=1e-4, atol=1e-5)


def test_seed_decides_the_weights_and_nothing_else():
    before = torch.get_rng_state()
    assert torch.equal(InvertibleMLP(4, seed=1).weights, InvertibleMLP(4, seed=1).weights)
    assert not torch.equal(InvertibleMLP(4, seed=1).weights, InvertibleMLP(4, seed=2).weights)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 1}, "dim=1"),
        ({"dim": 5, "observed_dim": 4}, "cannot lower the dimension"),
        ({"dim": 5, "law": "orthogonal"}, "one of 'conditioned', 'published'"),
        ({"dim": 5, "condition_number": 0.5}, r"condition_number=0\.5"),
        ({"dim": 5, "negative_slope": 0.0}, r"negative_slope=0\.0"),
        ({"dim": 5, "n_layers": 0}, "n_layers=0"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        InvertibleMLP(**arguments)


def test_wrong_shapes_and_nan_are_refused(unchecked):
    g = InvertibleMLP(5, observed_dim=6)
    with pytest.raises(ValueError, match="Samples are rows"):
        g(torch.ones(5, 100))
    with pytest.raises(ValueError, match="Samples are rows"):
        g.inverse(torch.ones(5, 5))
    with pytest.raises(ValueError, match="NaN or infinity"):
        g.inverse(torch.full((5, 6), float("inf")))


# Injectivity


def points(dim, n, name):
    "Uniform points on the sphere in double precision."
    return sample_uniform(n, dim, random_stream(dim, name), torch.float64)


def fold(z):
    "Mirror images look the same."
    return torch.cat([z[:, :1].abs(), z[:, 1:]], dim=1)


def flat(z):
    "One direction is lost."
    return z[:, 1:]


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_tangent_jacobian_agrees_with_reverse_mode(dim):
    g, z = InvertibleMLP(dim, observed_dim=dim + 2).double(), points(dim, 10, "data")
    full = torch.vmap(torch.func.jacrev(g))(z)
    torch.testing.assert_close(tangent_jacobian(g, z), full @ tangent_basis(z))


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_gains_of_known_maps(dim):
    z = points(dim, 20, "data")
    torch.testing.assert_close(gains(lambda z: 3 * z, z), torch.full((20, dim - 1), 3.0).double())
    pole = torch.eye(dim).double()[:1]
    stretch = torch.arange(1.0, dim + 1).double()
    expected = stretch[1:].flip(0)[None]
    torch.testing.assert_close(gains(lambda z: z * stretch, pole), expected)
    torch.testing.assert_close(gains(lambda z: (z * stretch).unflatten(1, (1, dim, 1)), pole), expected)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_preimages_of_a_fold_are_mirror_images(dim):
    z, start = points(dim, 200, "data"), points(dim, 200, "start")
    found, gap = find_preimages(fold, z, start)
    met = gap < 1e-6
    assert met.double().mean() > 0.4
    mirror = torch.cat([-z[:, :1], z[:, 1:]], dim=1)
    off = torch.minimum((found - z).norm(dim=1), (found - mirror).norm(dim=1))
    assert off[met].max() < 1e-4
    assert ((found - mirror).norm(dim=1)[met] < 1e-4).any()


def test_no_steps_leave_the_start():
    z, start = points(3, 10, "data"), points(3, 10, "start")
    found, gap = find_preimages(fold, z, start, n_steps=0)
    assert torch.equal(found, start)
    torch.testing.assert_close(gap, (fold(start) - fold(z)).norm(dim=1))


@pytest.mark.parametrize("dim", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_relative_gain_tells_injective_maps_from_others(dim, seed):
    z, start = points(dim, 16, f"data {seed}"), points(dim, 128, f"start {seed}")
    g = InvertibleMLP(dim, seed=seed).double()
    assert 1e-4 < relative_gain(g, z, start) <= 1
    assert relative_gain(lambda z: g(fold(z)), z, start) < 1e-6
    assert relative_gain(torch.zeros_like, z, start) == 0
    if dim > 2:
        assert relative_gain(lambda z: flat(g(z)), z, start) < 1e-2


def test_relative_gain_of_an_isometry_is_one():
    z, start = points(4, 32, "data"), points(4, 64, "start")
    assert relative_gain(lambda z: 7 * z, z, start) == pytest.approx(1, abs=1e-6)


def test_the_inverse_of_an_embedding_is_exact_in_double_precision():
    g = InvertibleMLP(5, 9).double()
    z = sample_uniform(200, 5, random_stream(0, "z"), torch.float64)
    assert (g.inverse(g(z)) - z).abs().max() < 1e-11


def test_directions_that_fewer_observations_cannot_hold_are_lost():
    z = sample_uniform(8, 6, random_stream(0, "z"), torch.float64)
    matrix = torch.randn(3, 6, generator=random_stream(0, "map"), dtype=torch.float64)
    found = gains(lambda u: u @ matrix.T, z)
    assert found.shape == (8, 5)
    assert not found[:, 3:].any() and found[:, :3].all()
    assert relative_gain(lambda u: u @ matrix.T, z, z) == 0.0
    with pytest.raises(ValueError, match="start=.*a multiple of 8"):
        relative_gain(lambda u: u @ matrix.T, z, z[:3])
