"""What the package offers, read from its source: symbols, parameters with shape, default and description. And their tables."""

import ast
import html
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cegen"


@dataclass
class Parameter:
    "One argument or field; the return value has an empty name."

    name: str
    type: str
    default: str
    text: str


@dataclass
class Symbol:
    "A function, class, method or property of the package."

    name: str  # qualified within its module, such as `Head.forward`
    module: str
    line: int
    kind: str  # "function", "class" or "property"
    docstring: str
    parameters: list[Parameter]
    returns: Parameter | None = None
    bases: list[str] = field(default_factory=list)
    members: list["Symbol"] = field(default_factory=list)


def modules() -> dict[str, Path]:
    "The exported modules by dotted name; __init__ and nbdev's index are not among them."
    files = sorted(f for f in PACKAGE.rglob("*.py") if not f.name.startswith("_"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def exported(tree: ast.Module) -> list[str]:
    "The names in a module's __all__; raises `LookupError` if it has none."
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    raise LookupError("no __all__")


@cache
def symbols(module: str) -> dict[str, Symbol]:
    "Every public function and class of a module, by name, methods within their class."
    source = modules()[module].read_text(encoding="utf-8")
    tree = ast.parse(source)
    reader = _Reader(module, source)
    public = set(exported(tree))
    found = [reader.read(node) for node in tree.body if getattr(node, "name", None) in public]
    return {symbol.name: symbol for symbol in found}


class _Reader:
    "Turns syntax trees of one file into symbols."

    def __init__(self, module: str, source: str):
        self.module, self.lines = module, [line.encode() for line in source.split("\n")]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}

    def text(self, node: ast.AST | None) -> str:
        "The source of a node on one line. Columns of a tree count bytes."
        if node is None:
            return ""
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return re.sub(r"\s+", " ", b"\n".join(lines).decode())

    def read(self, node: ast.AST, owner: str = "") -> Symbol:
        symbol = Symbol(owner + node.name, self.module, node.lineno, "function", ast.get_docstring(node) or "", [])
        if isinstance(node, ast.ClassDef):
            self.read_class(symbol, node)
        else:
            decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
            symbol.kind = "property" if decorators & {"property", "cached_property"} else "function"
            bound = bool(owner) and "staticmethod" not in decorators
            symbol.parameters = self.arguments(node.args, skip_first=bound)
            if node.returns is not None and self.text(node.returns) != "None":
                comment = self.comments.get(node.returns.end_lineno, "")
                symbol.returns = Parameter("", self.text(node.returns), "", comment)
        return symbol

    def read_class(self, symbol: Symbol, node: ast.ClassDef) -> None:
        symbol.kind, symbol.bases = "class", [self.text(base) for base in node.bases]
        functions = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        init = next((n for n in functions if n.name == "__init__"), None)
        if init is not None:
            symbol.parameters = self.arguments(init.args, skip_first=True)
        else:
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
            symbol.parameters = [self.parameter(n, n.target.id, n.annotation, n.value) for n in fields]
        symbol.members = [
            self.read(n, f"{node.name}.")
            for n in functions
            if (not n.name.startswith("_") or n.name == "__call__") and ast.get_docstring(n)
        ]

    def arguments(self, args: ast.arguments, skip_first: bool) -> list[Parameter]:
        plain = [*args.posonlyargs, *args.args]
        defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
        pairs = list(zip(plain, defaults, strict=True))[int(skip_first) :]
        found = [self.parameter(a, a.arg, a.annotation, d) for a, d in pairs]
        if args.vararg:
            found.append(self.parameter(args.vararg, f"*{args.vararg.arg}", args.vararg.annotation, None))
        found += [
            self.parameter(a, a.arg, a.annotation, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        ]
        if args.kwarg:
            found.append(self.parameter(args.kwarg, f"**{args.kwarg.arg}", args.kwarg.annotation, None))
        return found

    def parameter(self, node: ast.AST, name: str, annotation: ast.AST | None, default: ast.AST | None) -> Parameter:
        last = max(n.end_lineno for n in (node, annotation, default) if n is not None)
        comment = self.comments.get(last) or self.comments.get(node.lineno, "")
        kind = self.text(annotation)
        if isinstance(annotation, ast.Subscript) and self.text(annotation.value) == "Annotated":  # a command's option
            bare, option = annotation.slice.elts[:2]
            kind = self.text(bare)
            helps = [k.value.value for k in getattr(option, "keywords", []) if k.arg == "help"]
            comment = comment or (helps[0] if helps else "")
        return Parameter(name, kind, self.text(default), comment)


def lookup(name: str, module: str | None = None) -> Symbol | None:
    "The symbol of that name, in `module` first; methods as `Class.method`."
    owner, _, member = name.partition(".")
    for candidate in sorted(modules(), key=lambda m: m != module):
        symbol = symbols(candidate).get(owner)
        if symbol is not None:
            return next((m for m in symbol.members if m.name == name), None) if member else symbol
    return None


def has_table(symbol: Symbol) -> bool:
    "Whether there is more to say than the type of a value, which the signature says."
    return bool(symbol.parameters or (symbol.returns and symbol.returns.text))


def table(symbol: Symbol) -> str:
    "The HTML table of a symbol's parameters and return value; empty if a table would say nothing."
    if not has_table(symbol):
        return ""
    rows = [*symbol.parameters, *([symbol.returns] if symbol.returns else [])]
    with_default = any(row.default for row in rows)

    def code(text: str) -> str:
        return f"<code>{html.escape(text)}</code>" if text else ""

    def words(text: str) -> str:
        return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))

    head = ["", "Type", "Default", "Description"] if with_default else ["", "Type", "Description"]
    body = []
    for row in rows:
        cells = [code(row.name) or "<em>returns</em>", code(row.type), code(row.default), words(row.text)]
        body.append(cells if with_default else [*cells[:2], cells[3]])
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    header = "".join(f"<th>{name}</th>" for name in head)
    return "\n".join(
        ['<table class="api table">', f"<thead><tr>{header}</tr></thead>", "<tbody>", *lines, "</tbody>", "</table>"]
    )


def signature(symbol: Symbol) -> str:
    "How to call it, in one line or, if that is long, a line for each argument."
    shown = [p.name + (f"={p.default}" if p.default else "") for p in symbol.parameters]
    value = f" -> {symbol.returns.type}" if symbol.returns and not has_table(symbol) else ""
    if symbol.kind == "property":
        return symbol.name + value
    if symbol.kind == "class":
        head = f"class {symbol.name}"
        if not shown:
            return head + (f"({', '.join(symbol.bases)})" if symbol.bases else "")
    else:
        head = symbol.name
    line = f"{head}({', '.join(shown)}){value}"
    return line if len(line) <= 78 else f"{head}(\n    " + ",\n    ".join(shown) + ",\n)"


def documentation(symbol: Symbol, level: int, repo: str, skip: frozenset[str] = frozenset()) -> str:
    "Markdown for a symbol and its members: heading, source link, signature, docstring, table."
    path = modules()[symbol.module].relative_to(ROOT).as_posix()
    name = symbol.name.replace("__", r"\_\_")  # else Markdown makes __call__ bold
    parts = [
        f"{'#' * level} {name}",
        f'[source]({repo}/{path}#L{symbol.line}){{.api-source target="_blank"}}',
        f"```python\n{signature(symbol)}\n```",
        symbol.docstring,
        table(symbol),
        *(documentation(m, level + 1, repo) for m in symbol.members if m.name not in skip),
    ]
    return "\n\n".join(part for part in parts if part)
