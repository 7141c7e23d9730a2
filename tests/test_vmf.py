"The von Mises-Fisher distribution against SciPy, 60-digit arithmetic, and its own samples."

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.utils._python_dispatch import TorchDispatchMode

from cegen import vmf
from cegen.sphere import SphereMixture, log_sphere_area, normalize, sample_uniform, tangent_basis, unit_sphere
from cegen.vmf import MAX_KAPPA, VonMisesFisher, log_normalizer, mean_resultant_length, vmf_p_values

P_MIN = 1e-4  # p-values of the statistical tests; the seeds are fixed
KAPPAS = [0.0, 0.1, 1.0, 10.0, 1e3, 1e4]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_log_m(dim, kappa):
    "log 0F1(; d/2; κ²/4) with 60 digits."
    with mpmath.workdps(60):
        return mpmath.log(mpmath.hyp0f1(mpmath.mpf(dim) / 2, mpmath.mpf(kappa) ** 2 / 4))


# --- density and moments


@pytest.mark.parametrize("dim", [2, 3, 5, 20, 100])
@pytest.mark.parametrize("kappa", [0.1, 1.0, 10.0, 1e2, 1e3])
def test_density_equals_scipy(dim, kappa):
    g = generator(dim)
    mu = sample_uniform(1, dim, g, torch.float64)[0]
    cloud = VonMisesFisher(mu, kappa)
    z = torch.cat([sample_uniform(20, dim, g, torch.float64), cloud.sample((20,), g), mu[None], -mu[None]])
    expected = stats.vonmises_fisher(mu.numpy(), kappa).logpdf(z.numpy())
    np.testing.assert_allclose(cloud.log_prob(z).numpy(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 5, 100])
@pytest.mark.parametrize("kappa", [0.1, 10.0, 1e3])
def test_entropy_equals_scipy(dim, kappa):
    mu = np.eye(dim)[0]
    entropy = VonMisesFisher(torch.from_numpy(mu), kappa).entropy().item()
    assert entropy == pytest.approx(stats.vonmises_fisher(mu, kappa).entropy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 4, 5, 20, 100, 499, 500, 501, 502, 503, 504, 1000, 5000])
def test_normalizer_equals_60_digit_arithmetic(dim):
    kappas = [1e-3, 1e-2, 0.1, 1.0, 1.4, 2.0, 3.0, 10.0, 44.7, 100.0, 1e3, 1e4]
    kappas += [
        2 * math.sqrt(dim / 2) * factor for factor in (0.999999, 1.0, 1.000001)
    ]  # where series and Bessel function meet
    found = log_normalizer(dim, torch.tensor(kappas, dtype=torch.float64)).numpy()
    expected = [float(-exact_log_m(dim, kappa) - log_sphere_area(dim)) for kappa in kappas]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 5, 100, 500, 501, 502, 1000])
def test_mean_length_equals_60_digit_arithmetic(dim):
    kappas = [1e-3, 0.1, 1.0, 10.0, 100.0, 1e4]
    found = mean_resultant_length(dim, torch.tensor(kappas, dtype=torch.float64)).numpy()
    with mpmath.workdps(60):
        expected = [
            float(mpmath.mpf(k) / dim * mpmath.exp(exact_log_m(dim + 2, k) - exact_log_m(dim, k))) for k in kappas
        ]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_kappa_zero_is_exactly_uniform():
    for dim in (2, 3, 20, 1000):
        cloud = VonMisesFisher(torch.eye(dim, dtype=torch.float64)[0], 0.0)
        z = sample_uniform(5, dim, generator(), torch.float64)
        assert torch.equal(cloud.log_prob(z), torch.full((5,), -log_sphere_area(dim), dtype=torch.float64))
        assert cloud.entropy().item() == log_sphere_area(dim)
        assert torch.equal(cloud.mean, torch.zeros(dim, dtype=torch.float64))
        torch.testing.assert_close(cloud.variance, torch.full((dim,), 1 / dim, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 100, 1000])
