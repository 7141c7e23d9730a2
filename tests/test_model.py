"""Encoders, the head's four cases, and the objectives on them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cegen import ClusterDGP, Encoder, Head, InvertibleMLP, SampledHead, SyntheticSource
from cegen.core import Batch, random_stream
from cegen.model import AuxiliaryHead, Similarity, Whitening, linear_cross_entropy, logits_at_once
from cegen.objective import check_head, get_objective

CASES = {"C1": (True, True), "C2": (True, False), "C3": (False, True), "C4": (False, False)}


def features(n=16, dim=4):
    return 3 * torch.randn(n, dim, generator=random_stream(0, "features"))


def test_mlp_has_the_widths_of_the_paper():
    sizes = [m.out_features for m in Encoder(7, 3, "mlp").modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [30, 150, 150, 150, 150, 30, 3]


def test_residual_encoder_starts_linear_and_does_not_stay_so():
    f = Encoder(4, 4)
    x = features()
    straight = f.net.straight(x)
    torch.testing.assert_close(f(x), straight)
    torch.nn.init.ones_(f.net.correction[-1].weight)
    assert (f(x) - straight).abs().max() > 0.01


def observations(n=4000, in_dim=6, condition=1e3, seed=0):
    "Off-centre Gaussian rows whose covariance has eigenvalues from 1/condition² to 1."
    g = random_stream(seed, "observations")
    scale = torch.logspace(0, -math.log10(condition), in_dim)
    turn = torch.linalg.qr(torch.randn(in_dim, in_dim, generator=g)).Q
    return torch.randn(n, in_dim, generator=g) * scale @ turn + 3


def covariance(x):
    return torch.cov(x.double().T)


def test_whitening_is_the_identity_until_it_is_shown_observations():
    x, whitening = observations(), Whitening(6)
    assert torch.equal(whitening(x), x)
    assert whitening.fit(x) is whitening
    torch.testing.assert_close(covariance(whitening(x)), torch.eye(6).double(), atol=1e-3, rtol=0)
    assert whitening(x).mean(dim=0).abs().max() < 1e-3
    white = Whitening(6).fit(x[:2000])(x[2000:])
    torch.testing.assert_close(covariance(white), torch.eye(6).double(), atol=0.2, rtol=0)


def test_whitening_is_the_symmetric_root():
    x, whitening = observations(condition=30.0), Whitening(6)
    matrix = whitening.fit(x).matrix.double()
    torch.testing.assert_close(matrix, matrix.T, atol=1e-5, rtol=0)
    assert torch.linalg.eigvalsh(matrix).min() > 0
    torch.testing.assert_close(matrix @ covariance(x) @ matrix, torch.eye(6).double(), atol=1e-4, rtol=0)


def test_directions_without_variance_are_dropped_and_not_blown_up():
    latent = observations(in_dim=3, condition=10.0)
    embedding = torch.randn(3, 8, generator=random_stream(0, "embedding"))
    x = torch.cat([latent @ embedding, torch.full((4000, 1), 0.7)], dim=1)
    whitening = Whitening(9).fit(x)
    variance = torch.linalg.eigvalsh(covariance(whitening(x)))
    torch.testing.assert_close(variance, torch.tensor([0.0] * 6 + [1.0] * 3).double(), atol=1e-3, rtol=0)
    assert whitening.matrix[8].abs().max() < 1e-4
    disturbed = x + 1e-3 * torch.randn(x.shape, generator=random_stream(0, "noise"))
    assert (whitening(disturbed) - whitening(x)).abs().max() < 0.1


def test_rounding_of_a_large_mean_is_no_direction():
    latent = 0.1 * torch.randn(4000, 2, generator=random_stream(0, "latent"))
    x = 1000 + latent @ torch.randn(2, 5, generator=random_stream(0, "embedding"))
    variance = torch.linalg.eigvalsh(covariance(Whitening(5).fit(x)(x)))
    torch.testing.assert_close(variance, torch.tensor([0.0] * 3 + [1.0] * 2).double(), atol=1e-2, rtol=0)


def test_preparation_whitens_the_residual_encoder_and_travels_with_its_state():
    x, f = observations(), Encoder(6, 3)
    f.prepare(x)
    torch.testing.assert_close(f(x), f.net(Whitening(6).fit(x)(x)))
    copy = Encoder(6, 3, generator=1)
    copy.load_state_dict(f.state_dict())
    assert torch.equal(copy(x), f(x))
    assert not any("whitening" in name for name, _ in f.named_parameters()), "buffers are not trained"


def test_an_encoder_that_is_trained_further_keeps_its_whitening():
    encoder, x = Encoder(3, 3, width=8), torch.randn(50, 3, generator=random_stream(0, "x"))
    encoder.prepare(x)
    with torch.inference_mode():
        before = encoder(x)
        encoder.prepare(5 * x + 1)
        assert torch.equal(encoder(x), before)
        fresh = Encoder(3, 3, width=8, generator=1)
        fresh.load_state_dict(encoder.state_dict())
        fresh.prepare(5 * x + 1)
        assert torch.equal(fresh(x), before), "that it was prepared travels with its state"


def test_the_encoder_of_the_paper_is_not_prepared():
    x, f = observations(), Encoder(6, 3, "mlp")
    before = {name: value.clone() for name, value in f.state_dict().items()}
    f.prepare(x)
    assert all(torch.equal(value, before[name]) for name, value in f.state_dict().items())
    assert not any("whitening" in name for name in before)


def slopes(encoder):
    return [module.negative_slope for module in encoder.modules() if isinstance(module, torch.nn.LeakyReLU)]


def test_slope_is_that_of_every_block_and_not_of_the_encoder_of_the_paper():
    assert slopes(Encoder(6, 3)) == [0.01] * 3
    assert slopes(Encoder(6, 3, n_blocks=2, negative_slope=0.2)) == [0.2] * 2
    assert set(slopes(Encoder(6, 3, "mlp", negative_slope=0.2))) == {0.01}


def test_slope_changes_no_initial_weight():
    usual, steep = Encoder(6, 3).state_dict(), Encoder(6, 3, negative_slope=0.2).state_dict()
    assert usual.keys() == steep.keys()
    assert all(torch.equal(usual[name], steep[name]) for name in usual)


@pytest.mark.parametrize("slope", [-0.1, 1.1, float("nan")])
def test_a_slope_outside_its_range_is_named(slope):
    with pytest.raises(ValueError, match="negative_slope"):
        Encoder(6, 3, negative_slope=slope)


def test_prepared_encoder_learns_more_in_the_same_steps():
    source = SyntheticSource(ClusterDGP(5), InvertibleMLP(5, law="published"))
    batch, scores = source.sample(4000, random_stream(0, "data")), []
    for prepared in (False, True):
        f = Encoder(5, 5, width=32, n_blocks=1)
        if prepared:
            f.prepare(batch.x)
        optimizer = torch.optim.Adam(f.parameters(), lr=1e-2)
        for step in range(150):
            part = slice(500 * (step % 8), 500 * (step % 8 + 1))
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(f(batch.x[part]), batch.z[part])
            loss.backward()
            optimizer.step()
        scores.append(loss.item())
    assert scores[1] < 0.8 * scores[0]


@pytest.mark.parametrize("architecture", ["residual", "mlp"])
def test_initial_weights_come_from_the_generator_alone(architecture):
    before = torch.get_rng_state()
    a, b, c = (Encoder(3, 3, architecture, generator=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a(features(dim=3)), c(features(dim=3)))


@pytest.mark.parametrize("case", CASES)
def test_norms_and_logits_of_each_case(case):
    unit_features, unit_rows = CASES[case]
    head, f = Head(20, 4, case, beta=2.5), features()
    norms = head.features(f).norm(dim=1), head.rows.norm(dim=1)
    for norm, unit in zip(norms, (unit_features, unit_rows), strict=True):
        assert bool((norm - 1).abs().max() < 1e-5) == unit
    torch.testing.assert_close(head(f), 2.5 * head.features(f) @ head.rows.T)
    assert head.log_beta.requires_grad == (case == "C1")


@pytest.mark.parametrize("case", ["C1", "C3"])
def test_gradient_of_a_unit_row_is_orthogonal_to_it(case):
    head = Head(20, 4, case)
    torch.nn.functional.cross_entropy(head(features()), torch.arange(16)).backward()
    along = (head.weight.grad * head.weight).sum(1) / head.weight.norm(dim=1)
    assert head.weight.grad.abs().max() > 1e-3
    assert along.abs().max() < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_training_never_overwrites_weights_to_normalise_them(case):
    head = Head(20, 4, case)
    before = head.weight.detach().clone()
    head(features())
    assert torch.equal(before, head.weight)


@pytest.mark.parametrize("case", CASES)
def test_biases_are_added_to_the_logits_and_are_absent_by_default(case):
    plain, biased = Head(20, 4, case), Head(20, 4, case, bias=True)
    assert list(plain.state_dict()) == ["weight", "log_beta"]
    assert repr(plain) == f"Head(n_rows=20, dim=4, case={case})"
    torch.testing.assert_close(plain(features()), biased(features()))
    b = torch.randn(20, generator=random_stream(0, "bias"))
    biased.bias.data = b
    torch.testing.assert_close(biased(features()), plain(features()) + b)
    biased.load_state_dict({**plain.state_dict(), "bias": b})
    with pytest.raises(RuntimeError, match="bias"):
        plain.load_state_dict(biased.state_dict())


def scrambled(row_map):
    "Give a map some matrix and some shift."
    g = random_stream(0, "map")
    row_map.weight.data = torch.randn(row_map.weight.shape, generator=g)
    if row_map.bias is not None:
        row_map.bias.data = torch.randn(row_map.bias.shape, generator=g)


@pytest.mark.parametrize("case", CASES)
def test_map_of_rows_is_the_identity_at_first_and_draws_nothing(case):
    before = torch.get_rng_state()
    plain, mapped = Head(20, 4, case), Head(20, 4, case, row_map=True)
    assert torch.equal(before, torch.get_rng_state())
    shift = ["row_map.bias"] * CASES[case][1]
    assert list(mapped.state_dict()) == ["weight", "log_beta", "row_map.weight", *shift]
    assert plain.row_map is None
    torch.testing.assert_close(mapped(features()), plain(features()))


@pytest.mark.parametrize("kind", [Head, SampledHead])
@pytest.mark.parametrize("case", CASES)
def test_rows_pass_the_map_between_two_normalisations_or_none(kind, case):
    head, (_, unit_rows) = kind(20, 4, case, row_map=True), CASES[case]
    head.weight.data *= 7
    scrambled(head.row_map)
    stored = F.normalize(head.weight) if unit_rows else head.weight
    image = F.linear(stored, head.row_map.weight, head.row_map.bias)
    torch.testing.assert_close(head.rows, F.normalize(image) if unit_rows else image)
    assert not torch.allclose(head.rows, stored, atol=0.1)


def test_under_autocast_the_map_of_rows_is_computed_in_full_precision():
    head = Head(20, 4, "C1", row_map=True)
    scrambled(head.row_map)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = head.rows
    assert under.dtype == torch.float32 and torch.equal(under, head.rows)


def test_a_head_with_rows_of_its_own_trains_on_what_it_predicts_with():
    class Tied(Head):
        @property
        def rows(self):
            return super().rows.flip(0)

    head, labels = Tied(20, 4, "C1"), torch.arange(16)
    torch.testing.assert_close(head.cross_entropy(features(), labels), F.cross_entropy(head(features()), labels))


@pytest.mark.parametrize("case", CASES)
def test_map_of_rows_gets_the_gradient_of_the_plain_softmax_in_every_way_to_compute_the_loss(chunked, case):
    u, _, _, labels = problem()
    head = Head(MANY, 4, case, beta=3.0, row_map=True)
    scrambled(head.row_map)
    wanted = (head.weight, *head.row_map.parameters())
    right = torch.autograd.grad(F.cross_entropy(head(u), labels), wanted)
    ours = torch.autograd.grad(head.cross_entropy(u, labels), wanted)
    assert chunked
    for got, expected in zip(ours, right, strict=True):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_of_a_sampled_head_the_rows_have_sparse_gradients_and_their_map_a_dense_one(case):
    head, few = SampledHead(50, 4, case, row_map=True), torch.randperm(50, generator=random_stream(0, "labels"))[:16]
    scrambled(head.row_map)
    head.cross_entropy(features(), few).backward()
    assert head.weight.grad.is_sparse and not head.row_map.weight.grad.is_sparse
    assert [id(p) for p in head.sparse_parameters] == [id(head.weight)]
    among_the_few = Head(16, 4, case, row_map=True)
    among_the_few.load_state_dict({**head.state_dict(), "weight": head.weight[few]})
    F.cross_entropy(among_the_few(features()), torch.arange(16)).backward()
    for p, q in zip(head.row_map.parameters(), among_the_few.row_map.parameters(), strict=True):
        assert p.grad.abs().max() > 1e-4
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)


def test_similarity_is_the_scaled_cosine_and_learns_its_scale():
    head, f, g = Similarity(beta=2.5), features(), features(n=6)
    assert head.unit_features
    cosine = torch.nn.functional.cosine_similarity(f[:, None], g[None], dim=2)
    torch.testing.assert_close(head(f, g), 2.5 * cosine)
    torch.testing.assert_close(head.features(f).norm(dim=1), torch.ones(16))
    head(f, g).sum().backward()
    assert head.log_beta.grad.abs() > 1e-3
    assert not Similarity(learn_beta=False).log_beta.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_auxiliary_head_is_a_head_with_biases_and_a_term_common_to_all_labels(case):
    head, f = AuxiliaryHead(20, 4, case, beta=2.0), features()
    linear = 2.0 * head.features(f) @ head.rows.T + head.bias
    torch.testing.assert_close(head(f), linear)  # at the start
    torch.nn.init.ones_(head.marginal.out.weight)
    common = head(f) - linear
    torch.testing.assert_close(common, common[:, :1].expand(16, 20), atol=1e-4, rtol=0)
    assert common[:, 0].std() > 1e-3


def test_auxiliary_head_is_initialised_from_the_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (AuxiliaryHead(20, 4, generator=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["marginal.hidden.weight"], c["marginal.hidden.weight"])


# ---- the loss


MANY = 16_000  # labels: more logits for 300 samples than are held at once
CPU = torch.device("cpu")


def problem(n=300, n_rows=MANY, dim=4, dtype=torch.float32):
    "Features, rows, biases and labels."
    g = random_stream(0, "problem")
    u, w, b = (torch.randn(shape, generator=g, dtype=dtype) for shape in ((n, dim), (n_rows, dim), (n_rows,)))
    return u.requires_grad_(), w.requires_grad_(), b.requires_grad_(), torch.randint(n_rows, (n,), generator=g)


@pytest.fixture
def chunked(monkeypatch):
    "The sizes of the chunks in which PyTorch's operation is asked to work."
    sizes, original = [], F.linear_cross_entropy

    def spy(*args, options, **kwargs):
        sizes.append(options.batch_chunk_size)
        return original(*args, options=options, **kwargs)

    monkeypatch.setattr(F, "linear_cross_entropy", spy)
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_and_gradients_in_chunks_are_those_of_the_whole(chunked, dtype, with_bias, reduction):
    u, w, b, labels = problem(dtype=dtype)
    bias, wanted = (b, (u, w, b)) if with_bias else (None, (u, w))
    weights = torch.linspace(0.5, 1.5, len(u), dtype=dtype)
    whole = F.cross_entropy(F.linear(u, w, bias), labels, reduction=reduction)
    ours = linear_cross_entropy(u, w, labels, bias, reduction)
    assert chunked == [2**19 // MANY], "the test is about the other path"
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    for got, right in zip(*(torch.autograd.grad((x * weights).mean(), wanted) for x in (ours, whole)), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=5e-7)
        assert right.abs().max() > 1e-4


def test_few_logits_are_held_whole_and_have_second_derivatives(chunked):
    u, w, _, labels = problem(n=20, n_rows=50)
    loss = linear_cross_entropy(u, w, labels)
    (slope,) = torch.autograd.grad(loss, u, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), u)
    assert chunked == [] and second.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("n", "n_rows", "device", "held"),
    [
        (512, 1000, "cpu", 512_000),
        (1024, 1000, "cpu", 1_024_000),
        (1024, 4096, "cpu", 2**22),
        (1024, 4097, "cpu", 2**19),
        (1024, 1_000_000, "cpu", 32_000_000),
        (10, 1_000_000, "cpu", 10_000_000),
        (8192, 1000, "cuda", 8_192_000),
        (8192, 100_000, "cuda", 2**25),
    ],
)
def test_logits_held_at_once_are_all_or_a_bounded_number(n, n_rows, device, held):
    assert logits_at_once(n, n_rows, torch.device(device)) == held <= n * n_rows


def test_heads_say_how_many_logits_they_hold():
    assert Head(MANY, 3).logits_held(1000) == 2**19
    assert AuxiliaryHead(MANY, 3).logits_held(1000) == 1000 * MANY
    assert SampledHead(MANY, 3).logits_held(200) == 200**2
    assert SampledHead(MANY, 3).logits_held(1025) == 1025 * 205
    assert SampledHead(MANY, 3).eval().logits_held(500) == 2**19


@pytest.mark.parametrize("case", ["C1", "C3"])
def test_gradient_of_very_many_unit_rows_is_that_of_the_plain_softmax(chunked, case):
    g = random_stream(0, "unit rows")
    head, f = Head(MANY, 4, case, beta=3.0), torch.randn(300, 4, generator=g)
    labels = torch.randint(MANY, (300,), generator=g)
    right = torch.autograd.grad(F.cross_entropy(head(f), labels), head.weight)[0]
    ours = torch.autograd.grad(head.cross_entropy(f, labels), head.weight)[0]
    assert chunked
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-8)


def test_nothing_is_computed_for_gradients_where_none_are_wanted(chunked):
    u, w, b, labels = problem()
    with torch.inference_mode():
        loss = linear_cross_entropy(u, w, labels, b)
    assert chunked and not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(u, w, b), labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row_map", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_under_autocast_many_labels_are_summed_in_full_precision(chunked, case, row_map):
    u, _, _, labels = problem()
    head, linear = Head(MANY, 4, case, row_map=row_map), torch.nn.Linear(4, 4)
    full = head.cross_entropy(linear(u), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head.cross_entropy(linear(u), labels)
    assert len(chunked) == 2 and half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=1e-3)
    half.backward()
    assert head.weight.grad.dtype == torch.float32
    assert torch.isfinite(head.weight.grad).all() and linear.weight.grad.abs().max() > 1e-5


MEMORY = """
import torch
from cegen import Head

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

