"""What the laws are read against: our Python files as syntax trees, our text files as text."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("services", "shared", "suite", "sandbox", "billctl")
ROOMS = ("ledger", "subscriptions", "webhooks", "scheduler")
# Not ours: version control, the environment, what tools and runs leave behind.
LEAVINGS = {"__pycache__", "build"}


@dataclass(frozen=True)
class Module:
    """One Python file."""

    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        """`services/ledger/rpc.py`."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def name(self) -> str:
        """`services.ledger.rpc`; a package goes by its own name."""
        return self.place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str | None:
        """`ledger` for everything below services/ledger."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "services" and len(parts) > 1 else None

    @property
    def layer(self) -> str | None:
        """`rules` for services/ledger/rules.py and everything below services/ledger/rules/."""
        parts = self.name.split(".")
        return parts[2] if self.room and len(parts) > 2 else None

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every imported name in full, `shared.clock.now` rather than `shared.clock`, with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])


def within(name: str, *packages: str) -> bool:
    """True for `a.b.c` within `a.b` or `a.b.c`, never for `a.bc` within `a.b`."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def modules(*folders: str) -> tuple[Module, ...]:
    """Every Python file below the folders, in order."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(Module(path, ast.parse(path.read_bytes(), str(path))) for path in paths)


@cache
def text_files() -> tuple[tuple[str, str], ...]:
    """Every text file of the repository: (place, text)."""
    return tuple(_texts(ROOT))


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name in LEAVINGS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            if not path.name.startswith(".") or path.name == ".ci":
                yield from _texts(path)
        elif path.name not in {".env"}:
            try:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
