"""The rendered site, opened page by page in a real browser as a reader would."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "tools"))
import api  # noqa: E402

pytestmark = pytest.mark.slow

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
MAC_BROWSER = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def page_of(notebook: Path) -> str:
    "The address of a notebook's page: numbers order the files and do not show."
    place = notebook.relative_to(NBS)
    return place.with_name(re.sub(r"^\d+[a-z]?_", "", place.stem) + ".html").as_posix()


def notebooks() -> list[Path]:
    return [f for f in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in f.parts]


PAGES = {page_of(n): n for n in notebooks()}


# ---- building, serving, visiting (once)


@pytest.fixture(scope="session")
def site() -> Path:
    if not shutil.which("quarto"):
        pytest.importorskip("smalldocs", reason="the site needs Quarto, or Python 3.11 for its stand-in")
    done = subprocess.run([sys.executable, ROOT / "tools" / "build_site.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_docs"


@pytest.fixture(scope="session")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, [*BROWSERS, MAC_BROWSER])), None)
    if found is None:
        message = "no Chromium or Chrome on PATH: the site's pages were not opened"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    "What one page showed and asked for."

    complaints: list[str]  # console errors, exceptions, failed requests
    foreign: list[str]  # requests to another host
    links: list[str]  # absolute addresses
    anchors: set[str]
    text: str  # visible text without code
    formulas: int
    display_formulas: int
    sidebar: list[str]


LOOK = """() => {
  const main = document.querySelector('main').cloneNode(true);
  main.querySelectorAll('pre, code, script, style, .cell-output').forEach(e => e.remove());
  const hrefs = q => [...document.querySelectorAll(q)].map(a => a.href);
  return {
    links: hrefs('a[href]'), sidebar: hrefs('#quarto-sidebar a[href]'),
    anchors: [...document.querySelectorAll('[id]')].map(e => e.id),
    text: main.textContent,
    formulas: document.querySelectorAll('main math').length,
    display_formulas: document.querySelectorAll('main math[display=block]').length,
  };
}"""


@pytest.fixture(scope="session")
def visits(address, browser) -> dict[str, Visit]:
    seen, names = {}, list(PAGES)
    context = browser.new_context(viewport={"width": 1300, "height": 900})

    def visit(name: str):
        page, complaints, foreign = context.new_page(), [], []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url}"))
        page.on("response", lambda r: complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
        page.goto(address + name)
        return name, page, complaints, foreign

    # Several pages stay open together, so that the half second without requests passes for all of them at once.
    for k in range(0, len(names), 8):
        for name, page, complaints, foreign in [visit(name) for name in names[k : k + 8]]:
            page.wait_for_load_state("networkidle")
            look = page.evaluate(LOOK)
            seen[name] = Visit(complaints, foreign, **{**look, "anchors": set(look["anchors"])})
            page.close()
    context.close()
    return seen


# ---- tests


def test_every_notebook_has_its_page_and_no_page_is_left_over(site):
    pages = {f.relative_to(site).as_posix() for f in site.rglob("*.html") if "site_libs" not in f.parts}
    assert pages == set(PAGES)


def test_no_console_error_and_no_failed_request(visits):
    assert {name: v.complaints for name, v in visits.items() if v.complaints} == {}


def test_no_page_asks_another_host(visits):
    assert {name: v.foreign for name, v in visits.items() if v.foreign} == {}


def test_no_dead_link(visits, address, site):
    dead = []
    for name, visit in visits.items():
        for link in visit.links:
            target, anchor = urldefrag(link)
            if not target.startswith(address):
                assert urlparse(link).scheme in ("http", "https", "mailto", "javascript", "data"), link
                continue
            path = unquote(target.removeprefix(address)) or "index.html"
            anchor = unquote(anchor)
            if path in visits:
                alive = not anchor or anchor in visits[path].anchors
            else:
                alive = (site / path).is_file()
            if not alive:
                dead.append(f"{name} → {path}{'#' + anchor if anchor else ''}")
    assert dead == []


def test_no_raw_tex_is_visible(visits):
    raw = re.compile(r"\\[A-Za-z(\[]\w*|\$\$|(?<!\w)\$[^\s$][^$\n]*\$|\{#eq-|@eq-|\]\{\.|:::")
    found = {name: raw.findall(visit.text) for name, visit in visits.items()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_formulas_are_typeset(visits):
    for name, visit in visits.items():
        cells = json.loads(PAGES[name].read_text(encoding="utf-8"))["cells"]
        prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.DOTALL)
        display = len(re.findall(r"\$\$.+?\$\$", prose, flags=re.DOTALL))
        if "$" in prose:
            assert visit.formulas > 0, name
        assert visit.display_formulas == display, name


def test_sidebar_is_complete_on_every_page(visits, address):
    for name, visit in visits.items():
        listed = [urldefrag(link)[0].removeprefix(address) for link in visit.sidebar]
        assert set(PAGES) <= set(listed), name


HAS_TABLE = """id => {
  const start = document.getElementById(id);
  if (!start) return 'no heading';
  if (start.tagName === 'SECTION') return start.querySelector('table.api') ? 'table' : 'no table';
  for (let e = start.nextElementSibling; e && !/^H[1-6]$/.test(e.tagName); e = e.nextElementSibling)
    if (e.matches('table.api') || e.querySelector('table.api')) return 'table';
  return 'no table';
}"""


def test_every_exported_symbol_has_its_table(address, browser, visits):
    page, missing = browser.new_page(), []
    for module in api.modules():
        page.goto(address + module.removeprefix("cegen.").replace(".", "/") + ".html")
        for symbol in api.symbols(module).values():
            for s in (symbol, *symbol.members):
                state = page.evaluate(HAS_TABLE, s.name.lower())
                if state == "no heading" or (state == "no table" and api.has_table(s)):
                    missing.append(f"{module}.{s.name}: {state}")
    page.close()
    assert missing == []


def test_search_finds_a_known_word_and_opens_it(address, browser, visits):
    if shutil.which("quarto"):
        pytest.skip("drives the search box of the stand-in renderer; this site was made by Quarto")
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(address + "core.html", wait_until="networkidle")
    page.locator("#quarto-search input").fill("check_finite")
    first = page.locator("#quarto-search .smalldocs-search-results a").first
    first.wait_for(state="visible", timeout=5000)
    assert "\\" not in page.locator("#quarto-search .smalldocs-search-results").inner_text()
    first.click()
    page.wait_for_load_state("networkidle")
    assert page.url.startswith(address + "core.html")
    assert "check_finite" in page.locator("main").inner_text()
    page.close()


CONTRAST = """() => {
  const parse = c => {
    const m = c.match(/[\\d.]+/g).map(Number), scale = c.startsWith('color(') ? 255 : 1;
    return [...m.slice(0, 3).map(v => v * scale), m.length < 4 ? 1 : m[3]];
  };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
  const grounds = new Map();
  const ground = e => {
    if (!e) return [255, 255, 255];
    if (!grounds.has(e)) {
      const c = parse(getComputedStyle(e).backgroundColor);
      grounds.set(e, c[3] === 1 ? c.slice(0, 3) : over(c, ground(e.parentElement)));
    }
    return grounds.get(e);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  for (const e of document.querySelectorAll('main *, #quarto-sidebar *, #TOC *, #quarto-header *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('svg, .cell-output, .anchorjs-link, [aria-hidden=true]')) continue;
    if (!e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const back = ground(e), fore = over(parse(getComputedStyle(e).color), back);
    const [hi, lo] = [light(fore), light(back)].sort((a, b) => b - a);
    const ratio = (hi + 0.05) / (lo + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} <${e.tagName.toLowerCase()} class="${e.className}"> ${e.textContent.trim().slice(0, 40)}`);
  }
  return { poor, ground: light(ground(document.body)) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in(scheme, address, browser, visits):
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 1300, "height": 900})
    page = context.new_page()
    for name in PAGES:
        page.goto(address + name)
        seen = page.evaluate(CONTRAST)
        assert (seen["ground"] > 0.5) == (scheme == "light"), f"{name} does not follow the reader's {scheme} scheme"
        assert seen["poor"] == [], name
    context.close()


def test_light_and_dark_can_be_switched_by_hand(address, browser, visits):
    context = browser.new_context(
        color_scheme="light", reduced_motion="reduce", viewport={"width": 1300, "height": 900}
    )
    page = context.new_page()
    page.goto(address + "core.html", wait_until="networkidle")
    before = page.evaluate(CONTRAST)["ground"]
    page.locator(".quarto-color-scheme-toggle").first.click()
    page.wait_for_timeout(500)
    after = page.evaluate(CONTRAST)["ground"]
    assert before > 0.5 > after
    context.close()


def test_no_page_is_wider_than_a_phone(address, browser, visits):
    context = browser.new_context(viewport={"width": 400, "height": 800})
    page, wide = context.new_page(), {}
    for name in PAGES:
        page.goto(address + name)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 400:
            wide[name] = width
    context.close()
    assert wide == {}
