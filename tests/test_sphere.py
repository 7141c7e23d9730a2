"Uniform points, tangent spaces, rotations, and projected noise."

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from cegen.sphere import (
    ProjectedGeneralizedNormal,
    ProjectedLaplace,
    ProjectedNormal,
    SphereDistribution,
    check_unit,
    log_sphere_area,
    normalize,
    procrustes,
    random_orthogonal,
    sample_uniform,
    tangent_basis,
    unit_sphere,
)

P_MIN = 1e-4  # p-values of the statistical tests; the seeds are fixed

FAMILIES = {
    "normal": (ProjectedNormal, {}),
    "laplace": (ProjectedLaplace, {}),
    "shape 1": (ProjectedGeneralizedNormal, {"shape": 1.0}),
    "shape 1.5": (ProjectedGeneralizedNormal, {"shape": 1.5}),
    "shape 3": (ProjectedGeneralizedNormal, {"shape": 3.0}),
    "shape 8": (ProjectedGeneralizedNormal, {"shape": 8.0}),
}
POTENTIALS = {
    "normal": (lambda t: t**2 / 2, math.log(2 * math.pi) / 2),
    "laplace": (np.abs, math.log(2)),
} | {
    f"shape {p:g}": (lambda t, p=p: np.abs(t) ** p, math.log(2) + math.lgamma(1 + 1 / p)) for p in (1.0, 1.5, 3.0, 8.0)
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(n):
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


# --- geometry


@pytest.mark.parametrize("size", [1e-38, 1.0, 1e37])
def test_normalize_survives_extreme_lengths(size):
    x = sample_uniform(50, 7, generator())
    torch.testing.assert_close(normalize(x * size), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_normalize_names_the_row_without_direction(bad):
    x = torch.ones(4, 3)
    x[2] = bad
    with pytest.raises(ValueError, match=r"row \(2,\)"):
        normalize(x)


def test_normalize_is_differentiable():
    x = sample_uniform(4, 3, generator(), torch.float64).mul(3).requires_grad_()
    assert torch.autograd.gradcheck(normalize, (x,))


def test_check_unit_tells_row_norm_and_fix():
    x = sample_uniform(6, 3, generator()).reshape(2, 3, 3)
    assert check_unit("v", x) is x
    x[1, 0] *= 1.001
    with pytest.raises(ValueError, match=r"v=.*row \(1, 0\) has norm 1.001.*normalize\(v\)"):
        check_unit("v", x)


@pytest.mark.parametrize(("dim", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)])
def test_area_of_small_spheres(dim, area):
    assert log_sphere_area(dim) == pytest.approx(math.log(area), abs=1e-14)


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_points_have_the_uniform_law_in_every_direction(dim, dtype):
    z = sample_uniform(20_000, dim, generator(1), dtype)
    assert z.dtype == dtype
    assert unit_sphere.check(z).all()
    # (1 + <z, a>)/2 has a Beta law for every fixed direction a.
    law = stats.beta((dim - 1) / 2, (dim - 1) / 2)
    for a in (torch.eye(dim, dtype=dtype)[0], torch.full((dim,), dim**-0.5, dtype=dtype)):
        assert stats.kstest(((1 + z @ a) / 2).double().numpy(), law.cdf).pvalue > P_MIN


def test_normalised_cube_fails_the_same_test():
    z = normalize(2 * torch.rand(20_000, 2, generator=generator(1)) - 1)
    a = torch.full((2,), 0.5**0.5)
    assert stats.kstest(((1 + z @ a) / 2).double().numpy(), stats.beta(0.5, 0.5).cdf).pvalue < P_MIN


@pytest.mark.parametrize("dim", [0, 1, 2.0, True])
def test_uniform_refuses_dimensions_below_two(unchecked, dim):
    with pytest.raises(ValueError, match="dim="):
        sample_uniform(3, dim, generator())


def test_seed_and_generator_give_the_same_points():
    assert torch.equal(sample_uniform(5, 3, 11), sample_uniform(5, 3, generator(11)))


@pytest.mark.parametrize("dim", [2, 3, 17])
def test_tangent_basis_is_orthonormal_everywhere(dim):
    axes = torch.eye(dim, dtype=torch.float64)
    near = normalize(axes + 1e-9 * torch.randn(dim, dim, generator=generator(), dtype=torch.float64))
    mu = torch.cat([sample_uniform(50, dim, generator(), torch.float64), axes, -axes, near, -near]).reshape(2, -1, dim)
    basis = tangent_basis(mu)
    assert basis.shape == (2, mu.shape[1], dim, dim - 1)
    whole = torch.cat([mu[..., None], basis], dim=-1)
    torch.testing.assert_close(
        whole.mT @ whole, torch.eye(dim, dtype=torch.float64).expand(2, mu.shape[1], dim, dim), rtol=0, atol=1e-14
    )


def test_random_orthogonal_is_haar():
    g = generator(2)
    q = torch.stack([random_orthogonal(3, g, torch.float64) for _ in range(4000)])
    torch.testing.assert_close(q @ q.mT, torch.eye(3, dtype=torch.float64).expand(4000, 3, 3), rtol=0, atol=1e-13)
    for i, j in itertools.product(range(3), range(3)):  # every entry is uniform on (-1, 1) in three dimensions
        assert stats.kstest(q[:, i, j].numpy(), stats.uniform(-1, 2).cdf).pvalue > P_MIN
    assert abs(torch.linalg.det(q).mean().item()) < 0.06  # both orientations


@pytest.mark.parametrize("reflect", [False, True])
def test_procrustes_returns_the_map_that_was_applied(reflect):
    q = random_orthogonal(4, generator(3), torch.float64)
    if (torch.linalg.det(q) < 0) != reflect:
        q[:, 0] *= -1
    z_tilde = torch.randn(30, 4, generator=generator(4), dtype=torch.float64)
    found, scale = procrustes(0.3 * z_tilde @ q, z_tilde)
    torch.testing.assert_close(found, q, rtol=0, atol=1e-13)
    assert scale.item() == pytest.approx(0.3, abs=1e-13)


def test_procrustes_is_the_minimum():
    g = generator(5)
    z, z_tilde = (torch.randn(40, 3, generator=g, dtype=torch.float64) for _ in range(2))
    q, scale = procrustes(z, z_tilde)
    best = (z - scale * z_tilde @ q).square().sum()
    for _ in range(200):
        skew = torch.randn(3, 3, generator=g, dtype=torch.float64) * 0.05
        other = q @ torch.linalg.matrix_exp(skew - skew.T)
        factor = 1 + 0.05 * torch.randn((), generator=g, dtype=torch.float64)
        assert (z - factor * scale * z_tilde @ other).square().sum() > best


@pytest.mark.parametrize(
    ("z_tilde", "message"),
    [(torch.ones(5, 2), "of shape"), (torch.zeros(5, 3), "not zero"), (torch.full((5, 3), math.nan), "finite")],
)
def test_procrustes_refuses(unchecked, z_tilde, message):
    with pytest.raises(ValueError, match=message):
        procrustes(torch.ones(5, 3), z_tilde)


# --- projected noise


def reference_log_prob(name, z, mu, scale):
    "Brute force: Gauss's rule on thousands of panels that shrink towards every corner of the integrand."
    potential, log_mass = POTENTIALS[name]
    dim = len(z)

    def log_f(r):
        return (dim - 1) * np.log(r) - potential((r[:, None] * z - mu) / scale).sum(-1)

    log_r = np.linspace(-90, 10, 100_001)
    level = log_f(np.exp(log_r))
    inside = np.flatnonzero(level > level.max() - 40)
    assert inside[0] > 0
    low, high = np.exp(log_r[inside[0] - 1]), np.exp(log_r[inside[-1] + 1])
    cuts = np.sort(np.concatenate([[low, high], np.clip(mu / z, low, high)]))
    fine = 2.0 ** np.arange(-30, 0)
    panels = np.unique(np.concatenate([[0, 1], fine, 1 - fine, np.linspace(0, 1, 40)]))
    node, weight = np.polynomial.legendre.leggauss(12)
    total = 0.0
    for left, right in itertools.pairwise(cuts[np.diff(cuts, prepend=-1) > 0]):
        edge = left + (right - left) * panels
        half = np.diff(edge)[:, None] / 2
        r = edge[:-1, None] + half * (1 + node)
        total += (np.exp(log_f(r.ravel()) - level.max()).reshape(r.shape) * weight * half).sum()
    return level.max() + math.log(total) - dim * (math.log(scale) + log_mass)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("dim", [2, 5, 20])
def test_projected_density_agrees_with_brute_force(name, scale, dim):
    family, parameters = FAMILIES[name]
    g = generator(dim)
    mu = sample_uniform(1, dim, g, torch.float64)[0]
    z = torch.cat([sample_uniform(2, dim, g, torch.float64), mu[None], -mu[None]])
    z = torch.cat([z, family(mu, scale, **parameters).sample((2,), g)])
    expected = [reference_log_prob(name, row, mu.numpy(), scale) for row in z.numpy()]
    np.testing.assert_allclose(
        family(mu, scale, **parameters).log_prob(z).numpy(), expected, rtol=0, atol=1e-4 if "shape" in name else 1e-6
    )


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_projected_normal_closed_form_on_the_circle(scale):
    z = circle(360)
    mu = z[17]
    m = (z @ mu).numpy() / scale
    expected = np.exp(-1 / (2 * scale**2)) / (2 * math.pi) * (1 + m * stats.norm.cdf(m) / stats.norm.pdf(m))
    np.testing.assert_allclose(ProjectedNormal(mu, scale).log_prob(z).exp().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_projected_density_integrates_to_one_on_the_circle(name, scale):
    family, parameters = FAMILIES[name]
    z = circle(20_000)
    density = family(z[1234], scale, **parameters).log_prob(z).exp()
    assert (density.mean() * 2 * math.pi).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_projected_density_integrates_to_one_on_the_sphere(name):
    family, parameters = FAMILIES[name]
    height, weight = np.polynomial.legendre.leggauss(80)
    angle = np.arange(160) * (2 * math.pi / 160)
    h, a = (torch.from_numpy(v).reshape(-1) for v in np.meshgrid(height, angle, indexing="ij"))
    z = torch.stack([(1 - h**2).sqrt() * a.cos(), (1 - h**2).sqrt() * a.sin(), h], dim=-1)
    density = (
        family(normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)), 0.7, **parameters).log_prob(z).exp()
    )
    total = (density.reshape(80, 160).mean(1).numpy() * weight).sum() * 2 * math.pi
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_projected_samples_follow_the_density(name, dtype, scale):
    family, parameters = FAMILIES[name]
    n = 20_000
    grid = circle(4000)
    mu = grid[321].to(dtype)
    density = family(grid[321], scale, **parameters).log_prob(grid).exp().numpy()
    cdf = integrate.cumulative_trapezoid(np.append(density, density[0]), dx=2 * math.pi / 4000, initial=0)
    z = family(mu, scale, **parameters).sample((n,), generator(6)).double()
    angle = torch.atan2(z[:, 1], z[:, 0]).remainder(2 * math.pi).numpy()
    edges = np.linspace(0, 2 * math.pi, 4001)
    assert stats.kstest(angle, lambda t: np.interp(t, edges, cdf)).pvalue > P_MIN
    assert (
        stats.kstest(angle + 0.2 * scale, lambda t: np.interp(t, edges, cdf)).pvalue < P_MIN
    )  # a small turn is noticed


