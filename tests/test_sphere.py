"Uniform points, tangent spaces, rotations, and projected noise."

import copy
import itertools
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from cegen import sphere
from cegen.sphere import (
    ProjectedAnisotropicNormal,
    ProjectedGeneralizedNormal,
    ProjectedLaplace,
    ProjectedNormal,
    SphereDistribution,
    SphereMixture,
    SphericalCauchy,
    check_unit,
    log_sphere_area,
    normalize,
    procrustes,
    random_orthogonal,
    sample_uniform,
    scatter_around,
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


def sphere_integral(cloud, n=80):
    "Integral of the density over S²: Gauss's rule in the height, equal steps around."
    height, weight = np.polynomial.legendre.leggauss(n)
    angle = np.arange(2 * n) * (math.pi / n)
    h, a = (torch.from_numpy(v).reshape(-1) for v in np.meshgrid(height, angle, indexing="ij"))
    z = torch.stack([(1 - h**2).sqrt() * a.cos(), (1 - h**2).sqrt() * a.sin(), h], dim=-1)
    density = cloud.log_prob(z).exp()
    return (density.reshape(n, 2 * n).mean(1).numpy() * weight).sum() * 2 * math.pi


def circle_law(cloud, n=4000):
    "Distribution function of the angle of z on the circle, by integration of the density."
    density = cloud.log_prob(circle(n)).exp().numpy()
    cdf = integrate.cumulative_trapezoid(np.append(density, density[0]), dx=2 * math.pi / n, initial=0)
    return lambda t: np.interp(t, np.linspace(0, 2 * math.pi, n + 1), cdf)


def circle_angle(z):
    return torch.atan2(z[..., 1], z[..., 0]).remainder(2 * math.pi).double().numpy()


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
    return level.max() + math.log(total) - dim * (np.log(scale).mean() + log_mass)


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
    mu = normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64))
    total = sphere_integral(family(mu, 0.7, **parameters))
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_projected_samples_follow_the_density(name, dtype, scale):
    family, parameters = FAMILIES[name]
    mu = circle(4000)[321]
    law = circle_law(family(mu, scale, **parameters))
    angle = circle_angle(family(mu.to(dtype), scale, **parameters).sample((20_000,), generator(6)))
    assert stats.kstest(angle, law).pvalue > P_MIN
    assert stats.kstest(angle + 0.2 * scale, law).pvalue < P_MIN  # a small turn is noticed


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


# --- a deviation for each coordinate


@pytest.mark.parametrize("dim", [2, 5, 20])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 100.0])
def test_anisotropic_density_agrees_with_brute_force(dim, ratio):
    g = generator(dim)
    mu = sample_uniform(1, dim, g, torch.float64)[0]
    scale = torch.linspace(-0.5, 0.5, dim, dtype=torch.float64).mul(math.log(ratio)).exp() * 0.5
    cloud = ProjectedAnisotropicNormal(mu, scale)
    z = torch.cat([sample_uniform(3, dim, g, torch.float64), mu[None], -mu[None], cloud.sample((3,), g)])
    expected = [reference_log_prob("normal", row, mu.numpy(), scale.numpy()) for row in z.numpy()]
    np.testing.assert_allclose(cloud.log_prob(z).numpy(), expected, rtol=0, atol=1e-6)


def test_anisotropic_density_integrates_to_one():
    mu = normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64))
    assert sphere_integral(ProjectedAnisotropicNormal(mu, [0.9, 0.4, 0.6])) == pytest.approx(1, abs=1e-6)
    cloud = ProjectedAnisotropicNormal(circle(20_000)[1234], [0.8, 0.1])
    assert (cloud.log_prob(circle(20_000)).exp().mean() * 2 * math.pi).item() == pytest.approx(1, abs=1e-9)