def test_largest_kappa_stays_finite(dim):
    for dtype in (torch.float32, torch.float64):
        cloud = VonMisesFisher(torch.eye(dim, dtype=dtype)[:1], MAX_KAPPA)
        z = cloud.sample((50,), generator())
        for value in (z, cloud.log_prob(z), cloud.mean, cloud.variance, cloud.entropy()):
            assert torch.isfinite(value).all()
        # κ ln-density falls like half a chi-square of d - 1 degrees
        fall = (MAX_KAPPA * (z.double() - cloud.mu.double()).square().sum(-1)).mean().item()
        assert fall == pytest.approx(dim - 1, rel=0.5)


@pytest.mark.parametrize("kappa", [0.1, 10.0, 1e4])
def test_single_precision_agrees_with_double(kappa):
    mu = sample_uniform(50, 5, generator(1), torch.float64).float()
    z = VonMisesFisher(mu, kappa).sample(generator=generator(2))
    single = VonMisesFisher(mu, kappa).log_prob(z)
    double = VonMisesFisher(mu.double(), kappa).log_prob(z.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=max(1e-5, 2e-7 * kappa))


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("kappa", [0.0, 0.1, 10.0, 300.0])
def test_density_integrates_to_one(dim, kappa):
    cloud = VonMisesFisher(torch.eye(dim, dtype=torch.float64)[0], kappa)

    def shell(angle):  # density at this angle from mu, times the area of the shell
        z = torch.zeros(dim, dtype=torch.float64)
        z[0], z[1] = math.cos(angle), math.sin(angle)
        area = 2.0 if dim == 2 else math.exp(log_sphere_area(dim - 1))
        return cloud.log_prob(z).exp().item() * area * math.sin(angle) ** (dim - 2)

    assert integrate.quad(shell, 0, math.pi, points=[3 / math.sqrt(1 + kappa)])[0] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 0.5), (3, 10.0), (5, 10.0), (20, 100.0)])
def test_moments_of_samples(dim, kappa):
    n = 100_000
    mu = sample_uniform(1, dim, generator(dim), torch.float64)[0]
    cloud = VonMisesFisher(mu, kappa)
    z = cloud.sample((n,), generator(dim + 1))
    standard_error = (cloud.variance / n).sqrt()
    assert ((z.mean(0) - cloud.mean).abs() < 5 * standard_error).all()
    torch.testing.assert_close(z.var(0), cloud.variance, rtol=0.05, atol=0)
    surprise = -cloud.log_prob(z)
    assert abs(surprise.mean() - cloud.entropy()) < 5 * surprise.std() / math.sqrt(n)
    torch.testing.assert_close(cloud.stddev.square(), cloud.variance)
    assert torch.equal(cloud.mode, mu)


# --- derivatives


@pytest.mark.parametrize("dim", [2, 3, 600])
def test_normalizer_has_first_and_second_derivatives(dim):
    kappa = torch.tensor([0.0, 0.3, 1.9, 2.1, 30.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(log_normalizer(dim, kappa).sum(), kappa, create_graph=True)
    torch.testing.assert_close(-first, mean_resultant_length(dim, kappa), rtol=1e-10, atol=1e-13)
    (second,) = torch.autograd.grad(-first.sum(), kappa)
    length = mean_resultant_length(dim, kappa).detach()
    expected = 1 - length**2 - (dim - 1) * torch.where(kappa == 0, 1 / dim, length / kappa).detach()
    torch.testing.assert_close(second, expected, rtol=1e-8, atol=1e-10)


def test_log_prob_mean_and_entropy_pass_gradcheck():
    g = generator(3)
    mu = sample_uniform(3, 4, g, torch.float64).requires_grad_()
    kappa = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64, requires_grad=True)
    z = sample_uniform(2, 4, g, torch.float64)[:, None].requires_grad_()

    def log_prob(z, mu, kappa):
        return VonMisesFisher(mu, kappa, validate_args=False).log_prob(z)

    assert torch.autograd.gradcheck(log_prob, (z, mu, kappa))
    assert torch.autograd.gradgradcheck(log_prob, (z, mu, kappa))
    for name in ("mean", "variance"):
        assert torch.autograd.gradcheck(
            lambda kappa, name=name: getattr(VonMisesFisher(mu.detach(), kappa), name), (kappa,)
        )
    assert torch.autograd.gradcheck(lambda kappa: VonMisesFisher(mu.detach(), kappa).entropy(), (kappa,))


def test_maximum_likelihood_by_gradient_descent_finds_kappa():
    mu = sample_uniform(1, 3, generator(4), torch.float64)[0]
    z = VonMisesFisher(mu, 7.0).sample((20_000,), generator(5))
    log_kappa = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_kappa], max_iter=50)

    def loss():
        optimiser.zero_grad()
        value = -VonMisesFisher(mu, log_kappa.exp()).log_prob(z).mean()
        value.backward()
        return value

    optimiser.step(loss)
    assert log_kappa.exp().item() == pytest.approx(7.0, rel=0.03)


