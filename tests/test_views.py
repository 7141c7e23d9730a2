"""DIET on any pictures: numbers for items, folders, views and the source that draws them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from cegen import Head, fit
from cegen.core import Source
from cegen.images.networks import make_network
from cegen.images.views import Crop, DatasetSource, Flip, ImageFolder, IndexedDataset, Jitter, Noise, Shift, augmented
from cegen.source import RepeatableSource

pytest.importorskip("PIL")


def pictures(n=8, channels=3, size=12, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# --- numbers


@pytest.mark.parametrize("as_tuple", [False, True])
def test_number_goes_with_its_picture_through_a_shuffling_loader(as_tuple):
    x = pictures(20)
    dataset = IndexedDataset(TensorDataset(x, torch.arange(20) * 3), as_tuple=as_tuple)
    seen = []
    for batch in DataLoader(dataset, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(0)):
        image, index = batch if as_tuple else (batch["image"], batch["index"])
        assert torch.equal(image, x[index])
        assert as_tuple or torch.equal(batch["target"], 3 * index)
        seen += index.tolist()
    assert sorted(seen) == list(range(20)) != seen


def test_items_of_every_form_keep_what_they_had():
    x = pictures(2)
    assert set(IndexedDataset(list(x))[1]) == {"image", "index"}
    assert IndexedDataset([(x[0], 7, "a")])[0]["target"] == (7, "a")
    assert IndexedDataset([{"image": x[0], "hue": 0.3}])[0]["hue"] == 0.3
    assert IndexedDataset(list(x))[-1]["index"] == 1
    with pytest.raises(ValueError, match="index 5"):
        IndexedDataset([{"image": x[0], "index": 5}])[0]
    with pytest.raises(ValueError, match="map-style"):
        IndexedDataset(iter(x))
    with pytest.raises(IndexError):
        IndexedDataset(list(x))[2]


# --- folders


def test_folder_is_read_in_the_order_of_names_with_sub_folders_for_classes(tmp_path):
    shades = {"b/2.png": 40, "b/1.png": 80, "a/9.jpg": 120}
    for name, shade in shades.items():
        save(tmp_path / name, np.full((30, 20, 3), shade, np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    folder = ImageFolder(tmp_path, size=8)
    assert [str(file) for file in folder.files] == ["a/9.jpg", "b/1.png", "b/2.png"]
    assert folder.classes == ["a", "b"] and folder.target.tolist() == [0, 1, 1]
    assert folder.images.dtype == torch.uint8 and folder.images.shape == (3, 3, 8, 8)
    assert [int(image.float().mean().round()) for image, _ in (folder[k] for k in range(3))] == [120, 80, 40]
    assert ImageFolder(tmp_path, size=8, channels=1).images.shape == (3, 1, 8, 8)


def test_middle_square_of_a_wide_picture_is_taken(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    save(tmp_path / "wide.png", wide)
    assert int(ImageFolder(tmp_path, size=10, channels=1).images.min()) == 255


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="folder that exists"):
        ImageFolder(tmp_path / "none", size=8)
    with pytest.raises(ValueError, match="with pictures in it"):
        ImageFolder(tmp_path, size=8)
    save(tmp_path / "good.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"broken\.png"):
        ImageFolder(tmp_path, size=8)
    assert (tmp_path / "broken.png").exists(), "nothing of the user's is touched"


# --- views

ALL = [Shift(2), Shift(2, "reflect"), Crop(0.6), Flip(), Jitter(0.5, 0.5), Noise(0.1)]


@pytest.mark.parametrize("augment", ALL, ids=repr)
def test_views_keep_shape_and_range_and_are_drawn_for_each_picture(augment):
    same = pictures(1).expand(64, -1, -1, -1).contiguous()
    view = augment(same, torch.Generator().manual_seed(0))
    assert view.shape == same.shape and 0 <= float(view.min()) and float(view.max()) <= 1
    assert torch.equal(view, augment(same, 0)), "a seed is a generator at its start"
    assert not torch.equal(view, augment(same, 1))
    assert len({tuple(v.flatten().tolist()) for v in view}) > 1, "each picture has a draw of its own"
    assert torch.equal(same, pictures(1).expand(64, -1, -1, -1)), "the pictures themselves stay"


@pytest.mark.parametrize("augment", [Shift(0), Crop(1.0), Flip(0.0), Jitter(0.0, 0.0), Noise(0.0)], ids=repr)
def test_nothing_happens_at_strength_zero(augment):
    assert torch.allclose(augment(pictures(), 0), pictures(), atol=1e-5)


def test_shifts_are_uniform_and_move_what_they_say():
    point = torch.zeros(5000, 1, 9, 9)
    point[:, :, 4, 4] = 1
    place = Shift(2)(point, 0).flatten(1).argmax(1)
    row, column = place // 9 - 4, place % 9 - 4
    counts = torch.bincount((row + 2) * 5 + column + 2, minlength=25)
    assert counts.min() > 130 and counts.max() < 270, "200 expected of each of the 25 places"


def test_flip_mirrors_half_and_noise_has_its_deviation():
    x = pictures(4000, 1, 4)
    flipped = (Flip()(x, 0) == x.flip(3)).flatten(1).all(1)
    assert abs(float(flipped.double().mean()) - 0.5) < 0.03
    grey = torch.full((200, 1, 20, 20), 0.5)
    assert abs(float((Noise(0.1)(grey, 0) - grey).std()) - 0.1) < 0.002
    brighter = Jitter(0.4, 0.0)(grey, 0).mean((1, 2, 3))
    assert 0.3 - 1e-6 <= float(brighter.min()) < 0.32 and 0.68 < float(brighter.max()) <= 0.7 + 1e-6


def test_augmentations_are_applied_one_after_the_other():
    x, g = pictures(), torch.Generator().manual_seed(3)
    steps = [Shift(1), Noise(0.1)]
    expected = steps[1](steps[0](x, g), g)
    assert torch.equal(augmented(x, steps, torch.Generator().manual_seed(3)), expected)


# --- the source


def test_source_draws_uniformly_and_shows_again():
    bytes_ = (255 * pictures(10)).byte()
    source = DatasetSource(TensorDataset(bytes_, torch.arange(10) % 2), Noise(0.05))
    assert isinstance(source, Source) and isinstance(source, RepeatableSource)
    batch = source.sample(20_000, 0)
    counts = torch.bincount(batch.instance, minlength=10)
    assert (counts - 2000).abs().max() < 6 * 2000**0.5
    assert torch.equal(batch.label, batch.instance % 2) and source.n_classes == 2 and source.n_instances == 10
    assert torch.equal(source.sample(50, 7).x, source.sample(50, 7).x)
    again = source.again(torch.tensor([3, 3]), 0)
    assert not torch.equal(again.x[0], again.x[1])
    assert float((again.x - bytes_[3] / 255).abs().mean()) < 0.06
    assert source.x.dtype == torch.uint8, "kept as they are"


def test_source_refuses_what_is_no_set_of_pictures():
    with pytest.raises(ValueError, match="at least two"):
        DatasetSource(list(pictures(1)))
    with pytest.raises(ValueError, match="picture 1"):
        DatasetSource([torch.rand(3, 8, 8), torch.rand(3, 9, 8)])
    with pytest.raises(ValueError, match="normalisation"):
        DatasetSource([torch.rand(3, 8, 8) * 5, torch.rand(3, 8, 8)])
    with pytest.raises(ValueError, match="augment"):
        DatasetSource(list(pictures()), [Flip])


def test_diet_learns_to_tell_pictures_apart():
    source = DatasetSource(list(pictures(8, size=16)), [Shift(1), Noise(0.02)])
    batch = source.sample(200, 5)

    def accuracy(steps):
        encoder = make_network("small_cnn", (3, 16, 16), 8, 0)
        result = fit(
            source, encoder, Head(8, 8, "C4"), "diet", steps=steps, batch_size=64, lr=3e-3, seed=0, device="cpu"
        )
        with torch.no_grad():
            return float((result.head(result.encoder(batch.x)).argmax(1) == batch.instance).double().mean())

    assert accuracy(1) < 0.6 < 0.98 < accuracy(60)
