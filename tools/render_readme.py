"""Render README.md from the stored nbs/index.ipynb: the front page of the site and of the repository are one text."""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Rendered from nbs/index.ipynb by `make readme`; edit the notebook. -->"
HIDDEN = {"hide", "default_exp", "export", "exporti", "exports"}


def directives(source: str) -> tuple[dict[str, str], str]:
    "The `#| name: value` lines at the top of a cell, and the code below them."
    found = {}
    lines = source.split("\n")
    while lines and lines[0].startswith("#|"):
        name, _, value = lines.pop(0)[2:].strip().partition(" ")
        found[name.rstrip(":")] = value.strip().lower()
    return found, "\n".join(lines).strip()


def prose(text: str) -> str:
    "Markdown for a reader outside of the site: no Quarto fences and attributes, links that start at the repository."
    text = re.sub(r"^:::.*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=[)\]\w])\s?\{[#.][^}]*\}", "", text)
    text = re.sub(r"\]\((?=(?:images|theory|tutorials|experiments|reports)/|[\w-]+\.ipynb)", "](nbs/", text)
    text = re.sub(r"\]\(\.\./", "](", text)
    return re.sub(r'(<img\b[^>]*\bsrc=")(?=images/)', r"\1nbs/", text).strip()


def html_table(text: str) -> str:
    "A data frame's table without its style sheet and attributes."
    table = re.search(r"<table.*?</table>", text, flags=re.DOTALL)
    if table is None:
        raise ValueError(f"An output of {INDEX.name} is HTML but no table, which a README cannot show: {text[:80]!r}")
    return re.sub(r">\s+<", "><", re.sub(r'\s(?:class|style|border|id)="[^"]*"', "", table[0]))


def output(out: dict) -> str:
    "One stored output as Markdown; what was written to stderr stays out."
    if out["output_type"] == "stream":
        return "" if out["name"] == "stderr" else f"```text\n{out['text'].rstrip()}\n```"
    if out["output_type"] == "error":
        raise ValueError(f"{INDEX.name} holds an error: {out['ename']}: {out['evalue']}")
    data = out["data"]
    if "text/markdown" in data:
        return prose(data["text/markdown"])
    if "text/html" in data:
        return html_table(data["text/html"])
    if any(kind.startswith("image/") for kind in data):
        raise ValueError(f"A picture in {INDEX.name} is stored in the notebook: save it to nbs/images/ and link to it.")
    return f"```text\n{data['text/plain'].rstrip()}\n```"


def render(index: Path = INDEX) -> str:
    "The README's text."
    parts = [NOTE]
    for cell in nbformat.read(index, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(prose(cell.source))
            continue
        told, code = directives(cell.source)
        if cell.cell_type != "code" or told.keys() & HIDDEN or told.get("include") == "false":
            continue
        if told.get("echo") != "false" and code:
            parts.append(f"```python\n{code}\n```")
        if told.get("output") != "false":
            parts += [output(out) for out in cell.outputs]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    README.write_text(render(), encoding="utf-8")
    size = len(README.read_bytes())
    print(f"README.md: {size} bytes")
    sys.exit(size > 5 * 1024 and "README.md is larger than 5 KB: shorten nbs/index.ipynb.")
