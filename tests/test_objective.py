"""The relatives of DIET: their losses against naive computations and known optima, and that each recovers the latents."""

import math

import pytest
import torch
from torch.nn import functional as F

from cegen import (
    ArraySource,
    ClusterDGP,
    Encoder,
    Head,
    InvertibleMLP,
    SampledHead,
    SyntheticSource,
    VonMisesFisher,
    fit,
)
from cegen.core import Batch, random_stream
from cegen.model import AuxiliaryHead, Similarity
from cegen.objective import GCL, OBJECTIVES, RELATIVES, CrossEntropy, InfoNCE, check_head, get_objective
from cegen.probe import r2_affine
from cegen.source import PairedSource
from cegen.sphere import log_sphere_area, random_orthogonal, sample_uniform
from cegen.theory import bayes_cross_entropy
from cegen.vmf import log_normalizer

NAMES = [*OBJECTIVES, *RELATIVES]
KAPPA = torch.linspace(2, 30, 8)


def world(dim=3, n_classes=6, n_instances=30, seed=0):
    return SyntheticSource(ClusterDGP(dim, n_classes, n_instances, seed=seed), InvertibleMLP(dim, seed=seed))


def uneven():
    "Classes that differ in frequency and in κ: the posterior needs biases."
    weights = torch.linspace(1, 4, 8)
    return ClusterDGP(3, 8, 80, kappa=KAPPA, class_weights=weights, seed=1)


def samples(dgp, n, seed=0):
    "Samples whose observations are the latents themselves."
    z, instance, label = dgp.sample(n, random_stream(seed, "data"))
    return Batch(x=z, instance=instance, label=label, z=z)


def small_batch(pairs=False):
    g = random_stream(0, "small")
    instance = torch.randint(7, (6,), generator=g).repeat(2) if pairs else torch.randint(7, (12,), generator=g)
    return Batch(x=torch.randn(12, 3, generator=g), instance=instance, label=instance % 4)


class Fixed(torch.nn.Module):
    "A function in the place of a trained module."

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


