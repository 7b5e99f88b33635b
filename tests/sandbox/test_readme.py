"""The sandbox's own README, typed as it is printed."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.sandbox.running import ROOT, free_port, until

README = ROOT / "sandbox" / "README.md"
PRINTED_AT = "127.0.0.1:8090"
VARYING = ((re.compile(r"\b(sub|pay)_[A-Za-z0-9]{14}"), r"\1_…"),)


def section(title: str) -> str:
    """The README's text under a heading."""
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str) -> list[tuple[str, str, str]]:
    """Language, what to type, and what the README says comes of it."""
    typed: list[tuple[str, str, str]] = []
    for kind, content in re.findall(r"^```(\w+)\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL):
        if kind == "text":
            typed[-1] = (*typed[-1][:2], content)
        else:
            typed.append((kind, content, ""))
    return typed


def without_what_varies(text: str) -> str:
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return text.strip()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def typed_in_shell(block: str) -> str:
    told = subprocess.run(["sh", "-c", block], capture_output=True, text=True, timeout=30, check=True)
    return told.stdout


def test_the_tour_answers_what_the_readme_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"127.0.0.1:{free_port()}"
    (_, start, _), *rest = blocks("Ten minutes with it")
    environment = {"PATH": os.environ["PATH"], "SANDBOX_LISTEN": here, "LOG_LEVEL": "error"}
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    session: dict[str, Any] = {"__name__": "tour"}
    # The interpreter that runs this test has what the README's has.
    command = start.replace(".venv/bin/python", f"exec {sys.executable}")
    with subprocess.Popen(["sh", "-c", command], cwd=ROOT, env=environment) as running:
        try:
            until(lambda: answers(f"http://{here}"), 20)
            told = [typed(kind, block.replace(PRINTED_AT, here), session) for kind, block, _ in rest]
        finally:
            running.terminate()

    for (_, block, expected), answer in zip(rest, told, strict=True):
        assert without_what_varies(answer.replace(here, PRINTED_AT)) == without_what_varies(expected), block
    assert len(rest) == 7


def typed(kind: str, block: str, names: dict[str, Any]) -> str:
    """What comes of typing it: Python in one session, the shell in a new one."""
    if kind == "sh":
        return typed_in_shell(block)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, str(README), "exec"), names)  # noqa: S102 - the README is ours
    return said.getvalue()


def test_the_readmes_test_passes_as_it_is_printed(tmp_path: Path) -> None:
    [(_, printed, _)] = blocks("In a test suite")
    (tmp_path / "test_shop.py").write_text(printed.replace("127.0.0.1:8099", f"127.0.0.1:{free_port()}"))

    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_shop.py"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "LOG_LEVEL": "error"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (told.returncode, "1 passed" in told.stdout) == (0, True), told.stdout + told.stderr
