"""Execute the reference and theory notebooks and the reports as tests, two at a time, each in a process of its own.

The processes are forked from one that has only imported other people's libraries, so that not every notebook spends its first seconds on that.
"""

import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
ELSEWHERE = {"experiments", "tutorials"}  # pytest executes experiments, under papermill, and `make notebooks` tutorials
IMPORTED = ["nbdev.test", "nbdev.showdoc", "torch", "pandas", "seaborn", "sklearn.linear_model"]


def default_notebooks() -> list[Path]:
    "Those that are tests."
    found = sorted(path.relative_to(NBS) for path in NBS.rglob("*.ipynb"))
    return [NBS / p for p in found if p.parts[0] not in ELSEWHERE and not any(part.startswith(".") for part in p.parts)]


def execute(path: Path) -> None:
    "Run a notebook to its end, or exit with an error."
    passed, seconds = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    print(f"{os.path.relpath(path)}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
    sys.exit(not passed)


def main(names: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # two run side by side
    fork = multiprocessing.get_context("forkserver")
    if sys.platform == "linux":  # elsewhere the system's own libraries may not survive a fork
        fork.set_forkserver_preload(IMPORTED)

    waiting = [Path(name).resolve() for name in reversed(names)] or default_notebooks()[::-1]
    running, failed = {}, []
    while waiting or running:
        while waiting and len(running) < 2:
            process = fork.Process(target=execute, args=(path := waiting.pop(),))
            process.start()
            running[process.sentinel] = process, path
        for ended in wait(running):
            process, path = running.pop(ended)
            process.join()
            failed += [os.path.relpath(path)] if process.exitcode else []
    sys.exit(f"These notebooks failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
