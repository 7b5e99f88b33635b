"""Generates Python from the contracts: `python -m suite.codegen gen` makes gen/ exactly what proto/ says."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "proto"
THIRD_PARTY = ROOT / "third_party"
VALIDATION = "buf/validate/validate.proto"


class CodegenError(Exception):
    """A contract does not compile; the message is the compiler's own, with file and line."""


def generate(into: Path, contracts: Path = CONTRACTS) -> None:
    """Fills an empty folder with the code of every contract."""
    files = sorted(str(path.relative_to(contracts)) for path in contracts.rglob("*.proto"))
    plugins = Path(sys.executable).parent
    command = [
        sys.executable,
        *("-m", "grpc_tools.protoc"),
        f"-I{contracts}",
        f"-I{THIRD_PARTY}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        # Concrete, because a servicer may leave an RPC out: gRPC then answers UNIMPLEMENTED for it.
        f"--mypy_grpc_out=quiet,only_async,generate_concrete_servicer_stubs:{into}",
        *files,
        VALIDATION,
    ]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if compiled.returncode:
        raise CodegenError(compiled.stderr.replace(f"{ROOT}/", "").strip())
    # protoc makes no packages; mypy tells two modules of one name apart only by them.
    for folder in {path.parent for path in into.rglob("*.py")}:
        for package in [folder, *folder.parents]:
            if package == into:
                break
            (package / "__init__.py").touch()


def sync(source: Path, target: Path) -> list[str]:
    """Makes the target's files those of the source, touching only what differs; returns what changed."""
    wanted, present = dict(_files(source)), dict(_files(target))
    changed = [name for name, path in wanted.items() if name not in present or _differ(path, present[name])]
    for name in changed:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # A rename, so that nobody who imports meanwhile reads half a file.
        partial = target / f"{name}.{os.getpid()}.part"
        partial.write_bytes(wanted[name].read_bytes())
        partial.replace(target / name)
    stale = sorted(present.keys() - wanted.keys())
    for name in stale:
        (target / name).unlink()
    return sorted(changed) + stale


def run(target: Path, contracts: Path = CONTRACTS) -> list[str]:
    """Brings the target up to date with the contracts; one at a time, so the last one in wins whole."""
    target.mkdir(parents=True, exist_ok=True)
    with _only_one(target), tempfile.TemporaryDirectory(prefix="codegen-") as fresh:
        generate(Path(fresh), contracts)
        return sync(Path(fresh), target)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder)), path


def _differ(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """The command: a folder to generate into, gen by default."""
    target = Path(arguments[0]) if arguments else ROOT / "gen"
    try:
        changed = run(target)
    except CodegenError as broken:
        print(broken, file=sys.stderr)
        return 1
    print(f"{target.name}: {len(changed)} changed" if changed else f"{target.name}: up to date")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