def mean_and_error(values):
    values = values.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def lowest_loss(objective, head, features, batch, extra=()):
    "The loss of the best head on given features; `features` is a function of nothing, called anew at each evaluation."
    optimizer = torch.optim.LBFGS([*head.parameters(), *extra], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(features(), head, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(closure().detach())


# ---- what is computed


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_makes_a_head_that_fits_and_gives_finite_gradients(name):
    objective, source = get_objective(name), world()
    head = objective.make_head(source, 3, generator=random_stream(0, "head"))
    check_head(head, objective, source)
    encoder = Encoder(3, 3)
    batch = PairedSource(source).sample(200, random_stream(0, "data"))
    loss = objective.loss(encoder(batch.x), head, batch)
    assert loss.shape == ()
    loss.backward()
    trained = {"log_beta"} if name == "infonce" else {n for n, p in head.named_parameters() if p.requires_grad}
    gradients = {n: p.grad for n, p in head.named_parameters() if n in trained}
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert encoder.net.straight.weight.grad.abs().max() > 1e-4
    # At the start the perceptron of GCL is zero but for its last layer, so that only that one is moved at first.
    assert all(g.abs().max() > 1e-6 for n, g in gradients.items() if not n.startswith("marginal.hidden"))


def test_heads_take_their_options_and_their_randomness():
    source = world()
    tcl, gcl, infonce = (get_objective(name) for name in ("tcl", "gcl", "infonce"))
    assert tcl.make_head(source, 3, case="C1", beta=7.0).beta.item() == pytest.approx(7)
    assert gcl.make_head(source, 3, case="C2").unit_features
    assert infonce.make_head(source, 3, beta=7.0, learn_beta=False).log_beta.requires_grad is False
    a, b = (get_objective("diet").make_head(source, 3, generator=seed) for seed in (0, 1))
    assert not torch.equal(a.weight, b.weight)
    assert [get_objective(n).n_rows(source) for n in NAMES] == [30, 6, 0, 6, 30]
    assert GCL(level="class").n_rows(source) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infonce_is_the_cross_entropy_of_finding_the_other_view(dtype):
    batch, head = small_batch(pairs=True), Similarity(beta=2.0).to(dtype)
    f = batch.x.to(dtype)
    h = f / f.norm(dim=1, keepdim=True)
    total = 0.0
    for j in range(6):
        own = math.exp(2 * h[j] @ h[6 + j])
        total -= math.log(own / sum(math.exp(2 * h[j] @ h[6 + k]) for k in range(6)))
        total -= math.log(own / sum(math.exp(2 * h[k] @ h[6 + j]) for k in range(6)))
    loss = InfoNCE().loss(f, head, batch)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("level", ["instance", "class"])
def test_gcl_is_the_mean_over_own_labels_and_those_of_all_others(level):
    batch, head = small_batch(), AuxiliaryHead(7 if level == "instance" else 4, 3)
    torch.nn.init.normal_(head.marginal.out.weight, generator=random_stream(0, "a"))
    torch.nn.init.normal_(head.bias, generator=random_stream(0, "b"))
    label = (batch.instance if level == "instance" else batch.label).tolist()
    r = head(batch.x).detach().double()
    own = [math.log1p(math.exp(-r[j, label[j]])) for j in range(12)]
    wrong = [math.log1p(math.exp(r[j, label[k]])) for j in range(12) for k in range(12) if j != k]
    loss = GCL(level=level).loss(batch.x, head, batch).item()
    assert loss == pytest.approx(sum(own) / len(own) / 2 + sum(wrong) / len(wrong) / 2, rel=1e-5)


def test_gcl_does_not_depend_on_the_order_of_samples():
    batch, head = small_batch(), AuxiliaryHead(7, 3)
    order = torch.randperm(12, generator=random_stream(0, "order"))
    shuffled = Batch(x=batch.x[order], instance=batch.instance[order], label=batch.label[order])
    a, b = (GCL().loss(x.x, head, x).item() for x in (batch, shuffled))
    assert a == pytest.approx(b, abs=1e-6)


def test_tcl_is_multinomial_logistic_regression_with_biases():
    batch, head = small_batch(), Head(4, 3, bias=True)
    torch.nn.init.normal_(head.bias, generator=random_stream(0, "b"))
    logit = (batch.x @ head.weight.T + head.bias).detach().double()
    naive = [math.log(sum(math.exp(v) for v in row)) - float(row[c]) for row, c in zip(logit, batch.label, strict=True)]
    assert RELATIVES["tcl"].loss(batch.x, head, batch).item() == pytest.approx(sum(naive) / 12, rel=1e-5)


def test_losses_of_an_untrained_model_are_those_of_guessing():
    source = world(4, 10, 200)
    batch = PairedSource(source).sample(512, random_stream(0, "data"))
    features = Encoder(4, 4)(batch.x)

    def untrained(name, **options):
        objective = get_objective(name)
        return objective.loss(features, objective.make_head(source, 4, **options), batch).item()

    assert untrained("tcl") == pytest.approx(math.log(10), abs=0.1)
    assert untrained("gcl") == pytest.approx(math.log(2), abs=0.05)
    assert untrained("infonce", beta=1e-3) == pytest.approx(math.log(256), abs=0.01)


@pytest.mark.parametrize("name", ["infonce", "gcl"])
def test_long_sums_are_taken_in_full_precision(name):
    objective, batch = get_objective(name), world().sample(512, random_stream(0, "data"))
    batch = Batch(x=batch.x, instance=batch.instance[:256].repeat(2), label=batch.label[:256].repeat(2))
    head = objective.make_head(world(), 3)
    full = objective.loss(batch.x, head, batch).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective.loss(batch.x, head, batch)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.01)


# ---- known optima


def test_tcl_reaches_the_bayes_floor_where_classes_differ_and_a_head_without_biases_does_not():
    dgp, tcl = uneven(), RELATIVES["tcl"]
    batch = samples(dgp, 40_000)
    head = Head(8, 3, bias=True)
    head.weight.data = KAPPA[:, None] * dgp.class_vectors
    head.bias.data = dgp.class_probability.log() + log_normalizer(3, KAPPA)
    value, error = mean_and_error(F.cross_entropy(head(batch.z), batch.label, reduction="none").detach())
    floor = bayes_cross_entropy(dgp, level="class", generator=1)
    error = math.hypot(error, floor.standard_error)
    assert tcl.loss(batch.z, head, batch).item() == pytest.approx(value, abs=1e-5)
    assert abs(value - floor.value) < 4 * error
    # The best rows, on the latents and on the best affine map of them: rows absorb its matrix, an offset remains.
    offset = torch.nn.Parameter(torch.zeros(3))
    plain = lowest_loss(tcl, Head(8, 3), lambda: batch.z, batch)
    shifted = lowest_loss(tcl, Head(8, 3), lambda: batch.z + offset, batch, extra=[offset])
    assert plain > shifted > floor.value + 8 * error
    assert abs(lowest_loss(tcl, Head(8, 3, bias=True), lambda: batch.z, batch) - floor.value) < 4 * error


@pytest.mark.parametrize("level", ["instance", "class"])
def test_gcl_reaches_its_floor_with_the_exact_log_ratio_and_every_change_is_worse(level):
    dgp, gcl = uneven(), GCL(level=level)
    batch = samples(dgp, 20_000)
    of_label = dgp.instance_class if level == "instance" else torch.arange(8)

    def log_marginal(z):
        return (dgp.log_conditional(z) + dgp.class_probability.log()).logsumexp(1, keepdim=True)

    head = AuxiliaryHead(len(of_label), 3)
    head.weight.data = (KAPPA[:, None] * dgp.class_vectors)[of_label]
    head.bias.data = log_normalizer(3, KAPPA)[of_label]
    head.marginal = Fixed(lambda z: -log_marginal(z))
    # ln 2 − JSD, by Monte Carlo over other latents, with the sum over classes in closed form.
    z = samples(dgp, 40_000, seed=1).z
    r = (dgp.log_conditional(z) - log_marginal(z)).double()
    costs = (r.exp() * F.softplus(-r) + F.softplus(r)) / 2 @ dgp.class_probability.double()
    floor, error = mean_and_error(costs)
    # The spread of the estimate on a batch: by blocks, as its terms share samples.
    blocks = [Batch(x=b.x, instance=b.instance, label=b.label) for b in (samples(dgp, 1000, seed=s) for s in range(20))]
    value, block_error = mean_and_error(torch.stack([gcl.loss(b.x, head, b).detach() for b in blocks]))
    assert abs(value - floor) < 4 * math.hypot(error, block_error)
    assert abs(gcl.loss(batch.z, head, batch).item() - floor) < 4 * math.hypot(error, block_error)

    best = gcl.loss(batch.z, head, batch).item()
    g = random_stream(0, "change")
    for name, size in (("weight", 0.3), ("bias", 0.1)):
        exact = getattr(head, name).data.clone()
        for _ in range(3):
            change = torch.randn(exact.shape, generator=g)
            getattr(head, name).data = exact * (1 + size * change)
            assert gcl.loss(batch.z, head, batch).item() > best + 1e-3
        getattr(head, name).data = exact
    for change in (lambda z: -log_marginal(z) + 0.3, lambda z: -0.8 * log_marginal(z), lambda z: 0 * z[:, :1]):
        head.marginal = Fixed(change)
        assert gcl.loss(batch.z, head, batch).item() > best + 1e-3


def views(n=2000, dim=4, kappa=8.0, seed=0):
    "The world of Zimmermann et al.: uniform latents, and second views around the first."
    g = random_stream(seed, "views")
    z = sample_uniform(n, dim, g)
    x = torch.cat([z, VonMisesFisher(z, kappa).sample(generator=g)])
    return Batch(x=x, instance=torch.arange(n).repeat(2), label=torch.zeros(2 * n).long(), z=x)


def test_infonce_at_the_truth_is_stationary_and_nearly_reaches_the_mutual_information():
    losses, slopes, n = [], [], 500
    for seed in range(30):
        batch, head = views(n, seed=seed), Similarity(beta=8.0)
        losses.append(InfoNCE().loss(batch.x, head, batch))
        losses[-1].backward()
        slopes.append(head.log_beta.grad)
    slope, error = mean_and_error(torch.stack(slopes))
    assert abs(slope) < 4 * error < 0.05, "β = κ is stationary"
    loss, error = mean_and_error(torch.stack(losses).detach())
    information = log_sphere_area(4) - float(VonMisesFisher(batch.x[0], 8.0).entropy())
    assert information - 0.1 < math.log(n) - loss < information + 4 * error


def test_infonce_is_lowest_at_the_truth():
    batch, infonce = views(), InfoNCE()
    best = infonce.loss(batch.x, Similarity(beta=8.0), batch).item()
    rotation = random_orthogonal(4, generator=random_stream(1, "rotation"))
    assert infonce.loss(batch.x @ rotation, Similarity(beta=8.0), batch).item() == pytest.approx(best, abs=1e-4)
    for beta in (6.0, 10.0):
        assert infonce.loss(batch.x, Similarity(beta=beta), batch).item() > best + 0.01
    # Maps of the sphere to itself that are not orthogonal, each with the β that suits it best.
    bends = (lambda x: x * torch.tensor([1, 1, 1, 0.6]), lambda x: x + 0.4 * x.roll(1, 1) ** 2, lambda x: x**3)
    for bend in bends:
        bent = bend(batch.x)
        assert lowest_loss(infonce, Similarity(beta=8.0), lambda bent=bent: bent, batch) > best + 0.01


def test_gradient_of_infonce_in_beta_points_to_kappa():
    batch, infonce = views(), InfoNCE()
    for beta, sign in ((5.0, -1), (12.0, 1)):
        head = Similarity(beta=beta)
        infonce.loss(batch.x, head, batch).backward()
        assert torch.sign(head.log_beta.grad) == sign


# ---- rivals from the batch


def gradients(kind, dgp, rows, n=48, n_batches=500):
    "DIET's gradient in rows and in a linear map of the features, at features z; one row for each batch."
    head, identity, g = kind(dgp.n_instances, dgp.dim), torch.eye(dgp.dim, requires_grad=True), random_stream(0, "data")
    head.weight.data, found = rows[dgp.instance_class].clone(), []
    class_of = torch.nn.functional.one_hot(dgp.instance_class, len(rows)).T.float()
    for _ in range(n_batches):
        z, instance, label = dgp.sample(n, g)
        loss = CrossEntropy("diet", "instance").loss(z @ identity, head, Batch(x=z, instance=instance, label=label))
        by_map, by_rows = torch.autograd.grad(loss, (identity, head.weight))
        # Rows of a class move together: their sum is what a class vector feels.
        by_class = class_of @ (by_rows.to_dense() if by_rows.is_sparse else by_rows)
        found.append(torch.cat([by_map.flatten(), by_class.flatten()]))
    return torch.stack(found).double()


def from_zero(g):
    "Root mean square of the components of the mean, each in units of its standard error."
    return float((g.mean(dim=0) / (g.std(dim=0) / math.sqrt(len(g)))).square().mean().sqrt())


@pytest.mark.parametrize("kind", [Head, SampledHead])
def test_expected_gradient_vanishes_at_the_optimum_and_nowhere_near(kind):
    dgp = ClusterDGP(3, 12, 60, kappa=8.0, seed=0)
    right = 8 * dgp.class_vectors
    assert from_zero(gradients(kind, dgp, right)) < 1.35
    assert from_zero(gradients(kind, dgp, right + torch.tensor([3.0, -1.0, 2.0]))) < 1.35, "C4 leaves an offset open"
    assert from_zero(gradients(kind, dgp, 1.4 * right)) > 2.5
    assert from_zero(gradients(kind, dgp, right.roll(1, 0))) > 2.5


def test_rivals_from_the_batch_need_no_prior_where_labels_are_not_uniform():
    dgp = ClusterDGP(3, 12, 60, kappa=8.0, class_weights=torch.linspace(1, 5, 12), seed=0)
    right = 8 * dgp.class_vectors
    assert from_zero(gradients(SampledHead, dgp, right)) < 1.35
    assert from_zero(gradients(Head, dgp, right)) > 2.5


def test_gradient_tells_less_in_small_batches_and_no_less_in_large_ones():
    "Curvature in the features' scale: of the sampled loss over that of the full one."
    dgp = ClusterDGP(3, 12, 60, kappa=8.0, seed=0)

    def curvature(kind, n, n_batches):
        head, g, total = kind(60, 3), random_stream(0, "data"), 0.0
        head.weight.data = 8 * dgp.class_vectors[dgp.instance_class]
        for _ in range(n_batches):
            z, instance, _ = dgp.sample(n, g)
            scale = torch.ones((), requires_grad=True)
            (slope,) = torch.autograd.grad(head.cross_entropy(scale * z, instance), scale, create_graph=True)
            total += torch.autograd.grad(slope, scale)[0].item()
        return total / n_batches

    full = curvature(Head, 256, 40)
    assert curvature(SampledHead, 4, 400) < 0.7 * full
    assert curvature(SampledHead, 256, 40) == pytest.approx(full, rel=0.1)


def by_hand(kind, case, steps=500):
    "R² of the latents after training by a plain loop, rows by SparseAdam where their gradients are sparse."
    source = world(3, 20, 100, seed=1)
    encoder, head, objective = Encoder(3, 3, n_blocks=2), kind(100, 3, case), get_objective("diet")
    data, test = random_stream(0, "data"), source.sample(4000, random_stream(0, "test"))
    encoder.prepare(source.sample(2000, random_stream(0, "prepare")).x)
    rows = getattr(head, "sparse_parameters", [])
    dense = [p for p in head.parameters() if p.requires_grad and not any(p is r for r in rows)]
    groups = [{"params": encoder.parameters(), "lr": 1e-2}] + ([{"params": dense, "lr": 1e-1}] if dense else [])
    optimizers = [torch.optim.Adam(groups)] + ([torch.optim.SparseAdam(rows, lr=1e-1)] if rows else [])
    full = [[group["lr"] for group in o.param_groups] for o in optimizers]
    for step in range(steps):
        batch = source.sample(256, data)
        loss = objective.loss(encoder(batch.x), head, batch)
        for o, rates in zip(optimizers, full, strict=True):
            o.zero_grad()
            for group, rate in zip(o.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
        loss.backward()
        for o in optimizers:
            o.step()
    with torch.no_grad():
        h = head.features(encoder(test.x))
    loss = objective.loss(h, head.eval(), test).item()
    return r2_affine(test.z[:2000], h[:2000], test.z[2000:], h[2000:]), loss


@pytest.mark.parametrize("case", ["C1", "C4"])
def test_training_against_rivals_from_the_batch_reaches_what_the_full_softmax_does(case):
    (full, floor), (sampled, loss) = by_hand(Head, case), by_hand(SampledHead, case)
    assert min(full, sampled) > 0.94
    assert sampled > full - 0.02
    assert loss == pytest.approx(floor, abs=0.05), "the loss of equation (1), in evaluation mode"


def test_cross_entropy_lets_a_head_compute_its_loss_and_takes_logits_from_anything_else():
    batch, head = small_batch(), SampledHead(7, 3)
    diet, layer = OBJECTIVES["diet"], torch.nn.Linear(3, 7)
    assert torch.equal(diet.loss(batch.x, head, batch), head.cross_entropy(batch.x, batch.instance))
    assert not torch.allclose(diet.loss(batch.x, head, batch), diet.loss(batch.x, head.eval(), batch))
    assert torch.equal(diet.loss(batch.x, layer, batch), F.cross_entropy(layer(batch.x), batch.instance))
    supervised = OBJECTIVES["supervised"].loss(batch.x, head.train(), batch)
    assert torch.equal(supervised, head.cross_entropy(batch.x, batch.label))


# ---- training


def trained(name, steps=400):
    "R² of the latents before and after training."
    source = world(3, 20, 100, seed=1)
    objective, encoder = get_objective(name), Encoder(3, 3, width=64, n_blocks=2)
    head = objective.make_head(source, 3)
    test = source.sample(4000, random_stream(0, "test"))

    def r2():
        with torch.no_grad():
            h = head.features(encoder(test.x))
        return r2_affine(test.z[:2000], h[:2000], test.z[2000:], h[2000:])

    before = r2()
    paired = PairedSource(source) if name == "infonce" else source
    fit(paired, encoder, head, objective, steps=steps, batch_size=256, n_eval=256, device="cpu")
    return before, r2(), head


@pytest.mark.parametrize("name", NAMES)
def test_each_objective_recovers_the_latents_and_an_untrained_encoder_does_not(name):
    before, after, head = trained(name)
    assert after > 0.94 > 0.82 > before
    assert torch.isfinite(head.beta)


def test_a_run_on_pairs_resumes_to_the_same_bits(tmp_path):
    options = {"steps": 20, "batch_size": 64, "n_eval": 64, "eval_every": 10, "device": "cpu"}

    def parts():
        return PairedSource(world()), Encoder(3, 3, width=16, n_blocks=1), Similarity(), "infonce"

    def interrupt(step, encoder, head):
        if step == 20:
            raise KeyboardInterrupt

    whole = fit(*parts(), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(*parts(), callbacks=[interrupt], checkpoint=tmp_path, **options)
    resumed = fit(*parts(), checkpoint=tmp_path, **options)
    assert list(resumed.history.step) == [10, 20]
    for a, b in zip(whole.encoder.parameters(), resumed.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.head.log_beta, resumed.head.log_beta)


def test_pairs_of_rows_train_without_latents():
    g = random_stream(0, "x")
    centre = torch.randn(50, 6, generator=g)
    instance = torch.arange(200) % 50
    source = PairedSource(ArraySource(centre[instance] + 0.1 * torch.randn(200, 6, generator=g), instance=instance))
    encoder, head = Encoder(6, 2, width=16), Similarity()
    history = fit(
        source, encoder, head, "infonce", steps=100, batch_size=128, n_eval=128, eval_every=50, device="cpu"
    ).history
    assert history.loss.iloc[-1] < math.log(64) - 1


# ---- what is refused


def check(head, name, n_instances=20, n_classes=5):
    check_head(head, get_objective(name), world(3, n_classes, n_instances))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check(Head(20, 3), "infonce"), r"head='Head'.*get_objective\('infonce'\)\.make_head\(source, dim\)"),
        (lambda: check(torch.nn.Linear(3, 20), "infonce"), "head='Linear'"),
        (lambda: check(Similarity(), "diet"), r"get_objective\('diet'\)"),
        (lambda: check(Similarity(), "tcl"), r"get_objective\('tcl'\)"),
        (lambda: check(Head(20, 3, bias=True), "gcl"), r"head='Head'.*get_objective\('gcl'\)"),
        (lambda: check(AuxiliaryHead(5, 3), "gcl"), r"Use AuxiliaryHead\(20, dim\)"),
        (lambda: check(Head(5, 3), "tcl"), r"Use Head\(5, dim, bias=True\)"),
        (lambda: check(Head(20, 3, bias=True), "tcl"), "with 20 rows"),
        (lambda: check(SampledHead(5, 3), "diet"), r"Use SampledHead\(20, dim\)"),
        (lambda: check(SampledHead(5, 3), "tcl"), "without biases"),
        (lambda: check(SampledHead(20, 3), "gcl"), "head='SampledHead'"),
        (lambda: check(Similarity(), "infonce", n_instances=1, n_classes=1), "nothing to predict"),
        (lambda: check(AuxiliaryHead(1, 3), "gcl", n_instances=1, n_classes=1), "nothing to predict"),
        (lambda: InfoNCE().loss(small_batch().x, Similarity(), small_batch()), r"PairedSource\(source\)"),
        (lambda: loss_of_first("infonce", 2), "at least two pairs"),
        (lambda: loss_of_first("infonce", 11), "11 samples"),
        (lambda: loss_of_first("gcl", 1), "at least two samples"),
        (lambda: GCL(level="segment"), "one of 'instance', 'class'"),
        (lambda: CrossEntropy("mine", "segment"), "one of 'instance', 'class'"),
        (lambda: get_objective("tlc"), "Did you mean 'tcl'"),
    ],
)
def test_bad_input_is_named(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def loss_of_first(name, n):
    batch, objective = small_batch(pairs=True), get_objective(name)
    batch = Batch(x=batch.x[:n], instance=batch.instance[:n], label=batch.label[:n])
    return objective.loss(batch.x, objective.make_head(world(), 3), batch)


def test_a_batch_without_pairs_is_refused_by_the_trainer():
    with pytest.raises(ValueError, match=r"Wrap the source: PairedSource\(source\)"):
        fit(world(), Encoder(3, 3), Similarity(), "infonce", steps=1, batch_size=64, device="cpu")


def test_an_objective_of_ones_own_needs_three_members_only():
    class Spread:
        name = "spread"

        def n_rows(self, source):
            return 0

        def loss(self, features, head, batch):
            return (features.std(dim=0) - 1).square().sum()

    encoder = Encoder(3, 3, width=16)
    result = fit(world(), encoder, torch.nn.Identity(), Spread(), steps=100, batch_size=64, device="cpu")
    assert result.history.loss.iloc[-1] < 0.01


def test_a_linear_layer_of_ones_own_will_do_for_cross_entropy():
    for name, n in (("diet", 20), ("supervised", 5), ("tcl", 5)):
        check(torch.nn.Linear(3, n), name)
