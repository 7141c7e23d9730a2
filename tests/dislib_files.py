"""Small files in the formats of the published image sets: same names, keys, types and order, fewer levels, and pictures of our own renderers."""

import gzip
import io
import tarfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from cegen.images.render import draw_room, draw_sprites

CARS = ("car_020_mesh", "car_003_mesh", "car_100_mesh")  # as in list.txt, which is not sorted
NORB = ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing")
SPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"

# Values of each factor, in the order of the files' rows (smallNORB's are shuffled).
VALUES = {
    "dsprites": [(1,), (1, 2, 3), (0.5, 1.0), (0, np.pi / 5, 1.0, 2.5), (0, 0.25, 0.6, 1), (0, 0.3, 0.6, 1)],
    "shapes3d": [(0.0, 0.1 + 0.2, 0.9), (0.1, 0.5, 0.7), (0.0, 0.4, 0.8), (0.75, 1.25), (0, 1, 2, 3), (-30, 0, 25)],
    "mpi3d_toy": [range(2), range(2), range(2), range(3), range(3), range(4), range(4)],
    "cars3d": [range(4), np.arange(24) * 15.0, range(3)],
    "smallnorb": [range(5), (0, 1, 4, 6), (30, 50, 70), (0, 120, 240), (0, 5)],
}
SIZES = {name: tuple(map(len, values)) for name, values in VALUES.items()}


def grid(name: str) -> Tensor:
    "The values of the factors in each row of a full grid."
    return torch.cartesian_prod(*(torch.tensor(list(values), dtype=torch.float64) for values in VALUES[name]))


def to_bytes(pictures: Tensor) -> Tensor:
    return (255 * pictures).round().byte()


def draw(name: str, values: Tensor) -> Tensor:
    "The pictures for some values as the file holds them: (n, channels, side, side) in bytes."
    v = values.float().unbind(1)
    zero = torch.zeros_like(v[0])
    if name == "dsprites":
        return draw_sprites(v[1].long() - 1, *v[2:], binary=True).byte()
    if name == "shapes3d":
        return to_bytes(draw_room(v[4].long(), v[3], v[5], v[0], v[1], v[2]))
    if name == "mpi3d_toy":
        color, shape, size, height, background, x, y = v
        room = shape.long(), 0.8 + 0.4 * size, 15 * height - 15, background / 4, zero + 0.6, color / 3
        return to_bytes(draw_room(*room, x=0.4 * x - 0.6, y=0.3 * y - 0.6))
    if name == "cars3d":
        elevation, azimuth, car = v
        room = car.long() + 1, 0.7 + 0.15 * elevation, azimuth / 6 - 30, zero + 0.1, elevation / 8, car / 4
        return to_bytes(draw_room(*room, size=128))
    category, instance, elevation, azimuth, lighting = v
    room = category.long() % 4, 0.8 + instance / 20, azimuth / 6 - 20, category / 10, zero + 0.3, zero + 0.5
    grey = draw_room(*room, y=elevation / 40 - 1.25, size=96).mean(1, keepdim=True)
    return to_bytes(grey * (1 - lighting[:, None, None, None] / 10))


@cache
def all_pictures(name: str) -> Tensor:
    "The pictures of a full grid as the file holds them."
    return draw(name, grid(name))


def shrunk(pictures: Tensor) -> Tensor:
    "Pictures of 64 by 64 pixels, by Pillow's bilinear filter."
    rows = [Image.fromarray(p.permute(1, 2, 0).squeeze(-1).numpy()).resize((64, 64), Image.BILINEAR) for p in pictures]
    return (
        torch.from_numpy(np.stack([np.asarray(row) for row in rows])).reshape(len(rows), 64, 64, -1).permute(0, 3, 1, 2)
    )


def expected(name: str, values: Tensor) -> Tensor:
    "The pictures for some values as `load` should give them."
    pictures = draw(name, values)
    return pictures if pictures.shape[-1] == 64 else shrunk(pictures)


def by_rows(pictures: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())


def write(name: str, folder: Path) -> Path:
    "Write the original files of a set into a folder."
    folder.mkdir(parents=True)
    WRITERS[name](folder)
    return folder


class Trap:
    "Something that leaves a trace when it is unpickled, as any program in a pickle could."

    opened: list[bool] = []

    def __reduce__(self):
        return spring, ()


