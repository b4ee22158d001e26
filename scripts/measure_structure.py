"""Measure how readable the package is: layout, names, docstrings, comments and function lengths.

    python scripts/measure_structure.py [CHECKOUT ...]

Prints one row for each figure and one column for each checkout, so that two versions stand side by side. Reads the
source as text and a syntax tree; only the last row runs code: one chat call to a stand-in server, in a child process.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PARTICIPLES = frozenset(
    (
        *(
            "asked",
            "bound",
            "built",
            "caught",
            "chosen",
            "done",
            "drawn",
            "fed",
            "felt",
            "found",
            "given",
            "gone",
            "had",
        ),
        *(
            "heard",
            "held",
            "hidden",
            "kept",
            "known",
            "laid",
            "left",
            "lent",
            "lost",
            "made",
            "meant",
            "met",
            "paid",
            "said",
        ),
        *("seen", "sent", "shown", "sold", "spent", "spoken", "stood", "sunk", "taken", "taught", "thought", "thrown"),
        *("told", "torn", "understood", "won", "worn", "written"),
    )
)
"""Irregular participles. Names whose first word ends in -ed count too, except `VERBS`."""

VERBS = frozenset(("embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed"))
"""Verbs that end in -ed."""

HEADLESS = re.compile(r"(What|Who|Whoever|Of|As which)\b")
AMBIGUOUS_LENGTH = 2
CHAT = """
import sys
import llmkit
from llmkit.testing import OllamaServer
before = set(sys.modules)
with OllamaServer() as server:
    before = {name for name in sys.modules if name.split('.')[:2] == ['llmkit', 'testing']}
    with llmkit.Session("w", ollama_api_base=server.url, database_url="sqlite:///chat.db") as session:
        session.chat("Hello", route="ollama/llama3.2")
        print(sum(name == 'llmkit' or name.startswith('llmkit.') for name in set(sys.modules) - before))
"""


@dataclass
class Source:
    """The package of one checkout, parsed."""

    root: Path
    trees: dict[str, ast.Module] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted((self.root / "llmkit").rglob("*.py")):
            name = ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")
            self.texts[name] = path.read_text(encoding="utf-8")
            self.trees[name] = ast.parse(self.texts[name])

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Functions and methods, nested ones included."""
        return [
            node
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]

    @cached_property
    def classes(self) -> dict[str, set[str]]:
        """Modules in which each class name is defined."""
        found: dict[str, set[str]] = defaultdict(set)
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    found[node.name.strip("_")].add(module)
        return found

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Modules of the package that each module imports, lazy and type-only imports included."""
        return {name: {target for target in self._targets(tree) if target != name} for name, tree in self.trees.items()}

    def _targets(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.trees)
            elif isinstance(node, ast.ImportFrom) and node.module in self.trees:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in self.trees else node.module


def is_participle(name: str) -> bool:
    """Tell whether a function is named by a past participle (`_told`, `rows_of_failed`) instead of a verb."""
    words = name.strip("_").split("_")
    first = words[0]
    if first in VERBS or first in {"is", "has", "are", "was"}:
        return False
    return first in PARTICIPLES or (len(first) > 3 and first.endswith("ed"))


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Find groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return groups


def rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Fold modules into the files and folders at the top of the package, and imports into arrows between them."""
    folded: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        room = ".".join(name.split(".")[:2])
        folded[room] |= {".".join(target.split(".")[:2]) for target in targets} - {room}
        for target in targets:
            folded[".".join(target.split(".")[:2])] |= set()
    folded.pop("llmkit", None)
    return {room: targets - {"llmkit"} for room, targets in folded.items()}


def depth(graph: Mapping[str, set[str]]) -> int:
    """Count the floors: the longest chain of imports, each part of a cycle counted once."""
    seen: dict[str, int] = {}

    def floors(node: str, way: frozenset[str]) -> int:
        if node not in seen:
            seen[node] = 1 + max((floors(each, way | {node}) for each in graph[node] if each not in way), default=0)
        return seen[node]

    return max(floors(node, frozenset()) for node in graph)


def quantiles(values: list[int]) -> str:
    """Write p50/p90/p99/max."""
    ordered = sorted(values)
    return "/".join(str(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for share in (0.5, 0.9, 0.99, 1))


def count_comments(text: str) -> int:
    """Count the comments of one module, without type and lint directives."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(
        token.type == tokenize.COMMENT and not re.match(r"# *(noqa|type:|fmt:|pragma)", token.string)
        for token in tokens
    )


def docstrings(source: Source) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions."""
    for tree in source.trees.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
                doc := ast.get_docstring(node)
            ):
                yield doc


def modules_of_a_chat(root: Path) -> str:
    """Count llmkit's modules in a process that made one chat call, without those of its stand-in server."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-c", CHAT], capture_output=True, text=True, cwd=folder, check=False,
            env={"PYTHONPATH": str(root), "PATH": "", "LLM_WARM_UP": "false", "HOME": folder},
        )  # fmt: skip
    return ran.stdout.strip() or f"failed: {ran.stderr.strip().splitlines()[-1]}"


def measure(root: Path) -> dict[str, str]:
    """Measure one checkout."""
    source = Source(root)
    lines = sum(text.count("\n") for text in source.texts.values())
    participles = [node.name for node in source.functions if is_participle(node.name)]
    ambiguous = {name for name, modules in source.classes.items() if len(modules) >= AMBIGUOUS_LENGTH}
    docs = list(docstrings(source))
    return {
        "lines": f"{lines:,}",
        "top-level modules (without __init__ and __main__)": str(
            sum(not path.name.startswith("__") for path in (root / "llmkit").glob("*.py"))
        ),
        "top-level packages": str(sum((path / "__init__.py").exists() for path in (root / "llmkit").iterdir())),
        "import depth, files and folders at the top": str(depth(rooms(source.imports))),
        "import depth, single modules": str(depth(source.imports)),
        "import cycles, lazy and type-only imports included": str(len(cycles(source.imports))),
        "functions": f"{len(source.functions):,}",
        "functions named by a past participle": f"{len(participles)} ({len(participles) / len(source.functions):.1%})",
        "class names used for two things": str(len(ambiguous)),
        "docstrings": f"{len(docs):,}",
        "docstrings that begin with What, Who, Of, As which": str(sum(bool(HEADLESS.match(doc)) for doc in docs)),
        "comments, % of lines": f"{100 * sum(map(count_comments, source.texts.values())) / lines:.1f}",
        "functions per 1,000 lines": f"{1000 * len(source.functions) / lines:.0f}",
        "function lengths p50/p90/p99/max": quantiles(
            [(node.end_lineno or 0) - node.lineno + 1 for node in source.functions]
        ),
        "modules loaded by one chat call": modules_of_a_chat(root),
    }


def main() -> None:
    """Print the table."""
    roots = [Path(name).resolve() for name in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    figures = [measure(root) for root in roots]
    width = max(map(len, figures[0]))
    print(" " * width, *(f"{root.name:>16}" for root in roots))
    for name in figures[0]:
        print(f"{name:<{width}}", *(f"{each[name]:>16}" for each in figures))


if __name__ == "__main__":
    main()