torch.set_num_threads(1)
n, n_rows, dim = 1024, 200_000, 64
head, f = Head(n_rows, dim), torch.randn(n, dim, requires_grad=True)
labels = torch.randint(n_rows, (n,))
Head(100_000, 2).cross_entropy(f[:70, :2], labels[:70] % 1000).backward()  # what is loaded at the first call
f.grad = None
for wants_gradient in (False, True):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = status("VmRSS")
    with torch.set_grad_enabled(wants_gradient):
        loss = head.cross_entropy(f, labels)
    if wants_gradient:
        loss.backward()
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux how much memory was used")
def test_memory_is_flat_in_the_batch():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    evaluation, training = map(float, done.stdout.split())
    logits = 1024 * 200_000 * 4 / 2**20  # 780 MiB; held whole they are needed two or three times
    assert evaluation < 0.15 * logits
    assert training < 0.3 * logits


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_rows", [30, MANY])
def test_head_computes_the_cross_entropy_of_its_own_logits(case, n_rows):
    g = random_stream(0, "loss")
    f, labels = torch.randn(300, 4, generator=g), torch.randint(n_rows, (300,), generator=g)
    for head in (Head(n_rows, 4, case, beta=2.5, bias=True), AuxiliaryHead(n_rows, 4, case)):
        torch.nn.init.normal_(head.bias, generator=g)
        for reduction in ("mean", "none"):
            right = F.cross_entropy(head(f), labels, reduction=reduction)
            torch.testing.assert_close(head.cross_entropy(f, labels, reduction), right, rtol=1e-5, atol=1e-5)


