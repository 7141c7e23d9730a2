"""Are the notebooks clean, and is the package what they export? Tells by doing it and looking what changed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def snapshot() -> dict[str, bytes]:
    "The content of every notebook and of every file of the package."
    files = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "cegen").rglob("*.py")]
    return {str(f.relative_to(ROOT)): f.read_bytes() for f in files if ".ipynb_checkpoints" not in f.parts}


def main() -> int:
    before = snapshot()
    for tool in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / tool], cwd=ROOT, check=True)
    after = snapshot()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        print("These files were not in sync. They are now: look at them, and commit them.", *changed, sep="\n  ")
        return 1
    print(f"{len(after)} files in sync: the notebooks are clean and cegen/ is what they export.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