# --- samples


def angle_law(dim, kappa):
    "Distribution function of the angle between z and mu, by integration of its density."
    reach = min(math.pi, (math.sqrt(dim) + 12) / math.sqrt(kappa)) if kappa > 0 else math.pi
    angle = np.linspace(0, reach, 200_001)
    density = np.exp(-kappa * (1 - np.cos(angle))) * np.sin(angle) ** (dim - 2)
    cdf = integrate.cumulative_trapezoid(density, angle, initial=0)
    return lambda t: np.interp(t, angle, cdf / cdf[-1])


def angles(z, mu):
    "Angle between rows, computed so that small ones keep their digits."
    return 2 * np.arcsin(np.minimum(1, np.linalg.norm(z.double().numpy() - mu.double().numpy(), axis=-1) / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 3, 5, 50])
@pytest.mark.parametrize("kappa", KAPPAS)
def test_angle_to_mu_has_the_exact_law(dim, kappa, dtype):
    mu = sample_uniform(1, dim, generator(1), dtype)[0]
    z = VonMisesFisher(mu, kappa).sample((20_000,), generator(2))
    assert z.dtype == dtype
    assert unit_sphere.check(z).all()
    assert stats.kstest(angles(z, mu), angle_law(dim, kappa)).pvalue > P_MIN


def test_the_same_test_notices_a_kappa_five_percent_off():
    mu = sample_uniform(1, 5, generator(1))[0]
    z = VonMisesFisher(mu, 10.5).sample((20_000,), generator(2))
    assert stats.kstest(angles(z, mu), angle_law(5, 10.0)).pvalue < P_MIN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_direction_around_mu_is_uniform(dim, kappa, dtype):
    mu = sample_uniform(1, dim, generator(3), dtype)[0]
    z = VonMisesFisher(mu, kappa).sample((20_000,), generator(4)).double()
    t = z @ tangent_basis(normalize(mu.double()))
    keep = t.norm(dim=-1) > 1e-5  # single precision knows no direction closer to mu than this
    assert keep.double().mean() > 0.99
    t = normalize(t[keep])
    if dim == 2:
        assert stats.binomtest(int((t > 0).sum()), len(t)).pvalue > P_MIN
    elif dim == 3:
        turn = (torch.atan2(t[:, 1], t[:, 0]) / (2 * math.pi)).remainder(1)
        assert stats.kstest(turn.numpy(), stats.uniform.cdf).pvalue > P_MIN
    else:
        for k in range(dim - 1):
            assert (
                stats.kstest(((1 + t[:, k]) / 2).numpy(), stats.beta((dim - 2) / 2, (dim - 2) / 2).cdf).pvalue > P_MIN
            )


def test_direction_and_distance_are_independent():
    mu = sample_uniform(1, 4, generator(5), torch.float64)[0]
    z = VonMisesFisher(mu, 5.0).sample((20_000,), generator(6))
    t = normalize(z @ tangent_basis(mu))
    for k in range(3):
        assert stats.spearmanr((z @ mu).numpy(), t[:, k].numpy()).pvalue > P_MIN
        assert stats.spearmanr((z @ mu).numpy(), t[:, k].abs().numpy()).pvalue > P_MIN