def test_anisotropic_samples_follow_the_density():
    mu, scale = circle(4000)[321], [0.6, 0.2]
    law = circle_law(ProjectedAnisotropicNormal(mu, scale))
    for dtype in (torch.float32, torch.float64):
        angle = circle_angle(ProjectedAnisotropicNormal(mu.to(dtype), scale).sample((20_000,), generator(6)))
        assert stats.kstest(angle, law).pvalue > P_MIN
    exchanged = ProjectedAnisotropicNormal(mu, scale[::-1]).sample((20_000,), generator(6))
    assert stats.kstest(circle_angle(exchanged), law).pvalue < P_MIN


def test_each_coordinate_of_small_noise_has_its_deviation():
    scale = torch.tensor([0.5, 0.001, 0.02, 0.01], dtype=torch.float64)
    z = ProjectedAnisotropicNormal(torch.eye(4, dtype=torch.float64)[0] * 1.0, scale * 0.1).sample((50_000,), 0)
    ratio = z[:, 1:] / z[:, :1] * (1 + 0.05**2) ** -0.5  # z_k / z_1 = σ_k t_k / (1 + σ_1 t_1)
    torch.testing.assert_close(ratio.std(0), scale[1:] * 0.1, rtol=0.02, atol=0)


def test_equal_deviations_are_the_isotropic_noise():
    g = generator(7)
    mu, z = sample_uniform(3, 4, g, torch.float64), sample_uniform(20, 4, g, torch.float64)
    scale = torch.tensor([0.2, 0.5, 2.0], dtype=torch.float64)
    for wide in (scale[:, None], scale[:, None].expand(3, 4)):
        cloud = ProjectedAnisotropicNormal(mu, wide)
        assert cloud.scale.shape == (3, 4)
        torch.testing.assert_close(
            cloud.pairwise_log_prob(z), ProjectedNormal(mu, scale).pairwise_log_prob(z), rtol=0, atol=1e-12
        )
        assert torch.equal(cloud.sample((5,), 1), ProjectedNormal(mu, scale).sample((5,), 1))
    assert torch.equal(ProjectedAnisotropicNormal(mu).scale, torch.ones(3, 4, dtype=torch.float64))


def test_deviations_may_differ_between_rows_and_coordinates():
    g = generator(8)
    mu, z = sample_uniform(3, 2, g, torch.float64), sample_uniform(5, 2, g, torch.float64)
    scale = torch.rand(3, 2, generator=g, dtype=torch.float64) + 0.1
    cloud = ProjectedAnisotropicNormal(mu, scale)
    for c in range(3):
        alone = ProjectedAnisotropicNormal(mu[c], scale[c])
        torch.testing.assert_close(cloud.log_prob(z[:, None])[:, c], alone.log_prob(z), rtol=0, atol=1e-12)
    assert ProjectedAnisotropicNormal(mu[0], scale).batch_shape == (3,)
    assert cloud.expand((4, 3)).scale.shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([0.1, 0.2], r"rows that broadcast with scale \(2,\)"),
        ([0.1, 0.2, -0.1], r"scale='-0.1 at index \(2,\)'"),
        ([0.1, 0.2, math.inf], "finite and > 0"),
        (torch.ones(3, dtype=torch.float64), "of type torch.float32"),
    ],
)
def test_bad_deviations_are_named(unchecked, scale, message):
    with pytest.raises(ValueError, match=message):
        ProjectedAnisotropicNormal(sample_uniform(4, 3, generator()), scale)


# --- heavy tails


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 0.99])
def test_cauchy_density_integrates_to_one(rho):
    for dim in (2, 3, 5, 20):
        cloud = SphericalCauchy(torch.eye(dim, dtype=torch.float64)[0], rho)

        def shell(angle, cloud=cloud, dim=dim):
            z = torch.zeros(dim, dtype=torch.float64)
            z[0], z[1] = math.cos(angle), math.sin(angle)
            area = 2.0 if dim == 2 else math.exp(log_sphere_area(dim - 1))
            return cloud.log_prob(z).exp().item() * area * math.sin(angle) ** (dim - 2)

        total = integrate.quad(shell, 0, math.pi, points=[1 - rho, 5 * (1 - rho)] if rho > 0.5 else None)[0]
        assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 5, 50])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 0.999])
