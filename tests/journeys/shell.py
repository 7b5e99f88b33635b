"""A page's commands typed into a shell beside a running suite, whatever ports it has."""

import re
import subprocess

from suite import addresses
from tests.suite.running import HOUSE, RunningSuite


def _moved(suite: RunningSuite) -> dict[str, str]:
    runtime = suite.runtime
    here = dict(runtime["addresses"])
    here |= {name: runtime[f"{name}_url"].removeprefix("http://") for name in ("sandbox", "webhooks_http")}
    return {addresses.DEFAULTS[name]: place for name, place in here.items()}


def typed(suite: RunningSuite, script: str) -> subprocess.CompletedProcess[str]:
    """What came of the commands."""
    places = _moved(suite)
    script = re.sub(r"127\.0\.0\.1:\$1", "$1", script)
    script = re.sub(
        r"\b127\.0\.0\.1:(\d{4,5})\b|\b(\d{4,5})(?=/)",
        lambda found: places.get(f"127.0.0.1:{found[1] or found[2]}", found[0]),
        script,
    )
    environment = {
        name: value
        for name, value in suite.environment.items()
        if not re.search("proxy|^MAKE|^MFLAGS", name, re.IGNORECASE)
    }
    return subprocess.run(
        ["sh"],
        input=script,
        cwd=HOUSE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