def test_samples_are_independent_of_each_other():
    mu = torch.eye(3, dtype=torch.float64)[0]
    w = VonMisesFisher(mu, 5.0).sample((20_001,), generator(7))[:, 0].numpy()
    assert stats.pearsonr(w[1:], w[:-1]).pvalue > P_MIN
    assert len(np.unique(w)) == len(w)


def test_every_row_has_its_own_mu_and_kappa():
    kappa = torch.tensor(KAPPAS)
    mu = sample_uniform(len(KAPPAS), 3, generator(8))
    cloud = VonMisesFisher(mu, kappa)
    z = cloud.sample((20_000,), generator(9))
    assert z.shape == (20_000, len(KAPPAS), 3)
    for c, value in enumerate(KAPPAS):
        assert stats.kstest(angles(z[:, c], mu[c]), angle_law(3, value)).pvalue > P_MIN
        torch.testing.assert_close(cloud.log_prob(z)[:, c], VonMisesFisher(mu[c], value).log_prob(z[:, c]))


@pytest.mark.parametrize("axis", [1.0, -1.0])
def test_mu_on_an_axis(axis):
    for dim in (2, 5):
        mu = axis * torch.eye(dim)[0]
        z = VonMisesFisher(mu, 10.0).sample((20_000,), generator(10))
        assert stats.kstest(angles(z, mu), angle_law(dim, 10.0)).pvalue > P_MIN


def test_many_float32_samples_on_the_circle_are_all_finite():
    z = VonMisesFisher(normalize(torch.tensor([1.0, 1.0])), 1.0).sample((3_000_000,), generator(11))
    assert unit_sphere.check(z).all()


def test_samples_repeat_with_the_seed_and_follow_the_global_stream_without():
    cloud = VonMisesFisher(sample_uniform(100, 5, generator()), 10.0)
    assert torch.equal(cloud.sample((3,), generator(1)), cloud.sample((3,), 1))
    assert not torch.equal(cloud.sample((3,), 1), cloud.sample((3,), 2))
    state = torch.get_rng_state()
    cloud.sample((3,), 1)
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = cloud.sample()
        torch.manual_seed(5)
        assert torch.equal(first, cloud.sample())


def test_a_row_without_meaning_does_not_hang_the_sampler():
    cloud = VonMisesFisher(torch.full((2, 3), math.nan), 1.0, validate_args=False)
    assert torch.isnan(cloud.sample(generator=generator())).all()


# --- the form for GPUs, which never looks at its own result


class Largest(TorchDispatchMode):
    "Remembers the largest tensor that was made."

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


class NoLook(TorchDispatchMode):
    "Refuses operations whose result the host would have to wait for on a GPU."

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tags, name = function.tags, str(function)
        masks = name.startswith("aten.index") and any(i is not None and i.dtype == torch.bool for i in args[1] or [])
        dynamic = torch.Tag.dynamic_output_shape in tags and not name.startswith("aten.index")
        if torch.Tag.data_dependent_output in tags or dynamic or masks:
            raise AssertionError(f"{name} looks at data")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(vmf, "_redraw_until_accepted", vmf._redraw_blindly)


@pytest.mark.parametrize("dim", [2, 3, 5, 50])
@pytest.mark.parametrize("kappa", [*KAPPAS, MAX_KAPPA])
def test_samples_of_the_form_for_gpus_have_the_exact_law(as_on_gpu, dim, kappa):
    mu, group = sample_uniform(20, dim, generator(1), torch.float64), torch.arange(40_000) % 20
    z = VonMisesFisher(mu[group], kappa).sample(generator=generator(2))
    assert unit_sphere.check(z).all()
    if kappa == MAX_KAPPA:  # the cosine knows nothing of distances that small
        assert stats.kstest(angles(z, mu[group]), angle_law(dim, kappa)).pvalue > P_MIN
    else:
        assert min(vmf_p_values(z, mu[group], kappa, group).values()) > P_MIN


def test_the_form_for_gpus_keeps_each_rows_kappa(as_on_gpu):
    kappa = torch.tensor(KAPPAS)
    mu = sample_uniform(len(KAPPAS), 3, generator(8))
    z = VonMisesFisher(mu, kappa).sample((20_000,), generator(9))
    for c, value in enumerate(KAPPAS):
        assert stats.kstest(angles(z[:, c], mu[c]), angle_law(3, value)).pvalue > P_MIN