def test_cauchy_samples_have_the_exact_law_of_the_angle(dim, rho):
    # Half the angle's tangent is that of a uniform point, shrunk by (1 - ρ) / (1 + ρ): the map is a zoom in the stereographic plane.
    mu = sample_uniform(1, dim, generator(1), torch.float64)[0]
    shrink = (1 - rho) / (1 + rho)
    uniform = stats.beta((dim - 1) / 2, (dim - 1) / 2)  # law of (1 - cosine) / 2 for a uniform point
    for dtype, seed in ((torch.float32, 2), (torch.float64, 3)):
        z = SphericalCauchy(mu.to(dtype), rho).sample((20_000,), seed)
        assert z.dtype == dtype
        assert unit_sphere.check(z).all()
        half = (z.double() - mu.to(dtype).double()).norm(dim=-1).clamp(max=2).numpy() / 2  # sine of half the angle
        plane = (half**2 / (1 - half**2).clip(1e-300)) / shrink**2
        assert stats.kstest(plane / (1 + plane), uniform.cdf).pvalue > P_MIN
        assert stats.kstest(plane * 1.1 / (1 + plane * 1.1), uniform.cdf).pvalue < P_MIN


def test_cauchy_samples_follow_the_density_on_the_circle():
    mu = circle(4000)[321]
    law = circle_law(SphericalCauchy(mu, 0.6))
    assert stats.kstest(circle_angle(SphericalCauchy(mu, 0.6).sample((20_000,), 6)), law).pvalue > P_MIN
    assert stats.kstest(circle_angle(SphericalCauchy(mu, 0.57).sample((20_000,), 6)), law).pvalue < P_MIN


def test_cauchy_direction_around_mu_is_uniform():
    mu = sample_uniform(1, 4, generator(3), torch.float64)[0]
    t = normalize(SphericalCauchy(mu, 0.8).sample((20_000,), 4) @ tangent_basis(mu))
    for k in range(3):  # every coordinate of a uniform direction in three dimensions is uniform
        assert stats.kstest(t[:, k].numpy(), stats.uniform(-1, 2).cdf).pvalue > P_MIN


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 20, 101, 1000])
def test_cauchy_mean_is_that_of_its_density(dim):
    rho = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    found = SphericalCauchy(torch.eye(dim, dtype=torch.float64)[0], rho).mean[:, 0].tolist()

    def moment(r, power):
        def integrand(a):  # over the angle a of a uniform point, which the map moves
            w = mpmath.cos(a)
            moved = (1 - r**2) * (w + r) / (1 + r**2 + 2 * r * w) + r
            return moved**power * mpmath.sin(a) ** (dim - 2)

        inside = [a for a in (math.pi / 2 - 6 / dim**0.5, math.pi / 2, math.pi / 2 + 6 / dim**0.5) if 0 < a < math.pi]
        return mpmath.quad(integrand, sorted([0, *inside, mpmath.pi - 3 * (1 - r) / (1 + r), mpmath.pi]))

    with mpmath.workdps(20):
        expected = [float(moment(mpmath.mpf(r), 1) / moment(mpmath.mpf(r), 0)) for r in rho.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_cauchy_at_zero_is_exactly_uniform():
    for dim in (2, 3, 20):
        cloud = SphericalCauchy(torch.eye(dim, dtype=torch.float64)[0], 0.0)
        z = sample_uniform(5, dim, generator(), torch.float64)
        assert torch.equal(cloud.log_prob(z), torch.full((5,), -log_sphere_area(dim), dtype=torch.float64))
        assert torch.equal(cloud.mean, torch.zeros(dim, dtype=torch.float64))


def test_cauchy_of_extreme_concentration_stays_finite():
    for dtype, rho in ((torch.float32, 1 - 1e-6), (torch.float64, 1 - 1e-12)):
        cloud = SphericalCauchy(sample_uniform(50, 5, generator(), dtype), rho)
        z = torch.cat([cloud.sample((20,), 1).reshape(-1, 5), cloud.mu, -cloud.mu])
        assert unit_sphere.check(z).all()
        assert torch.isfinite(cloud.pairwise_log_prob(z)).all()
        assert torch.isfinite(cloud.log_prob(cloud.mu)).all()


def test_cauchy_density_passes_gradcheck():
    g = generator(3)
    mu = sample_uniform(3, 4, g, torch.float64).requires_grad_()
    rho = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    z = sample_uniform(2, 4, g, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, mu, rho: SphericalCauchy(mu, rho, False).log_prob(z[:, None]), (z, mu, rho)
    )
    assert torch.autograd.gradcheck(
        lambda z, mu, rho: SphericalCauchy(mu, rho, False).pairwise_log_prob(z), (z, mu, rho)
    )


@pytest.mark.parametrize("rho", [-0.1, 1.0, math.nan, math.inf])
def test_cauchy_refuses_concentrations_out_of_range(rho):
    with pytest.raises(ValueError, match=f"rho={rho}.*≥ 0 and < 1"):
        SphericalCauchy(sample_uniform(4, 3, generator()), rho)


# --- mixtures


def mixture(dim=3, n_classes=4, m=3, weights=1.0, dtype=torch.float64):
    v = sample_uniform(n_classes, dim, generator(1), dtype)
    return SphereMixture(SphericalCauchy(scatter_around(v, m, 0.6), 0.8), weights)


def test_mixture_density_is_the_weighted_sum():
    weights = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.1, 0.2, 0.3], [9.0, 1.0, 1.0]], dtype=torch.float64)
    law, z = mixture(weights=weights), sample_uniform(7, 3, generator(2), torch.float64)
    share = weights / weights.sum(1, keepdim=True)
    for c in range(4):
        parts = torch.stack([SphericalCauchy(law.mu[c, k], 0.8).log_prob(z).exp() for k in range(3)])
        torch.testing.assert_close(law.log_prob(z[:, None])[:, c].exp(), (share[c, :, None] * parts).sum(0))
    torch.testing.assert_close(law.mean, (share[..., None] * law.component.mean).sum(1))


