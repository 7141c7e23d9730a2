"""A made-up ImageNet validation folder: the names of real annotated pictures, and behind each a few colours that mean nothing."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cegen.images.imagenetx import FACTORS, class_names, load_annotations


def chosen(n: int = 200, which: str = "multi", per_factor: int = 6) -> pd.DataFrame:
    "Rows of the real annotations, some with and some without each factor."
    annotations = load_annotations(which)
    rows = {int(row) for factor in FACTORS for row in annotations.index[annotations[factor] == 1][:per_factor]}
    rest = [row for row in range(0, len(annotations), 97) if row not in rows]
    return annotations.loc[sorted([*rows, *rest[: n - len(rows)]])].reset_index(drop=True)


def picture(file_name: str, seed: int = 0) -> bytes:
    "A small JPEG of 4 × 3 smooth colours that depend on the name alone; some are gray, as some of ImageNet's are."
    number = int(file_name.split("_")[-1].split(".")[0])
    generator = np.random.default_rng([seed, number])
    gray = number % 10 == 0
    colors = generator.integers(0, 256, (3, 4) if gray else (3, 4, 3), dtype=np.uint8)
    size = tuple(int(side) for side in generator.integers(40, 90, 2))
    buffer = io.BytesIO()
    Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC).save(buffer, format="JPEG")
    return buffer.getvalue()


def write_validation(folder: Path, annotations: pd.DataFrame, by_class: bool = False) -> Path:
    "Write a picture for each row, all into one folder or into one for each class."
    wnid = class_names()["wnid"]
    for name, number in zip(annotations["file_name"], annotations["class"], strict=True):
        path = folder / wnid[number] / name if by_class else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))
    return folder