@pytest.mark.parametrize("kappa", [10.0, torch.linspace(0, 50, 7)])
def test_the_form_for_gpus_never_looks_at_data_and_the_other_one_does(monkeypatch, kappa):
    cloud = VonMisesFisher(sample_uniform(7, 5, generator()), kappa)
    with NoLook(), pytest.raises(AssertionError, match="nonzero"):
        cloud.sample((100,), generator())
    monkeypatch.setattr(vmf, "_redraw_until_accepted", vmf._redraw_blindly)
    with NoLook():
        assert cloud.sample((100,), generator()).shape == (100, 7, 5)


def test_many_samples_in_many_dimensions_are_drawn_in_blocks(as_on_gpu):
    mu = torch.eye(100, dtype=torch.float64)[0]
    with Largest() as largest:
        z = VonMisesFisher(mu, 100.0).sample((50_000,), generator())
    assert largest.numbers <= 2**24
    assert stats.kstest(angles(z, mu), angle_law(100, 100.0)).pvalue > P_MIN


def test_a_row_without_meaning_stays_without_meaning_on_a_gpu(as_on_gpu):
    cloud = VonMisesFisher(torch.full((2, 3), math.nan), 1.0, validate_args=False)
    assert torch.isnan(cloud.sample(generator=generator())).all()


# --- interface


def test_shapes_broadcast_like_torch_distributions():
    g = generator(12)
    mu, z = sample_uniform(7, 5, g), sample_uniform(4, 5, g)
    assert VonMisesFisher(mu, 2.0).log_prob(z[:, None]).shape == (4, 7)
    assert VonMisesFisher(mu[0], 2.0).sample((2, 3), g).shape == (2, 3, 5)
    assert VonMisesFisher(mu[:0], 2.0).sample((2,), g).shape == (2, 0, 5)
    grid = VonMisesFisher(mu, torch.ones(3, 1))
    assert (grid.batch_shape, grid.event_shape) == ((3, 7), (5,))
    assert grid.sample(generator=g).shape == grid.mean.shape == grid.variance.shape == grid.mode.shape == (3, 7, 5)
    assert grid.entropy().shape == grid.kappa.shape == (3, 7)
    assert grid.log_prob(z[0]).shape == (3, 7)


def test_expand_shares_memory_and_changes_nothing():
    mu = sample_uniform(3, 5, generator(13), torch.float64)
    cloud = VonMisesFisher(mu, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    wide = cloud.expand((2, 3))
    assert wide.mu.data_ptr() == mu.data_ptr()
    z = wide.sample((4,), generator(14))
    assert z.shape == (4, 2, 3, 5)
    assert torch.equal(wide.log_prob(z), cloud.log_prob(z))
    assert torch.equal(wide.entropy(), cloud.entropy().expand(2, 3))


def test_works_inside_torch_distributions():
    mu = sample_uniform(3, 5, generator(15))
    clouds = torch.distributions.Independent(VonMisesFisher(mu, 4.0), 1)
    z = clouds.sample()
    assert clouds.log_prob(z).shape == ()
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3)), VonMisesFisher(mu, 4.0)
    )
    each = VonMisesFisher(mu, 4.0).log_prob(z[:, None])
    torch.testing.assert_close(mixture.log_prob(z), each.logsumexp(-1) - math.log(3))


@pytest.mark.parametrize("dim", [2, 5, 50])
@pytest.mark.parametrize("kappa", [0.0, 10.0, 1e4, MAX_KAPPA, "one each"])
def test_pairs_are_exact_to_rounding(dim, kappa):
    g = generator(dim)
    mu = sample_uniform(30, dim, g, torch.float64)
    kappa = torch.logspace(-2, 8, 30, dtype=torch.float64) if kappa == "one each" else kappa
    cloud = VonMisesFisher(mu, kappa)
    z = torch.cat([sample_uniform(500, dim, g, torch.float64), cloud.sample((3,), g).reshape(-1, dim), mu, -mu])
    found, expected = cloud.pairwise_log_prob(z), cloud.log_prob(z[:, None])
    assert found.shape == (650, 30)
    # the cosine is rounded to a few 2⁻⁵³, and κ magnifies that
    assert ((found - expected).abs() <= 1e-15 * (4 * cloud.kappa + 4 * expected.abs())).all()
    single = VonMisesFisher(mu.float(), cloud.kappa.float()).pairwise_log_prob(z.float())
    assert single.dtype == torch.float32
    assert ((single - expected).abs() <= 4e-7 * (2 * cloud.kappa + 4 * expected.abs() + 4)).all()