@pytest.mark.parametrize("m", [1, 4])
def test_mixture_density_integrates_to_one(m):
    law = mixture(m=m, weights=torch.arange(1.0, m + 1).double())
    for c in range(4):
        assert sphere_integral(law[c]) == pytest.approx(1, abs=1e-6)


def test_densities_in_five_dimensions_integrate_to_one():
    z = sample_uniform(200_000, 5, generator(3), torch.float64)
    v = sample_uniform(1, 5, generator(4), torch.float64)
    for law in (
        SphericalCauchy(v, 0.4),
        ProjectedAnisotropicNormal(v, [0.9, 0.5, 0.7, 0.6, 0.8]),
        SphereMixture(ProjectedNormal(scatter_around(v, 3, 1.0), 0.8), [1.0, 2.0, 3.0]),
    ):
        value = law.log_prob(z[:20_000] if isinstance(law, SphereMixture) else z).exp() * math.exp(log_sphere_area(5))
        assert abs(value.mean() - 1) < 4 * value.std() / math.sqrt(len(value))
        assert value.std() / math.sqrt(len(value)) < 0.02


def test_mixture_samples_follow_the_density():
    v, weights = circle(4000)[[321]], [5.0, 1.0, 2.0]
    component = SphericalCauchy(
        scatter_around(v, 3, 1.5, generator=2), torch.tensor([0.9, 0.6, 0.7], dtype=torch.float64)
    )
    law = SphereMixture(component, weights)
    angle = circle_angle(law.sample((20_000,), 5)[:, 0])
    assert stats.kstest(angle, circle_law(law[0])).pvalue > P_MIN
    assert stats.kstest(angle, circle_law(SphereMixture(component)[0])).pvalue < P_MIN  # other weights are noticed