def test_a_subclass_is_asked_for_its_own_logits():
    class Doubled(Head):
        def forward(self, f):
            return 2 * super().forward(f)

    head, labels = Doubled(20, 4), torch.arange(16)
    right = F.cross_entropy(2 * features() @ head.weight.T, labels)
    torch.testing.assert_close(head.cross_entropy(features(), labels), right)


# ---- rivals from the batch


@pytest.mark.parametrize("case", CASES)
def test_sampled_head_tells_labels_of_a_batch_apart(case):
    head, f = SampledHead(50, 4, case, beta=2.5), features(n=5)
    labels = torch.tensor([7, 49, 7, 0, 3])
    z, rows = head.features(f).double(), head.rows[labels].detach().double()
    naive = 0.0
    for j in range(5):
        logits = [2.5 * float(z[j] @ rows[k]) for k in range(5)]
        naive += math.log(sum(math.exp(v) for v in logits)) - logits[j]
    assert head.cross_entropy(f, labels).item() == pytest.approx(naive / 5, rel=1e-5)
    torch.testing.assert_close(head.cross_entropy(f, labels, "none").mean(), head.cross_entropy(f, labels))


@pytest.mark.parametrize("case", CASES)
def test_labels_that_are_drawn_twice_change_the_loss_by_a_constant(case):
    "Against the softmax over distinct labels, each weighted by how often it occurs."
    head, f = SampledHead(50, 4, case), features(n=6).requires_grad_()
    labels = torch.tensor([7, 49, 7, 0, 3, 7])
    distinct, own, count = labels.unique(return_inverse=True, return_counts=True)
    logits = head.beta * head.features(f) @ head.rows[distinct].T + count.log()
    merged, ours = F.cross_entropy(logits, own), head.cross_entropy(f, labels)
    torch.testing.assert_close(ours, merged + count[own].log().mean())
    wanted = (f, head.weight)
    for got, right in zip(*(torch.autograd.grad(x, wanted) for x in (ours, merged)), strict=True):
        torch.testing.assert_close(got.to_dense() if got.is_sparse else got, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_rows", [100, 1_000_000])
def test_a_step_touches_the_rows_of_its_batch_however_many_there_are(case, n_rows):
    head, f = SampledHead(n_rows, 4, case), features().requires_grad_()
    labels = torch.arange(16).remainder(11) * (n_rows // 11)
    head.cross_entropy(f, labels).backward()
    assert [p is head.weight for p in head.sparse_parameters] == [True]
    gradient = head.weight.grad
    assert gradient.is_sparse and gradient._nnz() == 16
    assert torch.equal(gradient.coalesce().indices()[0], labels.unique())
    assert f.grad.abs().max() > 1e-3
    before = head.weight.detach()[labels.unique()].clone()
    torch.optim.SparseAdam(head.sparse_parameters, lr=0.1).step()
    assert ((head.weight.detach()[labels.unique()] - before).abs().max(dim=1).values > 1e-3).all()


@pytest.mark.parametrize("case", CASES)
def test_gradients_on_a_gpu_are_the_same_but_dense(monkeypatch, case):
    sparse, labels = SampledHead(30, 4, case), torch.arange(16).remainder(11) * 2
    sparse.cross_entropy(features(), labels).backward()
    monkeypatch.setattr(SampledHead, "sparse_gradients", False)  # as on a GPU
    dense = SampledHead(30, 4, case)
    dense.cross_entropy(features(), labels).backward()
    assert sparse.weight.grad.is_sparse
    assert not dense.weight.grad.is_sparse
    torch.testing.assert_close(dense.weight.grad, sparse.weight.grad.to_dense())


@pytest.mark.parametrize("dense", [False, True])
def test_labels_that_happen_to_be_alike_teach_nothing_and_do_no_harm(monkeypatch, dense):
    if dense:
        monkeypatch.setattr(SampledHead, "sparse_gradients", property(lambda head: False))
    head = SampledHead(9, 3)
    head.cross_entropy(torch.randn(8, 3), torch.full((8,), 4)).backward()
    gradient = head.weight.grad if dense else head.weight.grad.to_dense()
    torch.testing.assert_close(gradient, torch.zeros(9, 3), atol=1e-6, rtol=0)


def test_sampled_head_in_evaluation_mode_is_an_ordinary_head():
    sampled, plain = SampledHead(30, 4, "C1"), Head(30, 4, "C1")
    plain.load_state_dict(sampled.state_dict())
    labels = torch.arange(16)
    assert torch.equal(sampled(features()), plain(features())), "logits are those of all labels in both modes"
    trained = sampled.cross_entropy(features(), labels)
    assert torch.equal(sampled.eval().cross_entropy(features(), labels), plain.cross_entropy(features(), labels))
    assert trained < plain.cross_entropy(features(), labels), "fewer rivals"


def test_with_every_label_once_both_modes_ask_the_same():
    head, labels = SampledHead(16, 4), torch.randperm(16, generator=random_stream(0, "labels"))
    torch.testing.assert_close(head.cross_entropy(features(), labels), head.eval().cross_entropy(features(), labels))


def test_large_batches_are_dealt_out_to_several_hats():
    g = random_stream(0, "large")
    head, f = SampledHead(5000, 4, "C3"), torch.randn(1000, 4, generator=g)
    labels = torch.randint(5000, (1000,), generator=g)
    head.cross_entropy(f, labels).backward()
    own = torch.arange(250)
    parts = [(slice(start, start + 250), own) for start in range(0, 1000, 250)]
    naive = torch.cat([F.cross_entropy(f[k] @ head.rows[labels[k]].T, own, reduction="none") for k, own in parts])
    torch.testing.assert_close(head.cross_entropy(f, labels, "none"), naive)
    right = torch.autograd.grad(naive.mean(), head.weight)[0]
    assert head.weight.grad.is_sparse
    torch.testing.assert_close(head.weight.grad.to_dense(), right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("objective", ["diet", "supervised"])
def test_untrained_loss_is_that_of_guessing(objective):
    source = SyntheticSource(ClusterDGP(4, 10, 200), InvertibleMLP(4))
    chosen = get_objective(objective)
    batch = source.sample(500, random_stream(0, "data"))
    loss = chosen.loss(Encoder(4, 4)(batch.x), Head(chosen.n_rows(source), 4), batch)
    assert float(loss.detach()) == pytest.approx(math.log(200 if objective == "diet" else 10), abs=0.1)


def test_objectives_predict_their_own_label():
    batch = Batch(x=torch.zeros(3, 2), instance=torch.tensor([4, 5, 6]), label=torch.tensor([0, 1, 2]))
    assert torch.equal(get_objective("diet").labels(batch), batch.instance)
    assert torch.equal(get_objective("supervised").labels(batch), batch.label)


def test_an_objective_of_ones_own_is_accepted():
    class Mean:
        name = "mean"

        def n_rows(self, source):
            return 2

        def loss(self, features, head, batch):
            return features.mean()

    mine = Mean()
    assert get_objective(mine) is mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Encoder(0, 3), "in_dim=0"),
        (lambda: Encoder(3, 3, "resnet"), "one of 'residual', 'mlp'"),
        (lambda: Encoder(3, 3)(torch.ones(3, 8)), "Samples are rows"),
        (lambda: Encoder(3, 3)(torch.ones(8, 3).double()), r"x\.to\(torch\.float32\)"),
        (lambda: Whitening(0), "in_dim=0"),
        (lambda: Whitening(3).fit(torch.ones(20, 4)), "Samples are rows"),
        (lambda: Whitening(3).fit(torch.randn(20, 3).double()), r"x\.to\(torch\.float32\)"),
        (lambda: Whitening(3).fit(torch.ones(20, 3)), "20 rows, all alike.*observations that differ"),
        (lambda: Whitening(3).fit(torch.randn(1, 3)), "1 rows, all alike"),
        (lambda: Whitening(3).fit(torch.randn(0, 3)), "0 rows"),
        (lambda: Whitening(3).fit(torch.randn(4, 3)), "at least 5 rows, better 30"),
        (lambda: Whitening(3).fit(torch.full((20, 3), math.nan)), "60 of 60 entries.*finite everywhere"),
        (lambda: Encoder(3, 3).prepare(torch.ones(20, 3)), "observations that differ"),
        (lambda: Head(0, 3), "n_rows=0"),
        (lambda: Head(3, 3, "C9"), "one of 'C1', 'C2', 'C3', 'C4'"),
        (lambda: Head(3, 3, beta=-1.0), r"beta=-1\.0"),
        (lambda: Head(3, 3)(torch.ones(8, 4)), "the same dim"),
        (lambda: Head(3, 3).cross_entropy(torch.ones(8, 4), torch.zeros(8).long()), "the same dim"),
        (lambda: SampledHead(3, 3).cross_entropy(torch.ones(8, 4), torch.arange(8)), "the same dim"),
        (lambda: SampledHead(9, 3).cross_entropy(torch.ones(1, 3), torch.zeros(1).long()), "of at least two"),
        (lambda: SampledHead(0, 3), "n_rows=0"),
        (lambda: Similarity(beta=0.0), r"beta=0\.0"),
        (lambda: Similarity()(torch.ones(8, 4), torch.ones(8, 3)), r"of shape \(…, 4\)"),
        (lambda: AuxiliaryHead(3, 3, width=0), "width=0"),
        (lambda: AuxiliaryHead(3, 3)(torch.ones(8, 4)), "the same dim"),
        (lambda: get_objective("simclr"), "one of 'diet', 'supervised', 'infonce', 'tcl', 'gcl'"),
    ],
)
def test_bad_input_is_named(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_head_must_have_a_row_for_each_label():
    source = SyntheticSource(ClusterDGP(3, 5, 20), InvertibleMLP(3))
    check_head(Head(20, 3), get_objective("diet"), source)
    with pytest.raises(ValueError, match=r"Head\(5, dim\)"):
        check_head(Head(20, 3), get_objective("supervised"), source)


@pytest.mark.parametrize(("n_classes", "n_instances", "objective"), [(1, 1, "diet"), (1, 10, "supervised")])
def test_a_single_label_is_nothing_to_predict(n_classes, n_instances, objective):
    source = SyntheticSource(ClusterDGP(3, n_classes, n_instances), InvertibleMLP(3))
    with pytest.raises(ValueError, match="nothing to predict"):
        check_head(Head(1, 3), get_objective(objective), source)