def spring() -> None:
    Trap.opened.append(True)


def sprites_arrays() -> dict[str, np.ndarray]:
    values = grid("dsprites")
    levels = np.stack(np.unravel_index(np.arange(len(values)), SIZES["dsprites"]), axis=1)
    names = ("color", "shape", "scale", "orientation", "posX", "posY")
    metadata = {
        "title": "stand-in",
        "latents_names": names,
        "latents_sizes": np.array(SIZES["dsprites"]),
        "trap": Trap(),
    }
    return {
        "metadata": np.array(metadata, dtype=object),
        "imgs": all_pictures("dsprites")[:, 0].numpy(),
        "latents_classes": levels.astype(np.int64),
        "latents_values": values.numpy(),
    }


def write_sprites(folder: Path) -> None:
    np.savez_compressed(folder / f"{SPRITES}.npz", **sprites_arrays())


def write_sprites_hdf5(folder: Path) -> None:
    arrays = sprites_arrays()
    with h5py.File(folder / f"{SPRITES}.hdf5", "w") as file:
        file.create_dataset("imgs", data=arrays["imgs"], chunks=(100, 2, 4), compression="gzip")
        file["latents/classes"], file["latents/values"] = arrays["latents_classes"], arrays["latents_values"]


def write_rooms(folder: Path) -> None:
    values = grid("shapes3d")
    with h5py.File(folder / "3dshapes.h5", "w") as file:
        pictures = by_rows(all_pictures("shapes3d"))
        file.create_dataset("images", data=pictures, chunks=(1, 64, 64, 3), compression="gzip")
        file["labels"] = values.numpy()


def write_mpi3d(folder: Path) -> None:
    np.savez(folder / "mpi3d_toy.npz", images=by_rows(all_pictures("mpi3d_toy")))


@cache
def car_files() -> tuple[tuple[str, bytes], ...]:
    "Names and contents of the files in data/cars, in the order in which a folder lists them."
    files = [("list.txt", "".join(f"{name}\n" for name in CARS).encode())]
    # elevation, azimuth, car, colour, row, column
    views = all_pictures("cars3d").reshape(4, 24, 3, 3, 128, 128)
    for name in sorted(CARS):
        im = views[:, :, CARS.index(name)].permute(3, 4, 2, 1, 0).contiguous().numpy()
        content = io.BytesIO()
        savemat(content, {"im": im, "mask": np.zeros((128, 128, 24, 4), np.uint8)}, do_compression=True)
        files.append((f"{name}.mat", content.getvalue()))
    return tuple(files)


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in [("data/sprites/sprites.txt", b"other data"), *files]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cars(folder: Path) -> None:
    files = [(f"data/cars/{name}", content) for name, content in car_files()]
    write_tar(folder / "nips2015-analogy-data.tar.gz", [*files[1:], files[0]])


def matrix(values: np.ndarray) -> bytes:
    "An array in NORB's format."
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}[values.dtype.name]
    axes = (*values.shape, 1, 1)[: max(3, values.ndim)]
    return np.array([magic, values.ndim, *axes], "<i4").tobytes() + values.tobytes()


def norb_rows() -> Tensor:
    "The values in each row of both parts, shuffled: instances 4 and 6 first, then 0 and 1."
    values = grid("smallnorb")
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    training = values[:, 1] >= 4
    return torch.cat([values[training], values[~training]])


def write_norb(folder: Path) -> None:
    values = norb_rows()
    for part, rows in zip(NORB, values.split(len(values) // 2), strict=True):
        left = draw("smallnorb", rows)
        category, instance, elevation, azimuth, lighting = rows.int().numpy().T
        info = np.stack([instance, (elevation - 30) // 5, azimuth // 10, lighting], axis=1)
        pairs = torch.cat([left, 255 - left], dim=1).numpy()
        for kind, array in (("dat", pairs), ("cat", category), ("info", info)):
            content = gzip.compress(matrix(np.ascontiguousarray(array)), compresslevel=1)
            (folder / f"{part}-{kind}.mat.gz").write_bytes(content)


WRITERS = {
    "dsprites": write_sprites,
    "shapes3d": write_rooms,
    "mpi3d_toy": write_mpi3d,
    "cars3d": write_cars,
    "smallnorb": write_norb,
}