def test_mixture_draws_components_by_weight_and_never_one_of_weight_zero():
    v = torch.eye(4, dtype=torch.float64)
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    law = SphereMixture(SphericalCauchy(v, 0.999), weights)
    assert law.batch_shape == (2,)
    chosen = law.sample((20_000,), 3).argmax(-1)
    assert stats.chisquare(torch.bincount(chosen[:, 0]).numpy(), np.array([1, 2, 3, 4]) * 2000).pvalue > P_MIN
    near = SphereMixture(SphericalCauchy(v, 1 - 1e-9), weights).sample((20_000,), 3)[:, 1].argmax(-1)
    assert set(near.tolist()) == {1, 3}
    assert abs((near == 1).double().mean() - 0.5) < 0.02
    assert stats.pearsonr(chosen[:, 0].numpy(), chosen[:, 1].numpy()).pvalue > P_MIN  # rows are independent


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_mixture_of_one_component_is_that_component(shape):
    mu = sample_uniform(math.prod(shape), 4, generator(5), torch.float64).reshape(*shape, 4)
    alone, z = ProjectedLaplace(mu, 0.4), sample_uniform(3, 4, generator(6), torch.float64)
    law = SphereMixture(ProjectedLaplace(mu[..., None, :], 0.4))
    assert (law.batch_shape, law.event_shape) == (alone.batch_shape, alone.event_shape)
    torch.testing.assert_close(law.pairwise_log_prob(z), alone.pairwise_log_prob(z))
    assert law.sample((2,), 1).shape == alone.sample((2,), 1).shape


def test_mixture_of_mixtures():
    v = sample_uniform(2, 3, generator(1), torch.float64)
    inner = SphereMixture(SphericalCauchy(scatter_around(scatter_around(v, 3, 0.8), 2, 0.2), 0.9), [1.0, 3.0])
    law, z = SphereMixture(inner), sample_uniform(6, 3, generator(2), torch.float64)
    flat = SphereMixture(SphericalCauchy(inner.mu.reshape(2, 6, 3), 0.9), [1.0, 3.0] * 3)
    torch.testing.assert_close(law.pairwise_log_prob(z), flat.pairwise_log_prob(z))
    torch.testing.assert_close(law[[1]].log_prob(z), flat[[1]].log_prob(z))
    assert law.sample((4,), 1).shape == (4, 2, 3)


def test_mixture_samples_repeat_with_the_seed_and_leave_the_global_stream():
    law = mixture(dtype=torch.float32)
    state = torch.get_rng_state()
    assert torch.equal(law.sample((3,), generator(1)), law.sample((3,), 1))
    assert not torch.equal(law.sample((3,), 1), law.sample((3,), 2))
    assert torch.equal(state, torch.get_rng_state())


def test_mixture_expands_without_a_change():
    law, z = mixture(weights=[1.0, 2.0, 3.0]), sample_uniform(4, 3, generator(2), torch.float64)
    wide = law.expand((2, 4))
    assert (wide.batch_shape, wide.mu.shape, wide.weights.shape) == ((2, 4), (2, 4, 3, 3), (2, 4, 3))
    assert torch.equal(wide.log_prob(z), law.log_prob(z).expand(2, 4))
    assert wide.sample((5,), 1).shape == (5, 2, 4, 3)
    assert repr(law).startswith("SphereMixture(SphericalCauchy(")


@pytest.mark.parametrize(
    ("component", "weights", "message"),
    [
        ((3,), 1.0, "component=.*The last axis of the batch"),
        ((4, 3), [1.0, 1.0], r"weights='of shape \(2,\)'.*broadcasts with \(4,\)"),
        ((4, 3), [1.0, -1.0, 1.0, 1.0], r"weights='-1 at index \(1,\)'"),
        ((4, 3), [0.0, 0.0, 0.0, 0.0], "not zero for all components"),
        ((4, 3), [1.0, math.nan, 1.0, 1.0], r"nan at index \(1,\)"),
        ((4, 3), torch.ones(4, dtype=torch.float64), "weights='of type torch.float64'"),
    ],
)
def test_bad_mixtures_are_named(component, weights, message):
    mu = normalize(torch.ones(component))
    with pytest.raises(ValueError, match=message):
        SphereMixture(SphericalCauchy(mu, 0.5), weights)