def test_pairs_are_differentiable():
    g = generator(3)
    mu = sample_uniform(3, 4, g, torch.float64).requires_grad_()
    kappa = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64, requires_grad=True)
    z = sample_uniform(2, 4, g, torch.float64).requires_grad_()
    pairs = lambda z, mu, kappa: VonMisesFisher(mu, kappa, validate_args=False).pairwise_log_prob(z)  # noqa: E731
    assert torch.autograd.gradcheck(pairs, (z, mu, kappa))
    assert torch.autograd.gradgradcheck(pairs, (z, mu, kappa))


def test_pairs_never_hold_points_times_rows_times_coordinates():
    g = generator()
    mu, z = sample_uniform(1000, 20, g), sample_uniform(2000, 20, g)
    with Largest() as largest:
        VonMisesFisher(mu, 10.0).pairwise_log_prob(z)
    assert largest.numbers == 1000 * 2000  # the result itself


@pytest.mark.parametrize("kappa", [10.0, torch.tensor([0.1, 10.0, 1e3, 20.0])])
def test_picked_rows_keep_their_kappa(kappa):
    mu, label = sample_uniform(4, 5, generator(17)), torch.tensor([3, 0, 0, 2, 1])
    cloud = VonMisesFisher(mu, kappa)
    some = cloud[label]
    each = kappa if isinstance(kappa, float) else kappa[label]
    expected = VonMisesFisher(mu[label], each)
    assert torch.equal(some.sample((3,), 1), expected.sample((3,), 1))
    assert torch.equal(some.mean, expected.mean)
    assert torch.equal(some.entropy(), expected.entropy())
    assert torch.equal(some.log_prob(mu[label]), expected.log_prob(mu[label]))


def test_a_mixture_of_clouds_agrees_with_torch():
    g = generator(18)
    mu, z = sample_uniform(12, 3, g).reshape(4, 3, 3), sample_uniform(20, 3, g)
    mixture = SphereMixture(VonMisesFisher(mu, 20.0), [1.0, 2.0, 3.0])
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([1.0, 2.0, 3.0]).expand(4, 3)), VonMisesFisher(mu, 20.0)
    )
    torch.testing.assert_close(mixture.pairwise_log_prob(z), expected.log_prob(z[:, None]))
    torch.testing.assert_close(mixture.mean, expected.mean)
    z = mixture.sample((50_000,), 1)
    torch.testing.assert_close(z.mean(0), mixture.mean, rtol=0, atol=0.015)


def test_copies_and_pickles():
    cloud = VonMisesFisher(sample_uniform(3, 5, generator(16)), 4.0)
    for twin in (copy.deepcopy(cloud), pickle.loads(pickle.dumps(cloud))):
        assert torch.equal(twin.sample(generator=1), cloud.sample(generator=1))


