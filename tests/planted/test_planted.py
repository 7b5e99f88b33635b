"""The planted bugs still fit the code, and the quick ones are still noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted import patching
from tests.planted.bugs import BUGS, HERE, QUICK, Bug
from tests.planted.planting import ROOT, plant


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_patch_fits_the_code(bug: Bug, tmp_path: Path) -> None:
    names = [name for name, _ in patching.files(bug.patch.read_text())]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())

    changed = patching.apply(bug.patch, tmp_path)

    for file in changed:
        before = (ROOT / file.relative_to(tmp_path)).read_text()
        assert file.read_text() != before
        compile(file.read_text(), str(file), "exec")


def test_every_patch_has_its_tests_and_every_test_is_there() -> None:
    assert {bug.patch.name for bug in BUGS} == {path.name for path in HERE.glob("*.patch")}
    for bug in BUGS:
        assert bug.caught_by
        for test in bug.caught_by:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), test


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    verdict = plant(bug)

    assert verdict.caught, verdict.output
    assert "1 failed" in verdict.output
