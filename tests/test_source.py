"""Sources: synthetic worlds and given arrays, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

from cegen import ArraySource, ClusterDGP, Encoder, Head, InvertibleMLP, Source, SyntheticSource, fit
from cegen.core import random_stream


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


def test_a_seed_will_do_for_a_generator():
    source = ArraySource(torch.arange(12.0).reshape(6, 2))
    assert torch.equal(source.sample(3, 5).x, source.sample(3, torch.Generator().manual_seed(5)).x)
    world = SyntheticSource(ClusterDGP(3, 5, 20), InvertibleMLP(3))
    assert torch.equal(world.sample(3, 5).x, world.sample(3, torch.Generator().manual_seed(5)).x)


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
