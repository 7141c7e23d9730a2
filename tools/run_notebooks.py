"""Run the reference and theory notebooks, the tutorials and the reports again, in place, so that the stored outputs are those of the code as it is."""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


def default_notebooks() -> list[Path]:
    "What the site shows executed; experiments are templates without outputs."
    return [
        path
        for folder in (".", "images", "theory", "tutorials", "reports")
        for path in sorted(NBS.glob(f"{folder}/*.ipynb"))
    ]


class Rerun(NotebookClient):
    "Runs a notebook but for the cells marked `#| eval: false` or `#| cuda`, whose stored outputs stay."

    async def async_execute_cell(self, cell, cell_index, **options):
        if re.match(r"(?:#\|.*\n)*#\|\s*(?:eval:\s*false|cuda\b)", cell.source):
            return cell
        return await super().async_execute_cell(cell, cell_index, **options)


def main(names: list[str]) -> None:
    os.environ["CEGEN_PROGRESS"] = "0"  # a stored progress bar tells nobody anything
    for path in [Path(name).resolve() for name in names] or default_notebooks():
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        Rerun(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
