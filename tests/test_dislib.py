"""The published image sets, read from small files in their formats, and fetched from a server on this machine."""

import errno
import gzip
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dislib_files as fake
import h5py
import numpy as np
import pytest
import torch

from cegen.core import MissingExtra
from cegen.images import dislib
from cegen.images.dislib import RemoteFile, cache_folder, fetch, fetch_file, find, load, published_labels, verify
from cegen.images.render import dsprites_space, shapes3d_space

NAMES = list(fake.WRITERS)
NORB_FILES = [file.name for file in dislib.SETS["smallnorb"].files]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "A cache of each test's own, and no trees of other tools."
    for variable in ("CEGEN_OFFLINE", "XDG_CACHE_HOME", "DISENTANGLEMENT_LIB_DATA", "DISENT_DATA_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CEGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache" / "dislib"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    "Gives the folder with a set's files, which are written once and must not be changed."
    root, written = tmp_path_factory.mktemp("originals"), {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = fake.write(name, root / name)
        return written[name]

    return folder


@pytest.fixture
def copied(originals, tmp_path):
    "Gives a copy of a set's files that may be changed."
    return lambda name: Path(shutil.copytree(originals(name), tmp_path / "copy" / name))


def read(name: str, folder: Path | None, **options):
    return load(name, folder, **({"sizes": fake.SIZES[name]} if name == "mpi3d_toy" else {}), **options)


def whole(source):
    return source.images(torch.arange(len(source)))


# ---- what is read


@pytest.mark.parametrize("name", NAMES)
def test_picture_of_a_row_is_the_render_of_its_factors(name, originals):
    source = read(name, originals(name))
    assert source.space.sizes == fake.SIZES[name] and len(source) == len(source.space)
    some = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:200]
    pictures = source.images(some)
    assert pictures.dtype == torch.uint8 and pictures.is_contiguous()
    assert len(pictures.flatten(1).unique(dim=0)) > 0.9 * len(pictures), (
        "pictures that all look alike would show no slip"
    )
    assert torch.equal(pictures, fake.expected(name, source.values(some).double()))


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_levels_belong_together(name, originals):
    source = read(name, originals(name))
    every = torch.arange(len(source))
    levels = source.levels(every)
    assert torch.equal(source.space.row(levels).sort().values, every), "each combination of levels stands there once"
    rows = fake.norb_rows() if name == "smallnorb" else fake.grid(name)
    assert torch.allclose(source.values(every).double(), rows, atol=1e-6)
    assert (source.all_levels is None) == (name != "smallnorb")
    item = source[len(source) - 1]
    assert set(item) == {"image", "index", *source.space.names}
    assert [int(item[factor]) for factor in source.space.names] == levels[-1].tolist()
    assert torch.equal(source.batch(every).label, levels[:, source.space.position(source.category)])


def test_factors_are_those_of_the_look_alikes(originals):
    for name, space in (("dsprites", dsprites_space()), ("shapes3d", shapes3d_space())):
        found = read(name, originals(name)).space
        assert [(f.name, f.kind, f.period) for f in found] == [(f.name, f.kind, f.period) for f in space]
        assert dislib.SETS[name].sizes == space.sizes


@pytest.mark.parametrize(
    "name, names, kinds",
    [
        (
            "mpi3d_toy",
            "object_color object_shape object_size camera_height background_color horizontal_axis vertical_axis",
            "ccoocoo",
        ),
        ("cars3d", "elevation azimuth object_type", "orc"),
        ("smallnorb", "category instance elevation azimuth lighting", "ccorc"),
    ],
)
def test_factors_have_their_names_and_kinds(name, names, kinds, originals):
    space = read(name, originals(name)).space
    long = {"c": "categorical", "o": "ordinal", "r": "circular"}
    assert space.names == tuple(names.split()) and space.kinds == tuple(long[k] for k in kinds)
    assert [f.period for f in space if f.kind == "circular"] == [360.0] * kinds.count("r")


def test_every_set_has_its_category():
    categories = {name: known.category for name, known in dislib.SETS.items()}
    assert categories == {
        "dsprites": "shape",
        "shapes3d": "shape",
        "mpi3d_toy": "object_shape",
        "mpi3d_realistic": "object_shape",
        "mpi3d_real": "object_shape",
        "cars3d": "object_type",
        "smallnorb": "category",
    }


def test_cars_are_numbered_as_in_their_list(originals, copied):
    folder = copied("cars3d")
    pictures = whole(read("cars3d", originals("cars3d")))
    files = [(f"data/cars/{name}", content) for name, content in fake.car_files() if name != "list.txt"]
    (folder / "nips2015-analogy-data.tar.gz").unlink()
    names = "\r\n".join(reversed(fake.CARS)) + "\n\n"
    fake.write_tar(folder / "nips2015-analogy-data.tar.gz", [("data/cars/list.txt", names.encode()), *files])
    turned = whole(read("cars3d", folder))
    assert fake.CARS != tuple(sorted(fake.CARS)) and not torch.equal(turned, pictures)
    assert torch.equal(turned, pictures.unflatten(0, (4, 24, 3)).flip(2).flatten(0, 2))


def test_bytes_of_norb_are_unsigned_and_those_of_the_left_eye(originals):
    source = read("smallnorb", originals("smallnorb"))
    part = source.images(torch.arange(180))
    left = fake.expected("smallnorb", fake.norb_rows()[:180])
    assert int(left.max()) > 200 and torch.equal(part, left)
    assert source.space["azimuth"].values == (0, 120, 240) and source.space["instance"].values == (0, 1, 4, 6)


def test_one_is_white_where_the_file_holds_zeros_and_ones(originals):
    sprites, rooms = read("dsprites", originals("dsprites")), read("shapes3d", originals("shapes3d"))
    assert (sprites.white, rooms.white) == (1, 255)
    assert set(sprites.sample(50, 0).x.unique().tolist()) == {0.0, 1.0}
    assert 0.5 < float(rooms.sample(50, 0).x.max()) <= 1


def test_nothing_is_unpickled(originals, tmp_path):
    fake.Trap.opened.clear()
    with np.load(originals("dsprites") / f"{fake.SPRITES}.npz", allow_pickle=True) as file:
        assert file["metadata"] is not None and fake.Trap.opened == [True], "the trap works"
    fake.Trap.opened.clear()
    read("dsprites", originals("dsprites"))
    np.savez(tmp_path / "mpi3d_toy.npz", images=np.array([fake.Trap()] * 16, dtype=object))
    with pytest.raises(ValueError, match="an array of numbers"):
        load("mpi3d_toy", tmp_path, sizes=(2, 2, 2, 2, 1, 1, 1))
    assert fake.Trap.opened == []


def test_category_can_be_chosen(originals):
    source = load("shapes3d", originals("shapes3d"), category="wall_hue")
    assert source.category == "wall_hue" and source.n_classes == 3
    with pytest.raises(ValueError, match="one of 'floor_hue'"):
        load("shapes3d", originals("shapes3d"), category="colour")
    with pytest.raises(ValueError, match="category='color'.*at least two levels"):
        load("dsprites", originals("dsprites"), category="color")


def test_pictures_without_labels_need_sizes(originals):
    folder = originals("mpi3d_toy")
    with pytest.raises(ValueError, match=r"with product 1,152.*full size is \(6, 6, 2, 3, 3, 40, 40\)"):
        load("mpi3d_toy", folder)
    with pytest.raises(ValueError, match="sizes="):
        load("mpi3d_toy", folder, sizes=(2, 2, 2, 3, 3, 16))
    assert list(cache_folder().rglob("*.npy")) == [], "sizes are asked for before anything is converted"
    assert load("mpi3d_toy", folder, sizes=(2, 2, 2, 3, 3, 2, 8)).space.sizes[-2:] == (2, 8)
    with pytest.raises(ValueError, match="with product 1,152"):
        load("mpi3d_toy", folder, sizes=(2, 2, 2, 3, 3, 4, 5))


def test_sizes_must_be_those_of_the_labels(originals):
    assert load("dsprites", originals("dsprites"), sizes=(1, 3, 2, 4, 4, 4)).space.sizes == (1, 3, 2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 4, 4, 4\), as the labels in the files have it"):
        load("dsprites", originals("dsprites"), sizes=(1, 3, 2, 4, 8, 2))


@pytest.mark.parametrize("rows, sizes", [(1_036_800, (6, 6, 2, 3, 3, 40, 40)), (460_800, (4, 4, 2, 3, 3, 40, 40))])
def test_releases_of_mpi3d_are_told_by_their_length(rows, sizes):
    assert dislib.numbered(dislib.SETS["mpi3d_toy"], rows).sizes == sizes


# ---- memory


def test_pictures_stay_on_disk(originals):
    source = read("shapes3d", originals("shapes3d"))
    assert isinstance(source.read.array, np.memmap) and source.read.array.dtype == np.uint8
    assert source.read.array.shape == (648, 64, 64, 3) and not source.read.array.flags.writeable
    copy = pickle.loads(pickle.dumps(source.read))
    assert len(pickle.dumps(source.read)) < 1000, "a worker process is not sent the pictures"
    assert torch.equal(copy(torch.tensor([5, 3])), source.read(torch.tensor([5, 3])))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_read_in_blocks(name, originals, monkeypatch):
    folder = originals(name)
    pictures = whole(read(name, folder))
    monkeypatch.setattr(dislib, "BLOCK", 3 * 96 * 96 * 2)
    monkeypatch.setattr(dislib, "FORMAT", "another")
    sizes, small = [], dislib.small
    monkeypatch.setattr(dislib, "small", lambda block, channels: (sizes.append(len(block)), small(block, channels))[1])
    assert torch.equal(whole(read(name, folder)), pictures)
    assert sum(sizes) == len(pictures) and max(sizes) <= (96 if name == "cars3d" else 14)


def test_chunks_of_hdf5_are_read_whole(tmp_path, originals, monkeypatch):
    fake.write_sprites_hdf5(tmp_path)
    monkeypatch.setattr(dislib, "BLOCK", 5000)
    known = dislib.SETS["dsprites"]
    blocks = list(find(known, tmp_path).layout.open([tmp_path / f"{fake.SPRITES}.hdf5"], 1).blocks())
    assert [rows for rows, _ in blocks] == [range(0, 100), range(100, 200), range(200, 300), range(300, 384)]
    assert torch.equal(whole(read("dsprites", tmp_path)), whole(read("dsprites", originals("dsprites"))))


def test_conversion_happens_once(originals, copied, monkeypatch):
    first = read("smallnorb", originals("smallnorb"))
    before = {path: path.stat().st_mtime_ns for path in first.read.path.parent.iterdir()}
    monkeypatch.setattr(dislib, "convert", lambda *_: pytest.fail("converted again"))
    again = read("smallnorb", originals("smallnorb"))
    assert {path: path.stat().st_mtime_ns for path in first.read.path.parent.iterdir()} == before
    assert torch.equal(whole(again), whole(first)) and torch.equal(again.all_levels, first.all_levels)
    assert again.space == first.space and again.white == first.white


def test_other_files_are_converted_anew(copied):
    folder = copied("shapes3d")
    first = read("shapes3d", folder)
    with h5py.File(folder / "3dshapes.h5", "r+") as file:
        file["images"][0] = 7
    os.utime(folder / "3dshapes.h5", ns=(1, 1))
    second = read("shapes3d", folder)
    assert second.read.path != first.read.path and set(second.images(torch.tensor([0])).flatten().tolist()) == {7}


def test_killed_conversion_is_repeated(originals, own_cache):
    array = read("dsprites", originals("dsprites")).read.path
    pictures = array.read_bytes()
    array.with_suffix(".json").unlink()
    array.write_bytes(b"the half of it")
    assert len(read("dsprites", originals("dsprites"))) == 384 and array.read_bytes() == pictures


def test_failed_conversion_leaves_nothing(originals, own_cache, monkeypatch):
    def stop(block, channels):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dislib, "small", stop)
    with pytest.raises(OSError, match="No space left"):
        read("dsprites", originals("dsprites"))
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []


