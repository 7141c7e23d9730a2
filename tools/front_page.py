"""What the front page shows: the default row's scores (results/default_row.json) and its picture (nbs/images/recovery.png)."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import seaborn as sns
import torch

from cegen import Config, identify
from cegen.core import write_atomically, write_json

ROOT = Path(__file__).resolve().parent.parent


def default_row() -> None:
    "Three seeds of the default row with unit rows and features (C1) and with all free (C4); a killed run continues."
    results = [
        identify(Config(case=case, seeds=(0, 1, 2)), out=ROOT / "runs" / f"default_row_{case}") for case in ("C1", "C4")
    ]
    write_json(
        ROOT / "results" / "default_row.json",
        {"environment": results[0].environment, "records": [record for result in results for record in result.records]},
    )


def example() -> dict:
    "The names that the front page's quick example leaves behind."
    cells = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells
    (code,) = (cell.source for cell in cells if cell.cell_type == "code" and "ClusterDGP" in cell.source)
    names: dict = {}
    exec(code, names)
    return names


def picture(names: dict) -> None:
    "Latents, observations and recovered latents of the example, six of its classes in colour."
    test = names["test"]
    with torch.inference_mode():
        z_tilde = names["z_tilde"].detach()
        u, _, v = torch.linalg.svd(z_tilde.T @ test.z)
        panels = {
            "latents z": test.z,
            "observations x = g(z)": test.x,
            "features f(x), rotated": z_tilde @ (u @ v),
        }
    shown = np.argsort(np.where(test.label < 6, 1, 0), kind="stable")[-4000:]
    palette = np.array([*sns.color_palette("colorblind", 6), (0.8, 0.8, 0.8)])
    colours = palette[np.minimum(test.label.numpy()[shown], 6)]
    fig = plt.figure(figsize=(9, 3.3), dpi=110)
    for k, (title, points) in enumerate(panels.items()):
        ax = fig.add_axes((k / 3, 0, 1 / 3, 0.88), projection="3d")
        points = points.numpy()[shown]
        ax.scatter(*points.T, c=colours, s=3, linewidths=0)
        fig.text((k + 0.5) / 3, 0.92, title, fontsize=12, ha="center")
        ax.set_box_aspect((1, 1, 1), zoom=1.3)
        ax.set_axis_off()
    path = ROOT / "nbs" / "images" / "recovery.png"
    write_atomically(path, lambda temporary: fig.savefig(temporary, format="png", facecolor="white"))


if __name__ == "__main__":
    picture(example())
    default_row()
