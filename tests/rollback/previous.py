"""The release before this one: its files in a folder, and what its programs are started with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.suite.running import HOUSE

NOTE = HOUSE / "deploy" / "PREVIOUS_RELEASE"
PLUGIN = "newer_schema"
# Where the plugin, which runs among the previous release's tests, finds the migrations of this one.
NEWER_HOUSE = "NEWER_HOUSE"


def release() -> str:
    """The commit of the release that a rollback goes back to."""
    return os.environ.get("PREVIOUS") or NOTE.read_text().strip()


def why_not(commit: str) -> str | None:
    """Why its files cannot be had here; None if they can."""
    try:
        _git("cat-file", "-e", f"{commit}^{{commit}}")
    except FileNotFoundError:
        return "git is not installed, and the previous release is in its history"
    except subprocess.CalledProcessError:
        return f"the history of this checkout does not have {commit[:12]}: fetch it (git fetch --unshallow)"
    return None


def unpack(commit: str, into: Path) -> Path:
    """Its files as they were committed: no work tree, so that this checkout's git never knows of them."""
    into.mkdir(parents=True)
    archive = into.with_suffix(".tar")
    _git("archive", "--format=tar", f"--output={archive}", commit)
    subprocess.run(["tar", "-xf", archive, "-C", into], check=True)
    archive.unlink()
    # Pages type .venv/bin; the packages of both releases are the same unless the locks differ.
    (into / ".venv").symlink_to(HOUSE / ".venv")
    return into


def text(commit: str, place: str) -> str:
    """One of its files."""
    return _git("show", f"{commit}:{place}").decode()


def environment(house: Path) -> dict[str, str]:
    """For a Python that runs the code of that folder and none of ours."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **own,
        "PYTHONPATH": os.pathsep.join([str(house), str(house / "gen")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def among_its_tests(house: Path) -> dict[str, str]:
    """The same, and its tests find their databases migrated by this checkout."""
    plugin = Path(__file__).with_name(f"{PLUGIN}.py")
    (house / plugin.name).write_bytes(plugin.read_bytes())
    told = environment(house)
    for name in ("TEST_CLUSTER", "TESTS", "MAKEFLAGS"):
        told.pop(name, None)
    return told | {"PYTEST_PLUGINS": PLUGIN, NEWER_HOUSE: str(HOUSE)}


def _git(*arguments: str) -> bytes:
    # Root in a container is often not the owner of the checkout, and git would refuse to read it.
    trusted = ["-c", f"safe.directory={HOUSE}"]
    told = subprocess.run(["git", *trusted, "-C", HOUSE, *arguments], check=True, capture_output=True)
    return told.stdout