def test_labels_that_differ_by_rounding_are_one_level(tmp_path):
    labels = np.array([[0, 0, 0, 1, 0, 0], [0.3, 0, 0, 1, 1, 0], [0.1 + 0.2, 0, 0, 1, 2, 0]])
    np.save(tmp_path / "3dshapes_imgs.npy", np.zeros((3, 64, 64, 3), np.uint8))
    np.save(tmp_path / "3dshapes_labs.npy", labels)
    source = load("shapes3d", tmp_path)
    assert source.space.sizes == (2, 1, 1, 1, 3, 1) and source.levels(torch.arange(3))[:, 0].tolist() == [0, 1, 1]


# ---- where files are looked for


def test_cache_folder_order(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("~/mine") == Path("~/mine").expanduser() and cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CEGEN_CACHE_DIR")
    assert cache_folder() == tmp_path / "xdg" / "cegen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cegen"


def dcf_tree(root: Path, originals) -> Path:
    "The files that disentangling-correlated-factors makes of the originals."
    for name in ("dsprites", "shapes3d", "mpi3d", "cars3d", "smallnorb"):
        (root / name).mkdir(parents=True)
    shutil.copy(originals("dsprites") / f"{fake.SPRITES}.npz", root / "dsprites" / "dsprite_train.npz")
    shutil.copy(originals("mpi3d_toy") / "mpi3d_toy.npz", root / "mpi3d")
    with h5py.File(originals("shapes3d") / "3dshapes.h5") as file:
        np.save(root / "shapes3d" / "3dshapes_imgs.npy", file["images"][()])
        np.save(root / "shapes3d" / "3dshapes_labs.npy", file["labels"][()])
    cars = fake.shrunk(fake.all_pictures("cars3d"))
    np.savez_compressed(root / "cars3d" / "cars3d.npz", images=fake.by_rows(cars))
    rows = fake.norb_rows()
    np.save(root / "smallnorb" / "smallnorb_data.npy", fake.expected("smallnorb", rows).numpy())
    stored = ((rows - torch.tensor([0, 0, 30, 0, 0])) / torch.tensor([1, 1, 5, 20, 1])).int()
    np.save(root / "smallnorb" / "smallnorb_labels.npy", stored.numpy())
    return root


def test_trees_of_dcf_are_read(originals, tmp_path):
    root = dcf_tree(tmp_path / "data", originals)
    for name in NAMES:
        sizes = {"sizes": fake.SIZES[name]} if name in ("mpi3d_toy", "cars3d") else {}
        theirs, ours = load(name, root, **sizes), read(name, originals(name))
        assert torch.equal(whole(theirs), whole(ours)), name
        every = torch.arange(len(ours))
        assert torch.allclose(theirs.values(every), ours.values(every)) and theirs.white == ours.white


def dlib_tree(root: Path, originals) -> Path:
    "Folders as disentanglement_lib has them: smallNORB's files unpacked, and Cars3D's archive too."
    shutil.copytree(originals("dsprites"), root / "dsprites")
    shutil.copytree(originals("mpi3d_toy"), root / "mpi3d_toy")
    (root / "small_norb").mkdir()
    for file in originals("smallnorb").iterdir():
        (root / "small_norb" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    (root / "cars").mkdir()
    for name, content in fake.car_files():
        (root / "cars" / name).write_bytes(content)
    return root


def test_tree_of_disentanglement_lib_is_found(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("DISENTANGLEMENT_LIB_DATA", str(dlib_tree(tmp_path / "dlib", originals)))
    for name in ("dsprites", "mpi3d_toy", "cars3d", "smallnorb"):
        assert torch.equal(whole(read(name, None)), whole(read(name, originals(name)))), name
    with pytest.raises(FileNotFoundError, match="shapes3d was not found.*dlib"):
        load("shapes3d")


def test_tree_of_disent_is_found(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("DISENT_DATA_ROOT", str(tmp_path / "disent"))
    (tmp_path / "disent" / "dsprites").mkdir(parents=True)
    fake.write_sprites_hdf5(tmp_path / "disent" / "dsprites")
    shutil.copytree(originals("shapes3d"), tmp_path / "disent" / "3dshapes")
    shutil.copytree(originals("smallnorb"), tmp_path / "disent" / "smallnorb")
    assert {name for name in NAMES if find(dislib.SETS[name])} == {"dsprites", "shapes3d", "smallnorb"}
    assert torch.equal(whole(load("dsprites")), whole(load("dsprites", originals("dsprites"))))


def test_larger_cars_are_shrunk(originals, tmp_path):
    np.savez(tmp_path / "cars3d.npz", images=fake.by_rows(fake.all_pictures("cars3d")))
    assert torch.equal(whole(load("cars3d", tmp_path, sizes=(4, 24, 3))), whole(load("cars3d", originals("cars3d"))))


def test_folder_excludes_other_places(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("DISENT_DATA_ROOT", str(originals("shapes3d").parent))
    assert len(load("shapes3d")) == 648
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        load("shapes3d", tmp_path / "empty")


def test_missing_set_is_told_in_full(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cars3d", tmp_path / "nowhere")
    for part in ("nowhere (no such folder)", "nips2015-analogy-data.tar.gz", "download=True", "research only"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="Did you mean 'dsprites'"):
        load("dsprite")


def test_incomplete_set_is_told_by_file(copied):
    folder = copied("smallnorb")
    (folder / NORB_FILES[4]).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"smallnorb is incomplete in .*{NORB_FILES[4]} missing, .*{NORB_FILES[0]}"
    ):
        load("smallnorb", folder)


def test_file_in_place_of_a_folder(originals):
    with pytest.raises(ValueError, match="Give the folder that holds the file"):
        load("shapes3d", originals("shapes3d") / "3dshapes.h5")


# ---- damaged and wrong files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, altered])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_file_is_told(name, damage, copied, own_cache):
    folder = copied(name)
    path = folder / (NORB_FILES[0] if name == "smallnorb" else next(folder.iterdir()).name)
    damage(path)
    with pytest.raises(ValueError) as error:
        read(name, folder)
    assert path.name in str(error.value) and ("whole" in str(error.value) or "damaged" in str(error.value))
    assert list(own_cache.rglob("*.json")) == [] and list(own_cache.rglob("*.npy")) == []


@pytest.mark.parametrize("name", ["cars3d", "smallnorb"])
def test_gzip_files_are_read_up_to_their_checksum(name, copied):
    folder = copied(name)
    path = folder / (NORB_FILES[1] if name == "smallnorb" else "nips2015-analogy-data.tar.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # of the eight last bytes, four are the checksum
    path.write_bytes(content)
    with pytest.raises(ValueError, match="whole and undamaged.*CRC"):
        load(name, folder)


def test_longer_file_is_told(tmp_path):
    np.save(tmp_path / "3dshapes_imgs.npy", np.zeros((3, 64, 64, 3), np.uint8))
    np.save(tmp_path / "3dshapes_labs.npy", np.arange(18.0).reshape(3, 6))
    with (tmp_path / "3dshapes_imgs.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="longer than its header says"):
        load("shapes3d", tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>404: not found</html>", b"", b"\x55\x4c\x3d\x1e\x63\x00\x00\x00" + bytes(500)]
)
def test_what_is_no_norb_matrix_is_told(content, copied):
    folder = copied("smallnorb")
    (folder / NORB_FILES[1]).write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="magic number 0x1E3D4C55|ends 8 bytes too early"):
        load("smallnorb", folder)


def test_norb_files_that_do_not_belong_together(copied):
    folder = copied("smallnorb")
    (folder / NORB_FILES[1]).write_bytes(gzip.compress(fake.matrix(np.arange(9, dtype=np.int32))))
    with pytest.raises(ValueError, match="factors of the 180 pictures"):
        load("smallnorb", folder)


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((16, 32, 32, 3), np.uint8), np.zeros((16, 64, 64, 3), np.float32), np.zeros((16, 3, 64, 64), np.uint8)],
)
def test_other_pictures_are_refused(pictures, tmp_path):
    np.savez(tmp_path / "mpi3d_toy.npz", images=pictures)
    with pytest.raises(ValueError, match=r"pictures in uint8 of shape \(rows, 64, 64, 3\).*It holds (uint8|float32)"):
        load("mpi3d_toy", tmp_path, sizes=(2, 2, 2, 2, 1, 1, 1))


def test_file_of_another_set_is_told(tmp_path):
    np.savez(tmp_path / f"{fake.SPRITES}.npz", images=np.zeros((4, 64, 64), np.uint8))
    with pytest.raises(ValueError, match="an array 'imgs'.*It holds images"):
        load("dsprites", tmp_path)
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file["images"] = np.zeros((4, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="one with 'labels'.*It holds images"):
        load("shapes3d", tmp_path)
    (tmp_path / "3dshapes.h5").write_bytes(b"this is no HDF5 file")
    with pytest.raises(ValueError, match="a whole HDF5 file"):
        load("shapes3d", tmp_path)


def test_labels_of_another_length_are_told(tmp_path):
    np.save(tmp_path / "3dshapes_imgs.npy", np.zeros((3, 64, 64, 3), np.uint8))
    np.save(tmp_path / "3dshapes_labs.npy", np.zeros((2, 6)))
    with pytest.raises(ValueError, match="6 labels for each of 3 pictures"):
        load("shapes3d", tmp_path)


def car_archive(folder: Path, change) -> None:
    files = dict(fake.car_files())
    change(files)
    fake.write_tar(folder / "nips2015-analogy-data.tar.gz", [(f"data/cars/{n}", c) for n, c in files.items()])


def test_missing_car_is_told_by_name(tmp_path):
    car_archive(tmp_path, lambda files: files.pop("car_020_mesh.mat"))
    with pytest.raises(ValueError, match="all 3 cars of its list.txt.*Missing: car_020_mesh.mat"):
        load("cars3d", tmp_path)


def test_archive_without_a_list_is_told(tmp_path):
    car_archive(tmp_path, lambda files: files.pop("list.txt"))
    with pytest.raises(ValueError, match="cars/list.txt.*It names 0 cars"):
        load("cars3d", tmp_path)


def test_car_that_is_none_is_told(tmp_path):
    car_archive(
        tmp_path, lambda files: files.update({"car_100_mesh.mat": b"no MATLAB file at all, but long enough" * 9})
    )
    with pytest.raises(ValueError, match="car_100_mesh.mat.*an array 'im'"):
        load("cars3d", tmp_path)


def test_missing_package_is_told(originals, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("h5py", "PIL") else find_spec(name))
    with pytest.raises(MissingExtra, match=r"h5py.*pip install 'cegen\[images\]'"):
        load("shapes3d", originals("shapes3d"))
    with pytest.raises(MissingExtra, match="PIL"):
        load("smallnorb", originals("smallnorb"))


def test_full_disk_is_told_before_conversion(originals, own_cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 1_000_000))
    with pytest.raises(OSError, match="0.01 GB are needed and 0.00 GB are free") as error:
        load("shapes3d", originals("shapes3d"))
    assert error.value.errno == errno.ENOSPC and list(own_cache.rglob("*")) == []


# ---- fetching


class Server(ThreadingHTTPServer):
    "Serves bytes by path on this machine; knows ranges or not, and can hang up in the middle of an answer."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.hang_up_after = True, None
        self.asked: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 10

    def log_message(self, *_):
        pass

    def do_GET(self):
        name, asked = self.path.removeprefix("/"), self.headers.get("Range")
        self.server.asked.append((name, asked))
        content = self.server.files.get(name)
        if content is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end, self.server.hang_up_after = self.server.hang_up_after, None
        self.wfile.write(content[start : None if end is None else start + end])


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


CONTENT = bytes(range(256)) * 1000


def remote(*urls: str, content: bytes = CONTENT, **options) -> RemoteFile:
    return RemoteFile("file.bin", urls, f"sha256:{hashlib.sha256(content).hexdigest()}", **options)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_file_is_fetched(server, tmp_path):
    server.files["a"] = CONTENT
    assert fetch_file(remote(server.url("a")), tmp_path) == tmp_path / "file.bin"
    assert [path.name for path in tmp_path.glob("*.*")] == ["file.bin"] and (
        tmp_path / "file.bin"
    ).read_bytes() == CONTENT


def test_download_goes_on_where_it_stopped(server, tmp_path):
    server.files["a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:50_000])
    fetch_file(remote(server.url("a")), tmp_path)
    assert server.asked == [("a", "bytes=50000-")]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and not (tmp_path / "file.bin.part").exists()


def test_broken_download_can_be_called_again(server, tmp_path):
    server.files["a"], server.hang_up_after = CONTENT, 100_000
    with pytest.raises(ConnectionError, match="Call again to go on"):
        fetch_file(remote(server.url("a")), tmp_path)
    came = (tmp_path / "file.bin.part").read_bytes()
    assert 50_000 < len(came) <= 100_000 and came == CONTENT[: len(came)] and not (tmp_path / "file.bin").exists()
    fetch_file(remote(server.url("a")), tmp_path)
    assert (
        server.asked == [("a", None), ("a", f"bytes={len(came)}-")] and (tmp_path / "file.bin").read_bytes() == CONTENT
    )


def test_second_address_continues_the_first(server, tmp_path):
    server.files.update(a=CONTENT, b=CONTENT)
    server.hang_up_after = 100_000
    fetch_file(remote(server.url("a"), server.url("b")), tmp_path)
    assert (
        [name for name, _ in server.asked] == ["a", "b"]
        and server.asked[1][1].startswith("bytes=")
        and (tmp_path / "file.bin").read_bytes() == CONTENT
    )


def test_server_that_ignores_ranges(server, tmp_path):
    server.files["a"], server.ranges = CONTENT, False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:50_000])
    fetch_file(remote(server.url("a")), tmp_path)
    assert server.asked == [("a", "bytes=50000-")] and (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part, requests", [(CONTENT, 1), (CONTENT + b"too long", 2)])
def test_nothing_left_to_send(part, requests, server, tmp_path):
    server.files["a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(part)
    fetch_file(remote(server.url("a")), tmp_path)
    assert len(server.asked) == requests and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_addresses_are_tried_in_order(server, tmp_path):
    server.files["there"] = CONTENT
    fetch_file(remote(f"http://127.0.0.1:{closed_port()}/x", server.url("gone"), server.url("there")), tmp_path)
    assert [name for name, _ in server.asked] == ["gone", "there"] and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_no_address_answers(server, tmp_path):
    nobody = f"http://127.0.0.1:{closed_port()}/x"
    with pytest.raises(ConnectionError) as error:
        fetch_file(remote(nobody, server.url("gone")), tmp_path)
    for part in (nobody, server.url("gone"), "404", "by hand", str(tmp_path)):
        assert part in str(error.value)


def test_wrong_checksum_is_an_error(server, tmp_path):
    server.files.update(a=CONTENT[:-1] + b"?", b=CONTENT)
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch_file(remote(server.url("a")), tmp_path)
    assert list(tmp_path.glob("*.*")) == []
    fetch_file(remote(server.url("a"), server.url("b")), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT, "the next address had the right one"


def test_wrong_bytes_of_an_earlier_attempt_are_dropped(server, tmp_path):
    server.files["a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(b"of another release")
    fetch_file(remote(server.url("a")), tmp_path)
    assert server.asked == [("a", "bytes=18-"), ("a", None)] and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_checksum_is_a_warning_where_nobody_published_one(server, tmp_path):
    server.files["a"] = b"another upload"
    with pytest.warns(UserWarning, match="has not the checksum sha256:"):
        fetch_file(remote(server.url("a"), strict=False), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"another upload"
    assert [name for name, known in dislib.SETS.items() if not known.files[0].strict] == [
        "mpi3d_toy",
        "mpi3d_realistic",
        "mpi3d_real",
    ]


def served(name: str, folder: Path, server: Server, monkeypatch) -> None:
    "Let a set's files come from the server."
    known = dislib.SETS[name]
    server.files.update({path.name: path.read_bytes() for path in folder.iterdir()})
    files = tuple(
        RemoteFile(
            file.name,
            (server.url(file.name),),
            f"md5:{hashlib.md5(server.files[file.name]).hexdigest()}",
            len(server.files[file.name]),
        )
        for file in known.files
    )
    monkeypatch.setitem(dislib.SETS, name, replace(known, files=files))


@pytest.mark.parametrize("where", [None, "mine"])
def test_load_fetches_what_is_missing(where, server, originals, own_cache, tmp_path, monkeypatch, capsys):
    served("smallnorb", originals("smallnorb"), server, monkeypatch)
    folder, target = (tmp_path / where, tmp_path / where) if where else (None, own_cache / "smallnorb")
    target.mkdir(parents=True)
    shutil.copy(originals("smallnorb") / NORB_FILES[0], target)
    before = (target / NORB_FILES[0]).stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="smallnorb is incomplete"):
        load("smallnorb", folder)
    assert server.asked == [], "nothing is fetched unless asked for"
    source = load("smallnorb", folder, download=True)
    assert [name for name, _ in server.asked] == NORB_FILES[1:]
    assert (target / NORB_FILES[0]).stat().st_mtime_ns == before, "what was there is left as it was"
    told = capsys.readouterr().out
    for part in ("smallnorb", str(target), "5 of 6 files", "MB", "cannot be sold"):
        assert part in told
    assert torch.equal(whole(source), whole(load("smallnorb", originals("smallnorb"))))
    assert verify("smallnorb", folder) == dict.fromkeys(NORB_FILES, True)
    load("smallnorb", folder, download=True)
    assert len(server.asked) == 5 and capsys.readouterr().out == ""


def test_altered_file_is_found_by_verify(copied):
    folder = copied("smallnorb")
    assert verify("smallnorb", folder) == dict.fromkeys(NORB_FILES, False), "these are not the published files"
    digest = hashlib.sha256((folder / NORB_FILES[3]).read_bytes()).hexdigest()
    assert dislib.has_checksum(folder / NORB_FILES[3], f"sha256:{digest}")
    altered(folder / NORB_FILES[3])
    assert not dislib.has_checksum(folder / NORB_FILES[3], f"sha256:{digest}")
    with pytest.raises(FileNotFoundError):
        verify("dsprites", folder)


def test_offline_forbids_all_requests(server, originals, tmp_path, monkeypatch, capsys):
    served("shapes3d", originals("shapes3d"), server, monkeypatch)
    monkeypatch.setenv("CEGEN_OFFLINE", "1")
    for call in (
        lambda: load("shapes3d", tmp_path, download=True),
        lambda: fetch("shapes3d", tmp_path),
        lambda: fetch_file(remote(server.url("3dshapes.h5")), tmp_path),
        lambda: dislib.fetch_rest(tmp_path / "part", server.url("3dshapes.h5"), str(tmp_path / "whole")),
    ):
        with pytest.raises(ConnectionError, match="CEGEN_OFFLINE"):
            call()
    assert server.asked == [] and list(tmp_path.glob("*.*")) == [] and capsys.readouterr().out == ""
    assert len(load("shapes3d", originals("shapes3d"), download=True)) == 648, "what is there needs no network"
    monkeypatch.setenv("CEGEN_OFFLINE", "0")
    assert len(load("shapes3d", tmp_path, download=True)) == 648


def test_full_disk_is_told_before_fetching(server, originals, tmp_path, monkeypatch):
    served("shapes3d", originals("shapes3d"), server, monkeypatch)
    known = dislib.SETS["shapes3d"]
    need = known.files[0].size + known.n_bytes
    for free in (need - 1, need):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(10**12, 10**12, free))
        if free < need:
            with pytest.raises(OSError, match=f"Some {need / 1e9:.2f} GB are needed") as error:
                load("shapes3d", tmp_path, download=True)
            assert error.value.errno == errno.ENOSPC and server.asked == [] and not (tmp_path / "3dshapes.h5").exists()
    assert len(load("shapes3d", tmp_path, download=True)) == 648


def test_facts_about_the_files_are_well_formed():
    for name, known in dislib.SETS.items():
        assert known.name == name and known.licence and known.category in [factor for factor, _, _ in known.factors]
        assert tuple(file.name for file in known.files) == known.layouts[0].files
        for file in known.files:
            kind, digest = file.checksum.split(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size
            assert all(url.endswith(f"/{file.name}") for url in file.urls) and (file.size or file.guess) > 0
    assert "none is stated" in dislib.SETS["cars3d"].licence and "research" in dislib.SETS["smallnorb"].licence


# ---- the labels of the published script


def test_published_labels_lose_45_cars():
    level = torch.arange(183)
    labels = published_labels(level, 183)
    assert len(labels.unique()) == 138 and int((labels != level).sum()) == 79
    assert set((level - labels).tolist()) == {0, 1}, "a neighbour's label"
    assert torch.equal(published_labels(level.flip(0), 183), labels.flip(0))


def test_published_labels_of_the_other_sets():
    turned = published_labels(torch.arange(18), 18, reciprocal=True)
    assert (turned != torch.arange(18)).nonzero()[:, 0].tolist() == [3, 6, 12] and len(turned.unique()) == 15
    assert published_labels(torch.arange(10), 10, reciprocal=True)[7] == 6
    for size in (2, 3, 5, 6, 32, 40):
        assert torch.equal(published_labels(torch.arange(size), size, reciprocal=True), torch.arange(size))
    with pytest.raises(ValueError, match="size=1"):
        published_labels(torch.zeros(3, dtype=torch.long), 1)


def test_right_label_of_a_car_is_its_level(originals):
    source = load("cars3d", originals("cars3d"))
    assert source.n_classes == 3 and torch.equal(source.batch(torch.arange(288)).label, torch.arange(288) % 3)
    note = json.loads(source.read.path.with_suffix(".json").read_text(encoding="utf-8"))
    assert note["rows"] == 288 and note["set"] == "cars3d"