def test_generalised_normal_contains_the_other_two():
    g = generator(7)
    mu, z = sample_uniform(3, 4, g, torch.float64), sample_uniform(20, 4, g, torch.float64)[:, None]
    laplace = ProjectedGeneralizedNormal(mu, 0.4, 1.0).log_prob(z)
    torch.testing.assert_close(laplace, ProjectedLaplace(mu, 0.4).log_prob(z), rtol=0, atol=1e-10)
    normal = ProjectedGeneralizedNormal(mu, 0.4 * math.sqrt(2), 2.0).log_prob(z)
    torch.testing.assert_close(normal, ProjectedNormal(mu, 0.4).log_prob(z), rtol=0, atol=1e-6)


def test_projected_rows_have_their_own_parameters():
    g = generator(8)
    mu = sample_uniform(6, 3, g)
    scale, shape = torch.linspace(0.2, 2, 6), torch.linspace(1, 6, 6)
    cloud = ProjectedGeneralizedNormal(mu, scale, shape)
    z = sample_uniform(5, 3, g)
    together = cloud.log_prob(z[:, None])
    assert together.shape == (5, 6)
    assert together.dtype == torch.float32
    for c in range(6):
        alone = ProjectedGeneralizedNormal(mu[c], scale[c], shape[c]).log_prob(z)
        torch.testing.assert_close(together[:, c], alone, rtol=1e-6, atol=1e-6)
    assert cloud.sample((2, 3), g).shape == (2, 3, 6, 3)