def test_mixture_refuses_points_that_do_not_fit(unchecked):
    law = mixture()
    for z, message in (
        (torch.ones(4, 3).double(), "unit norm"),
        (torch.eye(3).double(), "broadcast"),
        (torch.eye(3), "float64"),
    ):
        with pytest.raises(ValueError, match=message):
            law.log_prob(z)


# --- sub-vectors


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, math.pi])
def test_scattered_vectors_stand_at_the_angle(angle):
    v = sample_uniform(6, 5, generator(1), torch.float64).reshape(2, 3, 5)
    found = scatter_around(v, 4, angle)
    assert found.shape == (2, 3, 4, 5)
    assert unit_sphere.check(found).all()
    torch.testing.assert_close(
        (found * v[..., None, :]).sum(-1), torch.full((2, 3, 4), math.cos(angle)).double(), rtol=0, atol=1e-7
    )


def test_scattered_vectors_have_uniform_directions():
    v = sample_uniform(1, 4, generator(1), torch.float64)
    t = normalize(scatter_around(v, 20_000, 0.5, 3)[0] @ tangent_basis(v[0]))
    for k in range(3):
        assert stats.kstest(t[:, k].numpy(), stats.uniform(-1, 2).cdf).pvalue > P_MIN


def test_one_seed_scatters_alike_in_both_precisions():
    v = sample_uniform(10, 5, generator(1))
    torch.testing.assert_close(
        scatter_around(v.double(), 3, 0.5, 7).float(), scatter_around(v, 3, 0.5, 7), rtol=0, atol=1e-6
    )
    assert torch.equal(scatter_around(v, 3, 0.5, 7), scatter_around(v, 3, 0.5, generator(7)))
    assert not torch.equal(scatter_around(v, 3, 0.5, 7), scatter_around(v, 3, 0.5, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(3), 0, 0.1), "n=0"),
        ((torch.eye(3), 2, -0.1), "angle=-0.1"),
        ((torch.eye(3), 2, 4.0), "angle=4.0"),
        ((2 * torch.eye(3), 2, 0.1), "unit norm"),
        ((torch.ones(2, 1), 2, 0.1), "dim=1"),
    ],
)
def test_bad_scatter_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        scatter_around(*arguments)


# --- rows and pairs, for every law


def laws(mu):
    "One law of every kind; `mu` of shape (*batch, d), float64."
    some = torch.linspace(0.3, 0.9, math.prod(mu.shape[:-1]) or 1, dtype=torch.float64)[
        : math.prod(mu.shape[:-1])
    ].reshape(mu.shape[:-1])
    return [
        ProjectedNormal(mu, some),
        ProjectedLaplace(mu, 0.4),
        ProjectedGeneralizedNormal(mu, 0.4, 1 + some),
        ProjectedAnisotropicNormal(mu, torch.linspace(0.2, 1.0, mu.shape[-1], dtype=torch.float64)),
        SphericalCauchy(mu, some),
        SphereMixture(SphericalCauchy(scatter_around(mu, 2, 0.5), some[..., None]), [1.0, 2.0]),
    ]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("block", [1, 40, 2**17])
def test_pairs_are_those_of_broadcasting(monkeypatch, shape, block):
    monkeypatch.setattr(sphere, "BLOCK", block)
    mu = sample_uniform(math.prod(shape), 3, generator(1), torch.float64).reshape(*shape, 3)
    for law in laws(mu):
        for n in (7, 0):
            z = sample_uniform(n, 3, generator(2), torch.float64)
            found = law.pairwise_log_prob(z)
            assert found.shape == (n, *shape)
            if n and found.numel():
                expected = law.log_prob(z[(slice(None), *[None] * len(shape))])
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_pairs_refuse_points_that_do_not_fit(unchecked):
    for law in laws(sample_uniform(4, 3, generator(), torch.float64)):
        for z, message in (
            (2 * torch.eye(3).double(), "unit norm"),
            (torch.eye(4).double(), "dimension d = 3"),
            (torch.eye(3), "float32"),
        ):
            with pytest.raises(ValueError, match=message):
                law.pairwise_log_prob(z)


