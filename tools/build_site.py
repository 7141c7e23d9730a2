"""Render the site: nbdev turns notebooks into pages with API tables, then Quarto (or a stand-in) makes the site in _docs/."""

import ast
import html
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import api
import nbdev.showdoc
from execnb.nbio import read_nb, write_nb
from latex2mathml.converter import convert
from latex2mathml.symbols_parser import convert_symbol
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults, _default_exp, add_fold, add_links, mv_exports
from nbdev.quarto import refresh_quarto_yml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, DOCS = ROOT / "nbs", ROOT / "_proc", ROOT / "_docs"
COPIED = {".png", ".svg", ".css", ".yml"}


# ---- from notebook to page


class ApiTable(nbdev.showdoc.BasicMarkdownRenderer):
    "What `show_doc` shows on a page: a table of shapes, defaults and descriptions instead of nbdev's bare signature."

    module: str | None = None  # the page's own module
    shown: frozenset[str] = frozenset()  # methods that the notebook places itself

    def _repr_markdown_(self) -> str:
        symbol = api.lookup(self.nm, self.module)
        if symbol is None:
            return super()._repr_markdown_()
        config = get_config()
        return api.documentation(symbol, self.title_level, f"{config.git_url}/blob/{config.branch}", self.shown)


class Links(NbdevLookup):
    "Where a symbol in backticks is documented, relative to the page that names it."

    def __init__(self, depth: int):
        self.aliases, self.syms = {}, {}
        for module in api.modules():
            page = "../" * depth + module.removeprefix("cegen.").replace(".", "/") + ".html"
            for symbol in api.symbols(module).values():
                for s in (symbol, *symbol.members):
                    for name in (s.name, f"{module}.{s.name}", f"{module}.{s.name}".removeprefix("cegen.")):
                        self.syms.setdefault(name, f"{page}#{s.name.lower()}")


def show_source(cell) -> None:
    "Keep the code of an exported cell on its page; nbdev alone would hide it. Bare imports stay hidden."
    if cell.cell_type != "code" or "export" not in cell.directives_:
        return
    if not all(isinstance(node, ast.Import | ast.ImportFrom) for node in cell.parsed_() or []):
        cell.source = cell.source.replace("#| export", "#| exports", 1)
        cell.directives_["exports"] = cell.directives_.pop("export")
        cell.shows_source = True


def fold_source(cell) -> None:
    "Let the reader fold the code of the package away."
    if cell.cell_type == "code" and "exports" in cell.directives_:
        cell.source = f'#| code-fold: show\n#| code-summary: "Source"\n{cell.source}'


def without_imports(source: str) -> str:
    "The code without its import statements, which say little to a reader."
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return re.sub(r"\n{3,}", "\n\n\n", re.sub(r"^((?:#\|.*\n)*)\n+", r"\1", "\n".join(lines)))


def tables_before_source(notebook) -> None:
    "Put the tables of an exported cell into the order of the source, and before it; nbdev leaves them reversed and behind."
    cells, arranged = list(notebook.cells), []
    while cells:
        cell, tables = cells.pop(0), []
        while cells and getattr(cells[0], "has_sd", False):
            tables.insert(0, cells.pop(0))
        arranged += [*tables, cell]
    notebook.cells[:] = arranged


class Pages(FilterDefaults):
    "nbdev's own steps from notebook to page, with ours for source, order and links."

    depth = 0

    def base_procs(self):
        links = Links(self.depth)

        def add_relative_links(cell):
            if cell.cell_type == "markdown":
                cell.source = links.linkify(cell.source)

        ours = {add_links: add_relative_links, add_fold: fold_source, mv_exports: None}
        steps = [ours.get(step, step) for step in super().base_procs()]
        return [show_source, *(step for step in steps if step)]


def write_page(source: Path, target: Path) -> None:
    "One notebook, processed."
    notebook = read_nb(source)
    ApiTable.module = f"cegen.{_default_exp(notebook)}"
    ApiTable.shown = frozenset(re.findall(r"^show_doc\((\w+\.\w+)", "\n".join(c.source for c in notebook.cells), re.M))

    class ThesePages(Pages):
        depth = len(source.relative_to(NBS).parts) - 1

    ThesePages()(notebook)
    tables_before_source(notebook)
    for cell in notebook.cells:
        if getattr(cell, "shows_source", False):
            cell.source = without_imports(cell.source)
    write_nb(notebook, target)


