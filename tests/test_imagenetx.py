"""ImageNet-X: real annotations, made-up pictures in both layouts, and features that survive kills and refuse to be mistaken."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cegen.core import MissingExtra
from cegen.images import imagenetx
from cegen.images.imagenetx import (
    FACTORS,
    class_names,
    extract_features,
    factor_table,
    find_images,
    images_hash,
    load_annotations,
    read_image,
    rows_there,
    weights_hash,
)
from cegen.images.pretrained import RELEASES, Preprocess, make_pretrained

if not all(importlib.util.find_spec(package) for package in ("imagenet_x", "PIL")):
    pytest.skip("the extra imagenetx is not installed", allow_module_level=True)
from imagenetx_files import chosen, write_validation  # noqa: E402

TOP = {
    "pose": 15064, "background": 14751, "pattern": 5972, "color": 6150, "smaller": 1450, "shape": 679, "partial_view": 638,
    "subcategory": 585, "texture": 282, "larger": 150, "darker": 122, "object_blocking": 78, "person_blocking": 60, "style": 43,
    "brighter": 44, "multiple_objects": 40,
}  # fmt: skip
MULTI = {
    "pose": 39974, "background": 35537, "pattern": 15478, "color": 13034, "smaller": 2873, "shape": 1891, "partial_view": 1500,
    "subcategory": 3604, "texture": 879, "larger": 390, "darker": 512, "object_blocking": 217, "person_blocking": 105,
    "style": 586, "brighter": 94, "multiple_objects": 1828,
}  # fmt: skip
LOOK = Preprocess(36, 32)


class Colors(nn.Module):
    "The mean colour: features whose right values are known."

    n_features = 3

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def features(self, x):
        return self.scale * x.mean(dim=(2, 3))


def colors():
    return Colors().eval()


@pytest.fixture(scope="module")
def rows():
    return chosen(200)


@pytest.fixture(scope="module")
def val(rows, tmp_path_factory):
    return write_validation(tmp_path_factory.mktemp("val"), rows)


@pytest.fixture(scope="module")
def paths(rows, val):
    return find_images(val, load_annotations("multi"), partial=True)["path"]


# --- annotations


@pytest.mark.parametrize("which, positives", [("top", TOP), ("multi", MULTI)])
def test_counts_are_the_known_ones(which, positives):
    table = load_annotations(which)
    assert len(table) == 46_110 and table["file_name"].is_unique
    assert list(table.columns) == ["file_name", "class", *FACTORS] and len(FACTORS) == 16
    assert table[list(FACTORS)].sum().to_dict() == positives
    assert table["class"].between(0, 999).all()


def test_prototypes_and_training_pictures():
    everything = load_annotations(prototypes=True)
    assert len(everything) == 48_868
    kept = load_annotations()
    assert set(kept["file_name"]) < set(everything["file_name"])
    train = load_annotations("multi", split="train")
    assert len(train) == 11_233 and train["file_name"].str.startswith("n").all()


def test_the_package_is_read_and_never_imported():
    code = (
        "import sys; from cegen.images.imagenetx import load_annotations as l; l(); print('imagenet_x' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_package_one_is_told_what_to_install(monkeypatch):
    def missing(extra, module):
        raise MissingExtra(f"This needs {module}. Install with: pip install 'cegen[{extra}]'")

    monkeypatch.setattr(imagenetx, "installed_folder", missing)
    with pytest.raises(MissingExtra, match=r"needs imagenet_x.*cegen\[imagenetx\]"):
        load_annotations()


def test_another_version_of_the_package_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(imagenetx, "installed_folder", lambda extra, module: tmp_path)
    with pytest.raises(FileNotFoundError, match="another version"):
        load_annotations()


def test_class_proxy_is_the_published_one(rows):
    table = load_annotations()
    factors = factor_table(table)
    assert list(factors.columns) == ["class", *FACTORS] and set(factors.dtypes.astype(str)) == {"bool"}
    assert table["class"].mean() == pytest.approx(497.687, abs=1e-3)
    assert factors["class"].sum() == 22_991 and (factors["class"] == (table["class"] > 497)).all()
    few = factor_table(rows)
    assert (few["class"] == (rows["class"] > rows["class"].mean())).all(), "of a part, the mean of the part"
    with pytest.raises(ValueError, match="0 rows"):
        factor_table(rows[:0])


def test_classes_are_in_the_order_of_their_identifiers():
    names = class_names()
    assert names["wnid"].is_monotonic_increasing and len(names) == 1000
    assert names["name"][985] == "daisy"


# --- pictures


def test_both_layouts_give_the_same_pictures_in_the_order_of_the_annotations(rows, val, tmp_path):
    flat = find_images(val, load_annotations("multi"), partial=True)
    by_class = find_images(write_validation(tmp_path, rows, by_class=True), load_annotations("multi"), partial=True)
    assert flat["file_name"].tolist() == by_class["file_name"].tolist() == rows["file_name"].tolist()
    assert images_hash(flat["path"]) == images_hash(by_class["path"])
    assert (flat.drop(columns="path") == rows).all(axis=None)
    assert all(path.parent.name.startswith("n") for path in by_class["path"])
    assert (factor_table(flat).sum()[1:] >= 6).all(), "every factor has pictures to be seen in"


def test_complete_folder_needs_no_permission_and_an_incomplete_one_does(rows, val):
    assert len(find_images(val, rows)) == len(rows)
    with pytest.raises(ValueError, match="45,910 are missing, the first is ILSVRC2012_val_.*partial=True"):
        find_images(val, load_annotations("multi"))


def test_what_is_no_such_folder_is_told(rows, val, tmp_path):
    with pytest.raises(ValueError, match="folder that exists"):
        find_images(val / "none", rows)
    with pytest.raises(ValueError, match="200 are missing.*unpacked"):
        find_images(tmp_path, rows, partial=True)


def test_picture_in_another_class_or_twice_is_named(rows, tmp_path):
    write_validation(tmp_path, rows, by_class=True)
    name, number = rows["file_name"][0], rows["class"][0]
    right = tmp_path / class_names()["wnid"][number] / name
    wrong = tmp_path / class_names()["wnid"][(number + 1) % 1000] / name
    wrong.parent.mkdir(exist_ok=True)
    wrong.write_bytes(right.read_bytes())
    with pytest.raises(ValueError, match=f"each picture once; {name}"):
        find_images(tmp_path, rows)
    right.unlink()
    with pytest.raises(ValueError, match=f"{name} lies in {wrong.parent.name} and is of class {number}"):
        find_images(tmp_path, rows)


def test_flat_folder_may_be_called_like_a_class(rows, tmp_path):
    assert len(find_images(write_validation(tmp_path / "n01440764", rows), rows)) == len(rows)


# --- features


@pytest.mark.parametrize("batch_size, threads", [(1, 1), (7, 3), (500, 2)])
def test_each_row_belongs_to_its_picture(paths, tmp_path, batch_size, threads):
    features = extract_features(paths, colors(), LOOK, tmp_path / "f.npy", batch_size=batch_size, threads=threads)
    assert isinstance(features, np.memmap) and features.dtype == np.float32 and features.shape == (200, 3)
    for row in (0, 6, 7, 199):
        expected = LOOK(read_image(paths[row])).mean(dim=(1, 2)).numpy()
        np.testing.assert_allclose(features[row], expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "f.npy"]


def test_pictures_in_memory_do_as_well(paths, tmp_path):
    images = [read_image(path) for path in paths[:9]]
    features = extract_features(images, colors(), LOOK, tmp_path / "memory.npy")
    np.testing.assert_allclose(features, extract_features(paths[:9], colors(), LOOK, tmp_path / "files.npy"), atol=1e-6)
    with pytest.raises(ValueError, match="images"):
        extract_features(images[::-1], colors(), LOOK, tmp_path / "memory.npy")


def test_sidecar_tells_what_the_features_are_of(paths, tmp_path):
    model = make_pretrained("efficientnet_lite0", generator=0)
    extract_features(paths[:4], model, LOOK, tmp_path / "f.npy")
    told = json.loads((tmp_path / "f.json").read_text())
    assert told == {
        "model": "EfficientNetLite0",
        "weights": weights_hash(make_pretrained("efficientnet_lite0", generator=0)),
        "preprocess": repr(LOOK),
        "images": images_hash(paths[:4]),
        "shape": [4, 1280],
    }


@pytest.mark.parametrize("name, width", [("resnet50", 2048), ("vit_b_16", 768)])
def test_untrained_networks_of_the_figure_go_through(paths, tmp_path, name, width):
    model = make_pretrained(name, generator=0)
    features = extract_features(paths[:3], model, RELEASES[name].preprocess, tmp_path / "f.npy", batch_size=2)
    assert features.shape == (3, width) and (features.std(axis=0) > 0).mean() > 0.95
    first = RELEASES[name].preprocess(read_image(paths[0]))[None]
    np.testing.assert_allclose(features[0], model.features(first)[0], rtol=1e-3, atol=1e-3 * np.abs(features).max())


def test_hash_of_weights_sees_values_names_and_not_the_layout_in_memory():
    model = nn.Conv2d(3, 4, 3)
    told = weights_hash(model)
    assert weights_hash(model.to(memory_format=torch.channels_last)) == told
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert weights_hash(model) != told
    assert weights_hash(nn.Sequential(model)) != weights_hash(model)


def test_what_is_there_is_not_computed_again(paths, tmp_path):
    first = extract_features(paths, colors(), LOOK, tmp_path / "f.npy")

    class Never(Colors):
        def features(self, x):
            raise AssertionError("computed again")

    Never.__name__ = "Colors"
    np.testing.assert_array_equal(first, extract_features(paths, Never().eval(), LOOK, tmp_path / "f.npy"))


def test_killed_process_is_continued(val, paths, tmp_path):
    code = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_imagenetx import LOOK, colors, extract_features
from pathlib import Path
def slow(picture):
    time.sleep(0.02)
    return LOOK(picture)
slow.__name__ = repr(LOOK)
extract_features([Path(p) for p in {[str(p) for p in paths]!r}], colors(), slow, {str(tmp_path / "f.npy")!r}, batch_size=8, threads=1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CEGEN_PROGRESS": "0"})
    part, started = tmp_path / "f.npy.part", time.monotonic()
    while not (part.exists() and part.stat().st_size > 128 + 16 * 12) and process.poll() is None:
        assert time.monotonic() - started < 60
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "it was to be killed half-way"
    with part.open("ab") as file:
        file.write(b"torn")  # what a write that was cut off leaves behind
    done, begin = rows_there(part, (200, 3))
    assert part.stat().st_size == begin + done * 12, "the torn row is cut off"
    assert 16 <= done < 200 and not (tmp_path / "f.npy").exists()

    seen = []

    def look(picture):
        seen.append(picture)
        return LOOK(picture)

    look.__name__ = repr(LOOK)
    features = extract_features(paths, colors(), look, tmp_path / "f.npy", batch_size=5)
    assert len(seen) == 200 - done, "only what was missing"
    np.testing.assert_allclose(features, extract_features(paths, colors(), LOOK, tmp_path / "whole.npy"), atol=1e-6)


def test_continuation_with_something_else_is_refused(paths, tmp_path):
    def interrupted(picture):
        raise KeyboardInterrupt

    interrupted.__name__ = repr(LOOK)
    with pytest.raises(KeyboardInterrupt):
        extract_features(paths, colors(), interrupted, tmp_path / "f.npy")
    with pytest.raises(ValueError, match="shape"):
        extract_features(paths[:100], colors(), LOOK, tmp_path / "f.npy")
    assert extract_features(paths, colors(), LOOK, tmp_path / "f.npy").shape == (200, 3)


@pytest.mark.parametrize("what", ["weights", "images", "preprocess", "model"])
def test_sidecar_that_disagrees_is_refused_and_nothing_is_overwritten(paths, tmp_path, what):
    few = list(paths[:6])
    extract_features(few, colors(), LOOK, tmp_path / "f.npy")
    before = (tmp_path / "f.npy").read_bytes(), (tmp_path / "f.json").read_bytes()
    model, images, look = colors(), few, LOOK
    if what == "weights":
        model.scale.fill_(2.0)
    elif what == "images":
        images = few[::-1]
    elif what == "preprocess":
        look = Preprocess(32, 32)
    else:
        model = type("Others", (Colors,), {})().eval()
    with pytest.raises(ValueError, match=f"made of the same; {what} .* there and .* here"):
        extract_features(images, model, look, tmp_path / "f.npy")
    assert before == ((tmp_path / "f.npy").read_bytes(), (tmp_path / "f.json").read_bytes())


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_features_that_nobody_vouches_for_are_refused(paths, tmp_path, content):
    extract_features(paths[:3], colors(), LOOK, tmp_path / "f.npy")
    (tmp_path / "f.json").unlink()
    if content is not None:
        (tmp_path / "f.json").write_text(content)
    with pytest.raises(ValueError, match=r"f\.json"):
        extract_features(paths[:3], colors(), LOOK, tmp_path / "f.npy")


def test_damaged_picture_is_named_and_what_came_before_is_kept(rows, tmp_path):
    found = find_images(write_validation(tmp_path / "val", rows[:20]), rows[:20])
    whole = found["path"][13].read_bytes()
    found["path"][13].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{found['file_name'][13]}.*a whole picture"):
        extract_features(found["path"], colors(), LOOK, tmp_path / "f.npy", batch_size=4)
    assert rows_there(tmp_path / "f.npy.part", (20, 3))[0] == 12
    found["path"][13].write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=found["file_name"][13]):
        read_image(found["path"][13])
    with pytest.raises(ValueError, match="a file that exists"):
        images_hash([tmp_path / "none.JPEG"])


def test_unusable_models_are_refused(paths, tmp_path, unchecked):
    class Wide(Colors):
        def features(self, x):
            return x.flatten(1)

    class Broken(Colors):
        def features(self, x):
            return super().features(x) * float("nan")

    with pytest.raises(ValueError, match="as n_features says"):
        extract_features(paths, Wide().eval(), LOOK, tmp_path / "wide.npy")
    with pytest.raises(ValueError, match="finite"):
        extract_features(paths, Broken().eval(), LOOK, tmp_path / "nan.npy")
    with pytest.raises(ValueError, match="evaluation mode"):
        extract_features(paths, Colors(), LOOK, tmp_path / "train.npy")
    with pytest.raises(ValueError, match="n_features"):
        extract_features(paths, nn.Linear(3, 3).eval(), LOOK, tmp_path / "linear.npy")
    for wrong in ({"out": tmp_path / "f.npz"}, {"batch_size": 0}, {"threads": 0}, {"device": "gpu"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            extract_features(
                **{"images": paths, "model": colors(), "preprocess": LOOK, "out": tmp_path / "f.npy", **wrong}
            )
    assert not (tmp_path / "wide.npy").exists() and not (tmp_path / "f.npy").exists()