def test_rows_are_picked_as_from_an_array():
    mu, z = (
        sample_uniform(6, 3, generator(1), torch.float64).reshape(2, 3, 3),
        sample_uniform(4, 3, generator(2), torch.float64),
    )
    place = torch.arange(6).reshape(2, 3)
    picks = [
        1,
        slice(1),
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([[0], [1]]),
        torch.tensor([True, False]),
        (1, 2),
        (slice(None), 1),
        (..., 0),
        (None, 0),
        place % 2 == 0,
    ]
    for law in laws(mu):
        whole = law.pairwise_log_prob(z)
        for pick in picks:
            some = law[pick]
            assert some.batch_shape == place[pick].shape
            assert type(some) is type(law)
            torch.testing.assert_close(
                some.pairwise_log_prob(z), whole.reshape(4, 6)[:, place[pick]], rtol=0, atol=1e-13
            )
            assert some.sample((2,), 1).shape == (2, *place[pick].shape, 3)
        assert [row.batch_shape for row in law] == [(3,), (3,)]
        for pick in (2, (0, 3), (0, 0, 0), torch.tensor([2])):
            with pytest.raises(IndexError):
                law[pick]


def test_a_picked_row_has_the_samples_of_its_row():
    mu = sample_uniform(2, 3, generator(1), torch.float64)
    for law in laws(mu):
        z = law[torch.tensor([1]).repeat(4000)].sample(generator=2)
        whole = law.sample((4000,), 3)[:, 1]
        for k in range(3):
            assert stats.ks_2samp(z[:, k].numpy(), whole[:, k].numpy()).pvalue > P_MIN


def test_laws_are_copied_and_pickled():
    for law in laws(sample_uniform(3, 4, generator(16), torch.float64)):
        for twin in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
            assert torch.equal(twin.sample(generator=1), law.sample(generator=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_laws_are_those_of_the_cpu():
    mu, z = sample_uniform(5, 4, generator(1), torch.float64), sample_uniform(6, 4, generator(2), torch.float64)
    label = torch.tensor([4, 0, 0], device="cuda")
    for law, there in zip(laws(mu), laws(mu.cuda()), strict=True):
        if isinstance(there, ProjectedGeneralizedNormal):
            continue
        torch.testing.assert_close(there.pairwise_log_prob(z.cuda()).cpu(), law.pairwise_log_prob(z))
        drawn = there[label].sample((2000,), torch.Generator("cuda").manual_seed(1))
        assert drawn.device.type == "cuda"
        here = law[label.cpu()].sample((2000,), 1)
        for k in range(4):
            assert stats.ks_2samp(drawn[:, 0, k].cpu().numpy(), here[:, 0, k].numpy()).pvalue > P_MIN


@pytest.mark.parametrize("sigma", [1e-2, 1e-4, 1e-6, 1e-8])
def test_narrow_normal_noise_has_the_density_of_the_plane(sigma):
    mu = torch.tensor([0.6, 0.8], dtype=torch.float64)
    angle = sigma * torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    across = torch.stack([-mu[1], mu[0]])
    z = angle.cos()[:, None] * mu + angle.sin()[:, None] * across
    found = ProjectedNormal(mu, sigma).log_prob(z)
    expected = torch.distributions.Normal(0.0, torch.tensor(sigma, dtype=torch.float64)).log_prob(angle)
    # z itself knows its angle up to the spacing of numbers near one, 1e-16, which is much of the noise at σ = 1e-8.
    torch.testing.assert_close(found, expected, rtol=0, atol=max(2 * sigma, 1e-15 / sigma))