def prepare() -> None:
    "Write _proc/: every notebook as a page, and the files that pages refer to."
    shutil.rmtree(PROC, ignore_errors=True)
    refresh_quarto_yml()
    warnings.filterwarnings("ignore", "Found cells containing imports")  # nbdev runs such cells whole; ours may be
    nbdev.showdoc.BasicMarkdownRenderer = ApiTable
    for source in sorted(NBS.rglob("*")):
        place = source.relative_to(NBS)
        if source.is_dir() or any(part.startswith(".") for part in place.parts):
            continue
        (PROC / place).parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".ipynb":
            write_page(source, PROC / place)
        elif source.suffix in COPIED:
            shutil.copy(source, PROC / place)


# ---- from pages to site


def render_with_quarto() -> None:
    "Quarto, where it is installed: it runs no code and writes MathML by itself."
    subprocess.run(["quarto", "render", "--no-execute", "--no-cache"], cwd=PROC, check=True)


def render_with_stand_in() -> None:
    "Without Quarto: smalldocs makes the pages, latex2mathml the formulas. To take another renderer, replace this function."
    from smalldocs.site import build

    build(PROC, quiet=True)
    site = PROC / DOCS.name
    renamed = {}
    for page in sorted(site.rglob("[0-9]*_*.html")):  # as Quarto names them: 03_dgp.ipynb becomes dgp.html
        short = re.sub(r"^\d+_", "", page.name)
        renamed[page.name] = page.rename(page.with_name(short)).name
    old_names = re.compile("|".join(map(re.escape, renamed)) or "$^")
    for page in [*site.rglob("*.html"), *site.glob("*.xml")]:
        text = old_names.sub(lambda m: renamed[m[0]], page.read_text(encoding="utf-8"))
        page.write_text(with_mathml(text), encoding="utf-8")
    index = site / "search.json"
    text = old_names.sub(lambda m: renamed[m[0]], index.read_text(encoding="utf-8"))
    index.write_text(re.sub(r"\\\\([A-Za-z]+) ?", spoken_symbol, text), encoding="utf-8")


# Bars that open and close: latex2mathml forgets which is which, and a browser then spaces and stretches them wrongly.
BARS = {r"\lvert": ("\ue000", "prefix", "|"), r"\rvert": ("\ue001", "postfix", "|")}
BARS |= {r"\lVert": ("\ue002", "prefix", "‖"), r"\rVert": ("\ue003", "postfix", "‖")}


def mathml(tex: str, display: str) -> str:
    "One formula as MathML."
    for command, (mark, _, _) in BARS.items():
        tex = re.sub(rf"(?<!\\left)(?<!\\right){re.escape(command)}(?![A-Za-z])", mark, tex)
    found = convert(tex, display=display)
    for mark, form, bar in BARS.values():
        found = re.sub(rf"<m[io][^>]*>{mark}</m[io]>", f'<mo form="{form}" stretchy="false">{bar}</mo>', found)
    return found


def with_mathml(page: str) -> str:
    "Replace every formula that waits for a script by MathML, which a browser shows by itself."

    def formula(match: re.Match) -> str:
        return mathml(html.unescape(match["tex"]).strip(), "block" if match["kind"] == "display" else "inline")

    span = r'<span class="math (?P<kind>inline|display)">\\[(\[](?P<tex>.*?)\\[)\]]</span>'
    return re.sub(span, formula, page, flags=re.DOTALL)


def spoken_symbol(command: re.Match) -> str:
    "A TeX command in the text of the search index as the character it stands for, or nothing."
    code = convert_symbol("\\" + command[1])
    return chr(int(code, 16)) if code else ""


def without_remote_parts(site: Path) -> None:
    "Drop every script, style and font that a page would fetch from another host: the site must work without network."
    remote = r"""(?:https?:)?//[^"'>\s]*"""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(rf"""<script\b[^>]*\bsrc=["']{remote}["'][^>]*>\s*</script>""", "", text)
        text = re.sub(
            rf"""<link\b(?=[^>]*\brel=["'](?:stylesheet|preconnect)["'])[^>]*\bhref=["']{remote}["'][^>]*>""", "", text
        )
        page.write_text(text, encoding="utf-8")
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        without = re.sub(r"""@import\s+(?:url\()?["']?(?:https?:)?//[^"')]*["']?\)?[^;]*;""", "", text)
        if without != text:
            sheet.write_text(without, encoding="utf-8")


def main() -> int:
    os.chdir(ROOT)
    prepare()
    if shutil.which("quarto"):
        render_with_quarto()
    else:
        render_with_stand_in()
    without_remote_parts(PROC / DOCS.name)
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.move(PROC / DOCS.name, DOCS)
    print(f"The site: {DOCS.name}/index.html ({len(list(DOCS.rglob('*.html')))} pages)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