MU = sample_uniform(4, 3, generator())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VonMisesFisher(torch.ones(4, 1), 1.0), "mu='of shape .4, 1.'.*d ≥ 2"),
        (lambda: VonMisesFisher(torch.tensor(1.0), 1.0), "d ≥ 2"),
        (lambda: VonMisesFisher(MU * 1.1, 1.0), r"mu='row \(0,\) has norm 1.1'.*normalize"),
        (lambda: VonMisesFisher(MU * math.nan, 1.0), "unit norm"),
        (lambda: VonMisesFisher(MU, -1.0), "kappa=-1.0.*finite, ≥ 0"),
        (lambda: VonMisesFisher(MU, math.nan), "kappa=nan"),
        (lambda: VonMisesFisher(MU, math.inf), "kappa=inf"),
        (lambda: VonMisesFisher(MU, 1e9), "≤ 1e.08"),
        (lambda: VonMisesFisher(MU, torch.tensor([1.0, 2.0, -3.0, 4.0])), r"kappa='-3 at index \(2,\)'"),
        (lambda: VonMisesFisher(MU, torch.ones(3)), r"broadcast with kappa \(3,\)"),
        (lambda: VonMisesFisher(MU, torch.ones(4, dtype=torch.float64)), r"kappa='of type torch.float64'.*kappa.to"),
        (lambda: VonMisesFisher(MU, torch.ones(4, device="meta")), "kappa='on meta'.*on cpu"),
        (lambda: VonMisesFisher(MU, 1.0).log_prob(MU.double()), "z='of type torch.float64'"),
        (lambda: VonMisesFisher(MU, 1.0).log_prob(MU.to("meta")), "z='on meta'"),
        (lambda: VonMisesFisher(MU, 1.0).log_prob(2 * MU), "z=.*unit norm"),
        (lambda: VonMisesFisher(MU, 1.0).log_prob(MU[:3]), r"z\[:, None\]"),
        (lambda: VonMisesFisher(MU, 1.0).log_prob(torch.eye(4)), "dimension d = 3"),
        (lambda: VonMisesFisher(MU, 1.0).sample(generator=-1), "a torch.Generator or a seed"),
        (lambda: log_normalizer(1, 1.0), "dim=1"),
        (lambda: log_normalizer(3, -0.5), "kappa=-0.5"),
        (lambda: mean_resultant_length(3, math.nan), "kappa=nan"),
    ],
)
def test_bad_input_is_named(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_samples_have_the_exact_law_and_density():
    mu = sample_uniform(1, 5, torch.Generator("cuda").manual_seed(0))[0]
    cloud = VonMisesFisher(mu, 10.0)
    z = cloud.sample((20_000,), torch.Generator("cuda").manual_seed(1))
    assert z.device.type == "cuda"
    assert stats.kstest(angles(z.cpu(), mu.cpu()), angle_law(5, 10.0)).pvalue > P_MIN
    torch.testing.assert_close(cloud.log_prob(z).cpu(), VonMisesFisher(mu.cpu(), 10.0).log_prob(z.cpu()))
    with pytest.raises(ValueError, match="generator='on cpu'"):
        cloud.sample(generator=generator())
    torch.cuda.set_sync_debug_mode("error")
    try:
        cloud.sample((1000,), torch.Generator("cuda").manual_seed(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1e6), (3, 1e8), (300, 1e5), (1000, 1e4), (1000, 1e8)])
def test_distribution_of_the_cosine_in_high_dimension_and_at_high_concentration(dim, kappa):
    mu = torch.eye(dim, dtype=torch.float64)[:1]
    z = VonMisesFisher(mu.expand(4000, -1), kappa).sample(generator=torch.Generator().manual_seed(0))
    level = vmf.cosine_cdf((z @ mu[0]).numpy(), kappa, dim)
    assert np.isfinite(level).all()
    assert stats.kstest(level, "uniform").pvalue > 1e-3


def test_single_precision_samples_of_a_narrow_law_are_of_that_law():
    mu = normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)))
    z = VonMisesFisher(mu, 1e7).sample(generator=torch.Generator().manual_seed(0))
    assert min(vmf_p_values(z, mu, 1e7, torch.zeros(len(z)).long()).values()) > 1e-3
    assert vmf_p_values(z, mu, 1.05e7, torch.zeros(len(z)).long())["distance"] < 1e-4


def test_integers_are_concentrations_too(unchecked):
    for function in (log_normalizer, mean_resultant_length):
        assert float(function(3, torch.tensor(10))) == float(function(3, 10.0))


@pytest.mark.parametrize("length", [math.nan, 1.5, "high"])
def test_a_mean_that_is_no_mean_of_cosines_is_named(unchecked, length):
    with pytest.raises(ValueError, match="length="):
        vmf.fit_kappa(3, length)
