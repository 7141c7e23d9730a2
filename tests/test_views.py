"""DIET on any pictures: numbers for items, folders, views and the source that draws them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cegen import Head, fit
from cegen.core import Source
from cegen.images.networks import make_network
from cegen.images.views import Crop, DatasetSource, Flip, ImageFolder, IndexedDataset, Jitter, Noise, Shift, augmented
from cegen.source import RepeatableSource

Image = pytest.importorskip("PIL.Image")


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


def test_hidden_files_are_left_out_and_pictures_beside_sub_folders_have_a_class_of_their_own(tmp_path):
    for name in ("top.png", "._top.png", "a/one.PNG", ".thumbnails/one.png"):
        save(tmp_path / name, np.zeros((9, 9, 3), np.uint8))
    folder = ImageFolder(tmp_path, size=4)
    assert [str(file) for file in folder.files] == ["a/one.PNG", "top.png"]
    assert folder.classes == [".", "a"] and folder.target.tolist() == [1, 0]


def test_camera_that_was_turned_is_turned_back(tmp_path):
    picture = np.zeros((10, 10), np.uint8)
    picture[:5] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    image, _ = ImageFolder(tmp_path, size=10, channels=1)[0]
    assert torch.equal(image[0], torch.from_numpy(picture[::-1].copy()))


def test_sixteen_bits_are_refused_and_not_made_white(tmp_path):
    save(tmp_path / "deep.png", np.full((9, 9), 3000, np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png.*8 bits"):
        ImageFolder(tmp_path, size=4, channels=1)


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


def test_contrast_keeps_the_mean_of_each_picture_and_brightness_scales_it():
    x = 0.4 + 0.2 * pictures(50)  # far from both ends, so that nothing is cut off
    means = [v.mean((1, 2, 3)) for v in (x, Jitter(0.0, 0.5)(x, 0))]
    assert torch.allclose(*means, atol=1e-6)
    ratio = Jitter(0.5, 0.0)(x, 0) / x
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), atol=1e-5), "one factor for each picture"


def test_crop_shows_a_part_of_the_promised_size_that_lies_inside():
    ramp = torch.arange(32.0).div(31).expand(2000, 1, 32, 32)  # the value of a pixel is its column
    view = Crop(0.5)(ramp, 0)[:, 0, 0] * 31
    share = (view[:, 17] - view[:, 14]) / 3  # source pixels between neighbours of the view
    assert 0.5 - 1e-3 <= float(share.min()) < 0.51 and 0.99 < float(share.max()) <= 1 + 1e-3
    assert abs(float(share.mean()) - 0.75) < 0.015 and abs(float(view.mean()) - 15.5) < 0.2


def test_reflection_mirrors_at_the_edge():
    row = torch.arange(6.0).div(10).expand(200, 1, 6, 6)
    seen = {tuple((10 * v[0, 0]).round().int().tolist()) for v in Shift(2, "reflect")(row, 0)}
    assert seen == {(2, 1, 0, 1, 2, 3), (1, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 4), (2, 3, 4, 5, 4, 3)}


def test_bad_strengths_and_pictures_are_told(unchecked):
    for make in (
        lambda: Shift(-1),
        lambda: Crop(1.5),
        lambda: Flip(2),
        lambda: Jitter(-0.1),
        lambda: Noise(float("nan")),
    ):
        with pytest.raises(ValueError, match="is not valid"):
            make()
    with pytest.raises(ValueError, match="less than the side"):
        Shift(12)(pictures(), 0)
    with pytest.raises(ValueError, match="Divide bytes by 255"):
        Flip()((255 * pictures()).byte(), 0)


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


def test_pictures_of_pil_and_dictionaries_make_a_source_and_any_entry_the_label():
    bytes_ = (255 * pictures(4)).byte()
    items = [{"image": Image.fromarray(b.permute(1, 2, 0).numpy()), "kind": k // 2} for k, b in enumerate(bytes_)]
    source = DatasetSource(items, label="kind")
    assert torch.equal(source.x, bytes_) and source.label.tolist() == [0, 0, 1, 1]
    assert torch.equal(source.again(torch.tensor([2]), 0).x[0], bytes_[2] / 255), (
        "without augmentation the same picture"
    )
    assert DatasetSource(items).n_classes == 1
    with pytest.raises(ValueError, match="Did you mean 'kind'"):
        DatasetSource(items, label="kinds")
    with pytest.raises(ValueError, match="gray or RGB"):
        DatasetSource([item["image"].convert("P") for item in items])


def test_pictures_stay_out_of_checkpoints_and_addresses_out_of_the_identity():
    def same(images, generator):
        return images

    source = DatasetSource(list(pictures()), [same, Shift(1)])
    assert "x" not in source.state_dict()
    assert "[same, Shift(pixels=1, padding='edge')]" in repr(source)


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
        sizes = dict(steps=steps, batch_size=32, n_eval=64, warmup=5)
        result = fit(source, encoder, Head(8, 8, "C4"), "diet", lr=3e-3, device="cpu", **sizes)
        with torch.no_grad():
            return float((result.head(result.encoder(batch.x)).argmax(1) == batch.instance).double().mean())

    assert accuracy(1) < 0.6 < 0.98 < accuracy(50)
