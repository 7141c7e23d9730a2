"""Edited photographs: what an edit changes and what it leaves, independence, seeds, and the photographs themselves."""

import importlib.util
import re

import numpy as np
import pytest
import torch

from cegen.core import installed_folder, random_stream
from cegen.images import edits
from cegen.images.edits import (
    EDITS,
    PHOTOGRAPHS,
    TEXTURES,
    EditedPhotographs,
    Photograph,
    apply_edits,
    edited_photographs,
    random_square,
)
from cegen.images.imagenetx import FACTORS, extract_features
from cegen.images.pretrained import RELEASES, lite0_weights, make_pretrained

if not all(importlib.util.find_spec(package) for package in ("skimage", "PIL")):
    pytest.skip("the extra imagenetx is not installed", allow_module_level=True)

SEEDS = range(6)


def square(photograph=PHOTOGRAPHS[0], seed=0, size=64):
    return random_square(photograph, torch.Generator().manual_seed(seed), size)


@pytest.fixture(scope="module")
def many():
    return edited_photographs(1500, seed=1, size=16)


# --- photographs


@pytest.mark.parametrize("photograph", PHOTOGRAPHS + TEXTURES, ids=lambda p: p.name)
def test_photographs_lie_in_the_packages_with_a_free_licence(photograph):
    assert photograph.path.is_file()
    assert photograph.licence in ("CC0", "public domain", "CC BY 2.0", "no known copyright restrictions")
    assert photograph.source and square(photograph).std() > 0.02


def test_licences_are_those_that_the_packages_tell():
    fetchers = (installed_folder("imagenetx", "skimage") / "data" / "_fetchers.py").read_text(encoding="utf-8")
    told = {"CC0": "CC0", "public domain": "public domain", "no known copyright restrictions": "No known copyright"}
    for photograph in PHOTOGRAPHS + TEXTURES:
        if photograph.module == "skimage":
            file = photograph.file.split("/")[-1]
            text = re.search(r'"""((?:(?!\n(?:def|@)).)*?)_load\("data/' + re.escape(file), fetchers, flags=re.DOTALL)
            assert text and told[photograph.licence] in text[1].rsplit("\ndef ", 1)[-1], photograph.name
    readme = (installed_folder("", "sklearn") / "datasets/images/README.txt").read_text(encoding="utf-8")
    assert readme.count("Released under a creative commons license. [1]") == 2
    assert "licenses/by/2.0" in readme and "danielbuechele" in readme and "photos/vultilion" in readme


def test_missing_photograph_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(edits, "installed_folder", lambda extra, module: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"another version of skimage"):
        _ = PHOTOGRAPHS[0].path


