"""Sources: synthetic worlds and given arrays, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

from cegen import ArraySource, Batch, ClusterDGP, Encoder, Head, InvertibleMLP, Source, SyntheticSource, fit
from cegen.core import random_stream
from cegen.source import PairedSource, RepeatableSource


def test_synthetic_batches_agree_with_their_latents():
    source = SyntheticSource(ClusterDGP(4, 6, 60), InvertibleMLP(4, observed_dim=7))
    batch = source.sample(200, random_stream(0, "data"))
    assert isinstance(source, Source)
    assert torch.equal(source.mixing(batch.z), batch.x)
    assert torch.equal(source.dgp.instance_class[batch.instance], batch.label)
    assert not batch.x.requires_grad
    assert len(batch) == 200


def test_state_of_a_world_can_be_stored_and_put_back():
    a, b = (SyntheticSource(ClusterDGP(3, 5, 20, seed=s), InvertibleMLP(3, seed=s)) for s in (0, 1))
    b.load_state_dict(a.state_dict())
    x, y = (s.sample(10, random_stream(0, "data")).x for s in (a, b))
    assert torch.equal(x, y)


def test_arrays_are_drawn_uniformly_with_what_belongs_to_each_row():
    x = torch.arange(12.0).reshape(6, 2)
    source = ArraySource(x, label=torch.tensor([0, 0, 1, 1, 2, 2]), z=10 * x)
    batch = source.sample(6000, random_stream(0, "data"))
    assert torch.equal(x[batch.instance], batch.x)
    assert torch.equal(10 * batch.x, batch.z)
    assert torch.equal(batch.instance // 2, batch.label)
    assert (torch.bincount(batch.instance) - 1000).abs().max() < 150


def test_numpy_pandas_and_booleans_are_welcome(unchecked):
    x = np.arange(12.0).reshape(6, 2)
    a, b = ArraySource(x, label=x[:, 0] > 5), ArraySource(pd.DataFrame(x))
    assert a.x.dtype == b.x.dtype == torch.float32
    assert a.label.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.uint32, np.uint64, ">i4"])
def test_labels_may_be_integers_of_any_kind(unchecked, kind):
    source = ArraySource(np.arange(8, dtype=">f4").reshape(4, 2)[::-1], label=np.array([0, 1, 1, 0], dtype=kind))
    assert source.label.tolist() == [0, 1, 1, 0]
    assert source.x.tolist() == [[6, 7], [4, 5], [2, 3], [0, 1]]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_instances_may_be_integers_of_any_kind(unchecked, kind):
    shown = torch.tensor([1, 0, 1])
    for source in (
        ArraySource(torch.randn(6, 2), instance=torch.tensor([0, 0, 1, 1, 2, 2])),
        SyntheticSource(ClusterDGP(3, 3, 3), InvertibleMLP(3)),
    ):
        assert source.again(shown.to(kind), 0).instance.tolist() == [1, 0, 1]
        with pytest.raises(ValueError, match="a vector of integers"):
            source.again(shown.bool(), 0)


def test_a_table_is_not_written_into_checkpoints_and_takes_no_part_in_gradients(unchecked):
    x = torch.randn(6, 2, requires_grad=True)
    source = ArraySource(x, label=[0, 1, 0, 1, 0, 1])
    assert set(source.state_dict()) == {"label", "instance"}
    assert not source.sample(4, 0).x.requires_grad


def test_a_seed_will_do_for_a_generator():
    source = ArraySource(torch.arange(12.0).reshape(6, 2))
    assert torch.equal(source.sample(3, 5).x, source.sample(3, torch.Generator().manual_seed(5)).x)
    world = SyntheticSource(ClusterDGP(3, 5, 20), InvertibleMLP(3))
    assert torch.equal(world.sample(3, 5).x, world.sample(3, torch.Generator().manual_seed(5)).x)


def test_a_second_view_keeps_the_labels_and_draws_a_fresh_latent_of_the_same_law():
    source = SyntheticSource(ClusterDGP(4, 6, 60), InvertibleMLP(4, observed_dim=7))
    instance = torch.full((20_000,), 13)
    batch = source.again(instance, random_stream(0, "views"))
    assert isinstance(source, RepeatableSource)
    assert torch.equal(batch.instance, instance)
    assert set(batch.label.tolist()) == {int(source.dgp.instance_class[13])}
    assert torch.equal(source.mixing(batch.z), batch.x)
    assert not batch.x.requires_grad
    assert torch.unique(batch.z, dim=0).shape == batch.z.shape
    expected = source.dgp.distribution().mean[batch.label[0]]
    torch.testing.assert_close(batch.z.mean(0), expected, atol=0.01, rtol=0)  # about five standard errors


def test_a_second_view_of_a_swapped_label_has_its_class_from_the_posterior():
    weights = torch.tensor([4.0, 2.0, 1.0, 1.0])
    dgp = ClusterDGP(3, 4, 40, kappa=1e4, class_weights=weights, label_noise=0.4, noisy_classes=3, seed=1)
    source = SyntheticSource(dgp, InvertibleMLP(3))
    shown_class, n = 1, 20_000
    batch = source.again(torch.full((n,), shown_class), random_stream(0, "views"))
    assert set(batch.label.tolist()) == {shown_class}
    true = (batch.z @ dgp.class_vectors.T).argmax(1)  # κ is so large that the latent tells the class
    expected = torch.tensor([4 * 0.2, 2 * 0.6, 1 * 0.2, 0])
    share = torch.bincount(true, minlength=4) / n
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.015, rtol=0)
    first = source.sample(5 * n, random_stream(0, "data"))
    seen = (first.z[first.label == shown_class] @ dgp.class_vectors.T).argmax(1)
    torch.testing.assert_close(share, torch.bincount(seen, minlength=4) / len(seen), atol=0.02, rtol=0)


def test_a_second_view_of_an_array_is_any_row_of_the_instance():
    instance = torch.tensor([2, 0, 1, 0, 2, 0, 3])
    x = torch.arange(14.0).reshape(7, 2)
    source = ArraySource(x, instance=instance, label=torch.arange(7) % 2, z=10 * x)
    assert not {"instance_size", "first_row", "by_instance"} & set(source.state_dict())
    batch = source.again(torch.tensor([0, 1, 2, 3]).repeat(6000), random_stream(0, "views"))
    row = (batch.x[:, 0] / 2).long()
    assert torch.equal(instance[row], batch.instance)
    assert torch.equal(row % 2, batch.label)
    assert torch.equal(10 * batch.x, batch.z)
    assert (torch.bincount(row) - torch.tensor([3000, 2000, 6000, 2000, 3000, 2000, 6000])).abs().max() < 200


def test_pairs_show_each_instance_twice():
    source = PairedSource(SyntheticSource(ClusterDGP(4, 6, 60), InvertibleMLP(4, observed_dim=7)))
    batch = source.sample(4000, random_stream(0, "data"))
    assert isinstance(source, Source)
    assert (source.n_instances, source.n_classes) == (60, 6)
    assert batch.x.shape == (4000, 7)
    assert torch.equal(batch.instance[:2000], batch.instance[2000:])
    assert torch.equal(batch.label[:2000], batch.label[2000:])
    first, second = batch.z.chunk(2)
    assert (first - second).norm(dim=1).min() > 1e-4
    # Given the class the views are independent: what is left without its mean does not correlate.
    mean = source.source.dgp.distribution().mean[batch.label[:2000]]
    covariance = ((first - mean) * (second - mean)).sum(1)
    assert covariance.mean().abs() < 4 * covariance.std() / 2000**0.5
    assert (torch.bincount(batch.instance[:2000], minlength=60) > 0).all()


def test_pairs_are_fixed_by_the_seed():
    source = PairedSource(ArraySource(torch.arange(24.0).reshape(12, 2), instance=torch.arange(12) // 3))
    assert torch.equal(source.sample(10, 5).x, source.sample(10, 5).x)
    assert not torch.equal(source.sample(10, 5).x, source.sample(10, 6).x)


def test_pairs_of_a_source_of_ones_own_that_is_no_module():
    class Mine:
        n_instances, n_classes, moved_to = 4, 1, "cpu"

        @property
        def device(self):
            return torch.device("cpu")

        def to(self, device):
            self.moved_to = device
            return self

        def sample(self, n, generator):
            return self.again(torch.randint(4, (n,), generator=generator), generator)

        def again(self, instance, generator):
            x = torch.randn(len(instance), 2, generator=generator)
            return Batch(x=x, instance=instance, label=torch.zeros_like(instance))

    pairs = PairedSource(Mine())
    assert pairs.to("cpu") is pairs
    assert pairs.source.moved_to == torch.device("cpu")
    batch = pairs.sample(6, random_stream(0, "data"))
    assert batch.z is None
    assert torch.equal(batch.instance[:3], batch.instance[3:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda source: PairedSource(torch.nn.Linear(2, 2)), r"a method again\(instance, generator\)"),
        (lambda source: PairedSource(source).sample(5, 0), "n=5 is not valid: it must be even"),
        (lambda source: PairedSource(source).sample(0, 0), "n=0"),
        (lambda source: source.again(torch.tensor([0, 7]), 0), r"instance=\[7\].*within 0 … 3"),
        (lambda source: source.again(torch.tensor([-1]), 0), r"instance=\[-1\]"),
        (lambda source: source.again(torch.tensor([0.5]), 0), "a vector of integers"),
        (lambda source: source.again([0, 1], 0), "Take the instance labels of a batch"),
    ],
)
@pytest.mark.parametrize("world", [True, False])
def test_what_cannot_be_shown_again_is_named(unchecked, make, message, world):
    source = SyntheticSource(ClusterDGP(3, 2, 4), InvertibleMLP(3)) if world else ArraySource(torch.ones(4, 2))
    with pytest.raises(ValueError, match=message):
        make(source)


def test_images_keep_their_shape():
    source = ArraySource(torch.rand(5, 3, 8, 8, generator=random_stream(0, "x")))
    assert source.sample(2, random_stream(0, "data")).x.shape == (2, 3, 8, 8)


def test_supervised_training_on_a_table_without_latents():
    g = random_stream(0, "x")
    label = torch.arange(300) % 3
    x = torch.randn(300, 4, generator=g) + 4 * torch.eye(3, 4)[label]
    source = ArraySource(x, label=label)
    result = fit(source, Encoder(4, 3, width=16), Head(3, 3), "supervised", steps=200, batch_size=64, device="cpu")
    accuracy = (result.head(result.encoder(x)).argmax(1) == label).float().mean()
    assert accuracy > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(1, 3)}, "at least two rows"),
        ({"x": [["a"], ["b"]]}, "an array of numbers"),
        ({"x": torch.ones(4, 2), "label": ["cat", "dog", "cat", "dog"]}, "Encode text"),
        ({"x": torch.ones(4, 2), "label": torch.tensor(1)}, "4 rows long"),
        ({"x": torch.ones(4)}, "one row an observation|One row an observation"),
        ({"x": torch.ones(4, 2).long()}, r"x\.float\(\)"),
        ({"x": torch.full((4, 2), float("nan"))}, r"index \(0, 0\)"),
        ({"x": torch.ones(4, 2), "label": torch.zeros(3).long()}, "4 rows long"),
        ({"x": torch.ones(4, 2), "label": torch.tensor([0, 1, 3, 3])}, "renumber"),
        ({"x": torch.ones(4, 2), "label": torch.tensor([-1, 0, 1, 1])}, "one integer ≥ 0"),
        ({"x": torch.ones(4, 2), "label": [0, 1, 1, 10**13]}, "without 2.*onto 0 … 2"),
        ({"x": torch.ones(4, 2), "instance": torch.ones(4)}, "instance="),
        ({"x": torch.ones(4, 2), "z": torch.full((4, 2), float("inf"))}, "z="),
    ],
)
def test_bad_arrays_are_named(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(**arguments)


def test_process_and_generator_must_have_one_dimension(unchecked):
    with pytest.raises(ValueError, match=r"InvertibleMLP\(dim=3\)"):
        SyntheticSource(ClusterDGP(3), InvertibleMLP(5))
