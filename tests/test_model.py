"""Encoders, the head's four cases, and the objectives on them."""

import math

import pytest
import torch

from cegen import ClusterDGP, Encoder, Head, InvertibleMLP, SyntheticSource
from cegen.core import Batch, random_stream
from cegen.model import AuxiliaryHead, Similarity
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
        (lambda: Head(0, 3), "n_rows=0"),
        (lambda: Head(3, 3, "C9"), "one of 'C1', 'C2', 'C3', 'C4'"),
        (lambda: Head(3, 3, beta=-1.0), r"beta=-1\.0"),
        (lambda: Head(3, 3)(torch.ones(8, 4)), "the same dim"),
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