def test_squares_are_parts_of_the_photograph_and_half_are_mirrored(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    ramp = np.broadcast_to(np.linspace(0, 255, 300)[None, :, None], (200, 300, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    monkeypatch.setattr(edits, "installed_folder", lambda extra, module: tmp_path)
    ramps = [square(Photograph("ramp", "", "ramp.png", "CC0", "us"), seed, 32) for seed in range(200)]
    step = torch.stack([ramp[0, 16, 20] - ramp[0, 16, 12] for ramp in ramps])
    assert 70 < int((step > 0).sum()) < 130
    width = (step.abs() / 8 * 32 * 300).numpy()
    assert 139 < width.min() < 150 and 190 < width.max() < 202, "from 70 % of the shorter side to all of it"
    left = torch.stack([ramp[0, 16].min() for ramp in ramps])
    assert float(left.min()) < 0.03 and float(left.max()) > 0.4


# --- edits


def test_fourteen_of_the_sixteen_factors_have_an_edit():
    assert set(FACTORS) - set(EDITS) == {"person_blocking", "subcategory"} and set(EDITS) < set(FACTORS)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda p: p.name)
def test_each_edit_changes_every_photograph_and_keeps_range_and_shape(name, photograph):
    x = square(photograph)
    before = x.clone()
    for seed in SEEDS:
        y = apply_edits(x, [name], seed=seed)
        assert y.shape == x.shape and y.dtype == x.dtype
        assert 0 <= float(y.min()) and float(y.max()) <= 1
        changed = (255 * (y - x).abs()).amax(0) >= 1
        assert float(changed.double().mean()) > 0.03, f"seed {seed}"
        assert torch.equal(y, apply_edits(x, [name], seed=seed))
    assert torch.equal(x, before), "the picture that is given stays"


def test_without_edits_nothing_happens():
    assert torch.equal(apply_edits(square(), []), square())
    plain = edited_photographs(12, seed=5, share=0.0, size=32)
    assert not plain.factors.to_numpy().any()
    edited = edited_photographs(12, seed=5, share=0.18, size=32)
    alone = (~edited.factors.to_numpy().any(axis=1)).nonzero()[0]
    assert len(alone) and torch.equal(plain.pictures[alone], edited.pictures[alone])


def test_light_is_changed_by_a_power_and_one_undoes_the_other():
    x = square()
    for name, low, high in [("brighter", 0.35, 0.6), ("darker", 1.8, 2.8)]:
        for seed in SEEDS:
            y = apply_edits(x, [name], seed=seed)
            inside = (x > 0.1) & (x < 0.9)
            power = y[inside].log() / x[inside].log()
            assert low < float(power.mean()) < high and float(power.std()) < 1e-3


def test_pose_turns_by_right_angles_alone():
    x = square()
    turns = {
        next(k for k in range(4) if torch.equal(apply_edits(x, ["pose"], s), x.rot90(k, (1, 2)))) for s in range(30)
    }
    assert turns == {1, 2, 3}


def test_box_covers_with_one_color_and_leaves_the_rest():
    x = square(size=100)
    for seed in SEEDS:
        y = apply_edits(x, ["object_blocking"], seed=seed)
        changed = (y != x).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        height, width = (int(side.max() - side.min()) + 1 for side in (rows, columns))
        assert 33 <= height <= 50 and 33 <= width <= 50
        inside = y[:, int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        assert len(inside.flatten(1).unique(dim=1)[0]) == 1


def test_partial_view_keeps_a_part_as_it_was():
    x, sides = square(size=60), set()
    for seed in range(20):
        y = apply_edits(x, ["partial_view"], seed=seed)
        found = []
        for turns in range(4):
            a, b = x.rot90(turns, (1, 2)), y.rot90(turns, (1, 2))
            found += [(turns, away) for away in range(24, 37) if torch.equal(b[:, away:], a[:, : 60 - away])]
        assert len(found) == 1
        turns, away = found[0]
        rest = y.rot90(turns, (1, 2))[:, :away]
        torch.testing.assert_close(rest, x.mean((1, 2), keepdim=True).expand_as(rest))
        sides.add(turns)
    assert sides == {0, 1, 2, 3}


def test_background_and_pattern_leave_a_part_as_it_was():
    x = square(size=100)
    for seed in SEEDS:
        y = apply_edits(x, ["background"], seed=seed)
        assert torch.equal(y[:, 30:70, 30:70], x[:, 30:70, 30:70])
        outside = y[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert torch.equal(outside[0], outside[1]) and torch.equal(outside[0], outside[2]), "textures are gray"
        striped = apply_edits(x, ["pattern"], seed=seed)
        same = (striped == x).all(0)
        assert 0.4 < float(same.double().mean()) < 0.6
        color = 2 * striped - x
        assert float(color[:, ~same].std(dim=1).max()) < 1e-5, "half of one color"


def test_copies_zoom_and_size_are_what_they_say():
    x = square(size=64)
    tiled = apply_edits(x, ["multiple_objects"])
    for part in (tiled[:, :32, 32:], tiled[:, 32:, :32], tiled[:, 32:, 32:]):
        assert torch.equal(part, tiled[:, :32, :32])
    halved = torch.nn.functional.avg_pool2d(x, 2)
    assert float((tiled[:, :32, :32] - halved).abs().mean()) < 0.02
    zoomed = torch.nn.functional.avg_pool2d(apply_edits(x, ["larger"]), 2)
    assert float((zoomed - x[:, 16:48, 16:48]).abs().mean()) < 0.02
    y = apply_edits(x, ["smaller"], seed=2)
    gaps = [(float((y[:, i : i + 32, j : j + 32] - halved).abs().mean()), i, j) for i in range(33) for j in range(33)]
    assert min(gaps)[0] < 0.02


def test_shape_stretches_one_axis():
    x = square(size=64)
    seen = set()
    for seed in range(12):
        y = apply_edits(x, ["shape"], seed=seed)
        low = torch.nn.functional.avg_pool2d(y, (2, 1)), torch.nn.functional.avg_pool2d(y, (1, 2))
        gap = [float((low[0] - x[:, 16:48]).abs().mean()), float((low[1] - x[:, :, 16:48]).abs().mean())]
        assert min(gap) < 0.02 < max(gap)
        seen.add(int(np.argmin(gap)))
    assert seen == {0, 1}


def test_style_has_four_tones_and_color_keeps_the_brightness():
    x = square()
    assert len(apply_edits(x, ["style"]).flatten(1).unique(dim=1)[0]) <= 4
    pale = 0.5 + 0.1 * (x - 0.5)  # so that nothing is cut off
    luma = torch.tensor([0.299, 0.587, 0.114])
    for seed in SEEDS:
        y = apply_edits(pale, ["color"], seed=seed)
        torch.testing.assert_close(
            torch.einsum("c,chw->hw", luma, y), torch.einsum("c,chw->hw", luma, pale), atol=0.01, rtol=0
        )
        assert float((y - pale).abs().amax(0).mean()) > 0.02


def test_texture_is_the_mean_with_something_gray():
    x = square()
    gray = 2 * apply_edits(x, ["texture"], seed=3) - x
    assert (
        float((gray[0] - gray[1]).abs().max()) < 1e-5
        and 0 <= float(gray.min()) + 1e-5
        and float(gray.max()) <= 1 + 1e-5
    )


def test_order_of_the_names_does_not_matter_and_draws_are_separate():
    x = square()
    both = apply_edits(x, ["darker", "object_blocking"], seed=4)
    assert torch.equal(both, apply_edits(x, ["object_blocking", "darker"], seed=4))
    step = EDITS["darker"](apply_edits(x, ["object_blocking"], seed=4), random_stream(4, "darker"))
    assert torch.equal(both, step)


def test_wrong_arguments_are_refused(unchecked):
    for picture in (torch.zeros(1, 16, 16), torch.zeros(3, 16, 17), torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match="shape"):
            apply_edits(picture, ["darker"])
    with pytest.raises(ValueError, match="one of 'multiple_objects'"):
        apply_edits(square(), ["subcategory"])
    for wrong in ({"n": 0}, {"share": -0.1}, {"size": 4}, {"seed": -1}, {"photographs": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            edited_photographs(**{"n": 3, "size": 16, **wrong})


# --- sets


def test_edits_are_drawn_independently_at_the_share(many):
    has = many.factors.to_numpy().astype(float)
    error = np.sqrt(0.18 * 0.82 / len(has))
    assert np.abs(has.mean(axis=0) - 0.18).max() < 4 * error
    correlation = np.corrcoef(has.T)[np.triu_indices(14, 1)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(has))
    assert np.std(correlation) == pytest.approx(1 / np.sqrt(len(has)), rel=0.3)
    assert has.sum(axis=1).var() == pytest.approx(14 * 0.18 * 0.82, rel=0.2)


def test_photographs_are_equally_frequent_and_unrelated_to_edits(many):
    names, counts = np.unique(many.photograph, return_counts=True)
    assert set(names) == {photograph.name for photograph in PHOTOGRAPHS} and set(counts) == {150}
    rates = many.factors.groupby(many.photograph).mean().to_numpy()
    assert np.abs(rates - 0.18).max() < 5 * np.sqrt(0.18 * 0.82 / 150)


def test_seed_and_number_decide(many):
    few = edited_photographs(20, seed=1, size=16)
    assert torch.equal(few.pictures, many.pictures[:20]) and few.factors.equals(many.factors[:20])
    other = edited_photographs(20, seed=2, size=16)
    assert not other.factors.equals(few.factors) and not torch.equal(other.pictures, few.pictures)
    torch.manual_seed(7)
    assert torch.equal(edited_photographs(20, seed=1, size=16).pictures, few.pictures)


def test_table_says_what_was_done():
    edited = edited_photographs(60, seed=3, share=0.3, size=32)
    plain = edited_photographs(60, seed=3, share=0.0, size=32)
    assert isinstance(edited, EditedPhotographs) and len(edited) == 60
    same = (edited.pictures == plain.pictures).flatten(1).all(1).numpy()
    assert (same == ~edited.factors.to_numpy().any(axis=1)).all()
    blocked = edited.factors["object_blocking"].to_numpy()
    assert 5 < blocked.sum() < 40


def test_network_takes_them(tmp_path):
    edited = edited_photographs(6, seed=0)
    release = RELEASES["efficientnet_lite0"]
    model = make_pretrained("efficientnet_lite0", lite0_weights())
    features = extract_features(edited.images(), model, release.preprocess, tmp_path / "edited.npy")
    assert features.shape == (6, 1280) and float(features.std(axis=0).mean()) > 0.05
    pixels = np.asarray(edited.images()[0])
    assert (pixels == edited.pictures[0].permute(1, 2, 0).numpy()).all()