def test_large_requests_are_cut_into_blocks_without_a_trace():
    g = generator(9)
    mu, z = sample_uniform(30, 5, g, torch.float64), sample_uniform(400, 5, g, torch.float64)
    cloud = ProjectedLaplace(mu)
    torch.testing.assert_close(cloud.log_prob(z[:, None])[7], cloud.log_prob(z[7]), rtol=0, atol=1e-12)


def test_projected_noise_at_zero_coordinates():
    z = torch.eye(3, dtype=torch.float64)
    for family, parameters in FAMILIES.values():
        assert torch.isfinite(family(z, 0.5, **parameters).log_prob(z[:, None])).all()


@pytest.mark.parametrize("family", [ProjectedNormal, ProjectedLaplace, ProjectedGeneralizedNormal])
def test_projected_bad_input(unchecked, family):
    mu = sample_uniform(4, 3, generator())
    cases = [
        (lambda: family(torch.ones(4, 1)), "d ≥ 2"),
        (lambda: family(torch.tensor(1.0)), "d ≥ 2"),
        (lambda: family(mu * 1.1), "unit norm"),
        (lambda: family(mu * math.nan), "unit norm"),
        (lambda: family(mu, 0.0), "scale=0.0"),
        (lambda: family(mu, math.inf), "scale=inf"),
        (lambda: family(mu, torch.tensor([1, 1, math.nan, 1])), r"nan at index \(2,\)"),
        (lambda: family(mu, torch.ones(3)), "broadcast"),
        (lambda: family(mu, torch.ones(4, dtype=torch.float64)), "of type torch.float32"),
        (lambda: family(mu).log_prob(mu.double()), "z='of type torch.float64'"),
        (lambda: family(mu).log_prob(mu[:3]), "broadcast with the batch"),
        (lambda: family(mu).log_prob(2 * mu), "unit norm"),
        (lambda: family(mu).log_prob(torch.eye(2)), "dimension d = 3"),
        (lambda: family(mu).sample(generator="seed"), "torch.Generator or a seed"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_expand_and_repr_are_those_of_torch_distributions():
    mu = sample_uniform(1, 3, generator())
    cloud = ProjectedGeneralizedNormal(mu, 0.5, 2.0).expand((4, 5))
    assert (cloud.batch_shape, cloud.event_shape) == ((4, 5), (3,))
    assert (cloud.mu.shape, cloud.scale.shape, cloud.shape.shape) == ((4, 5, 3), (4, 5), (4, 5))
    assert cloud.sample((2,), generator()).shape == (2, 4, 5, 3)
    assert isinstance(cloud, SphereDistribution)
    assert isinstance(cloud, torch.distributions.Distribution)
    assert repr(cloud).startswith("ProjectedGeneralizedNormal(")


def test_samples_repeat_with_the_seed_and_follow_the_global_stream_without():
    cloud = ProjectedLaplace(sample_uniform(4, 3, generator()))
    assert torch.equal(cloud.sample((3,), generator(1)), cloud.sample((3,), 1))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = cloud.sample()
        torch.manual_seed(5)
        assert torch.equal(first, cloud.sample())
