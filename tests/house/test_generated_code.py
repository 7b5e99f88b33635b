"""gen/ is what the contracts say, and making it anew is safe at any time."""

import subprocess
import sys
from pathlib import Path

import pytest

from suite import codegen
from tests.house.house import ROOT


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_current(tmp_path: Path) -> None:
    codegen.generate(tmp_path)

    fresh, committed = contents(tmp_path), contents(ROOT / "gen")
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    assert not stale, f"run `make proto` and commit gen/: {stale}"


def test_a_file_of_a_contract_that_is_gone_goes_too(tmp_path: Path) -> None:
    left_over = tmp_path / "billing/gone/v1/gone_pb2.py"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("")

    changed = codegen.run(tmp_path)

    assert "billing/gone/v1/gone_pb2.py" in changed
    assert contents(tmp_path) == contents(ROOT / "gen")


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    codegen.run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}

    assert codegen.run(tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")} == before


def test_many_at_once_leave_one_whole_tree(tmp_path: Path) -> None:
    together = [
        subprocess.Popen(
            [sys.executable, "-m", "suite.codegen", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for _ in range(4)
    ]

    assert [one.wait(timeout=60) for one in together] == [0, 0, 0, 0]
    assert contents(tmp_path) == contents(ROOT / "gen")


def test_a_broken_contract_is_named_by_file_and_line_and_changes_nothing(tmp_path: Path) -> None:
    contracts = tmp_path / "proto"
    contracts.mkdir()
    (contracts / "broken.proto").write_text('syntax = "proto3";\nmessage Broken {\n  strin name = 1;\n}\n')
    target = tmp_path / "gen"
    target.mkdir()

    with pytest.raises(codegen.CodegenError, match=r"broken\.proto:3:3: \"strin\" is not defined"):
        codegen.run(target, contracts)

    assert contents(target) == {}
