"""Loaded by pytest beside the previous release's tests: every database they migrate gets the newer schema.

A copy of this file lies in the previous release's folder; it may import that release and nothing of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import suite.migrate
from suite.migrate import LOGINS

NEWER_HOUSE = os.environ["NEWER_HOUSE"]


def migrate(admin_url: str, passwords: Mapping[str, str]) -> list[str]:
    """As `suite.migrate.migrate`, by the newer release's code and with its migrations."""
    address = urlsplit(admin_url)
    place = f"{address.hostname}:{address.port}"
    urls = {
        variable: address._replace(netloc=f"{role}:{quote(passwords[role], safe='')}@{place}").geturl()
        for role, variable in LOGINS.items()
    }
    told = subprocess.run(
        [sys.executable, "-m", "suite", "migrate"],
        cwd=NEWER_HOUSE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([NEWER_HOUSE, os.path.join(NEWER_HOUSE, "gen")]),
            "DATABASE_URL": admin_url,
            **urls,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        raise RuntimeError(f"the newer release could not migrate:\n{told.stdout}{told.stderr}")
    return [line.removeprefix("applied ") for line in told.stdout.splitlines()]


suite.migrate.migrate = migrate
