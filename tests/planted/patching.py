"""A unified diff applied without any tool: each hunk's old lines must stand in its file exactly once."""

from __future__ import annotations

from pathlib import Path


class DoesNotApply(Exception):
    """The code has moved on; the patch has to follow."""


def apply(patch: Path, root: Path) -> list[Path]:
    """Changes the files below `root`; the changed ones."""
    changed = []
    for name, hunks in files(patch.read_text()):
        file = root / name
        text = file.read_text() if file.exists() else ""
        for old, new in hunks:
            if text.count(old) != 1:
                raise DoesNotApply(f"{patch.name}: {text.count(old)} places in {name} have the lines\n{old}")
            text = text.replace(old, new)
        file.write_text(text)
        changed.append(file)
    if not changed:
        raise DoesNotApply(f"{patch.name} changes nothing")
    return changed


def files(diff: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(file, its hunks as what stood there and what stands there instead)"""
    files: list[tuple[str, list[tuple[str, str]]]] = []
    for line in diff.splitlines(keepends=True):
        if line.startswith("--- "):
            continue
        if line.startswith("+++ b/"):
            files.append((line.removeprefix("+++ b/").split("\t")[0].strip(), []))
        elif line.startswith("@@"):
            files[-1][1].append(("", ""))
        else:
            hunks = files[-1][1]
            old, new = hunks[-1]
            sign, rest = line[0], line[1:]
            hunks[-1] = (old + rest * (sign in " -"), new + rest * (sign in " +"))
    return files
