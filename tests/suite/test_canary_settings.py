"""Every program started with secrets that cannot work: it names their variables and shows none of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from shared import dsn, startup
from suite.migrate import LOGINS, SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
MARK = "cNrYd41d8cd98f"  # too short for a key
KEYS = ("GATEWAY_SECRET", "OPERATOR_SECRET", "ROOM_SECRET")
SHORT = dict.fromkeys((*KEYS, "LOG_LEVEL"), MARK)
GOOD = {name: f"a-good-key-{name}" for name in KEYS}
NO_ADDRESSES = (
    *(MARK, f"mysql://u:{MARK}@127.0.0.1/x", f"postgresql://u:{MARK}@127.0.0.1:port/x"),
    *(f"postgresql://u:{MARK}%zz@127.0.0.1/x", f"postgresql://u:{MARK}@[127.0.0.1/x"),
    *(f"postgresql://u:p@{MARK}@127.0.0.1:1/x", f"postgresql://u:{MARK}/p@127.0.0.1:1/x"),
    *(f"postgresql://u:12/{MARK}@127.0.0.1:1/x", f"postgresql://u:p:{MARK}@127.0.0.1:1/x#{MARK}@"),
    *(f"postgresql://u:p@127.0.0.1:1/x?{MARK}={MARK}", f"host='{MARK}", f"port={MARK}", f"host=a@{MARK}"),
)
NO_SERVERS = (
    f"postgresql://u:{MARK}@127.0.0.1:1/x",
    f"host=127.0.0.1 port=1 password={MARK}",
    f"postgresql://u:{MARK}%40%2F%3A@127.0.0.1:1/x",
)
PROGRAMS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "services.ledger": (SHORT, KEYS),
    "services.scheduler": (SHORT, KEYS),
    "services.subscriptions": (
        {**SHORT, "RAZORPAY_API_URL": MARK, "RAZORPAY_MODE": MARK, "BILLING_NOTIFICATION_WEBHOOK_URL": MARK},
        (*KEYS, "RAZORPAY_API_URL", "RAZORPAY_MODE", "BILLING_NOTIFICATION_WEBHOOK_URL"),
    ),
    "services.webhooks": (
        {
            **SHORT,
            "RAZORPAY_WEBHOOK_SECRET": f" {MARK} ",
            "RAZORPAY_WEBHOOK_SECRET_PREVIOUS": MARK,
            "WEBHOOKS_ENDPOINTS": f'{{"shop": {{"secrets": ["{MARK}"]',
        },
        (*KEYS, "RAZORPAY_WEBHOOK_SECRET_PREVIOUS", "WEBHOOKS_ENDPOINTS"),
    ),
    "services.webhooks with endpoints": (
        {
            **GOOD,
            "WEBHOOKS_DATABASE_URL": NO_SERVERS[0],
            "RAZORPAY_WEBHOOK_SECRET": MARK,
            "WEBHOOKS_ENDPOINTS": json.dumps(
                {
                    "shop": {
                        "account_id": f"{MARK} {MARK}",
                        "mode": MARK,
                        "secrets": [MARK, MARK],
                        MARK: "more",
                    }
                }
            ),
        },
        ("WEBHOOKS_ENDPOINTS",),
    ),
    "sandbox": ({"RAZORPAY_KEY_ID": MARK, "SANDBOX_LISTEN": MARK, "RAZORPAY_WEBHOOK_SECRET": MARK}, ()),
    "suite run": ({"DATABASE_URL": f"postgresql://u:{MARK}%zz@127.0.0.1/x"}, ("DATABASE_URL",)),
    "suite run without a server": ({"DATABASE_URL": NO_SERVERS[0]}, ("DATABASE_URL",)),
    "suite migrate": (
        dict.fromkeys((*LOGINS.values(), "DATABASE_URL"), f"postgresql://{MARK}@127.0.0.1/x"),
        (*LOGINS.values(),),
    ),
    "suite migrate without a server": (
        {
            **{variable: f"postgresql://{role}:{MARK}@h/x" for role, variable in LOGINS.items()},
            "DATABASE_URL": NO_SERVERS[0],
        },
        ("DATABASE_URL",),
    ),
}


async def ended(program: str, settings: dict[str, str], folder: Path) -> tuple[int | None, str]:
    """(its exit status, all that it said)"""
    arguments = program.partition(" with")[0].split()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "BILLING_DATA_DIR": str(folder), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, said.decode()


@pytest.mark.parametrize("program", PROGRAMS)
async def test_what_is_wrong_is_named_and_not_shown(program: str, tmp_path: Path) -> None:
    settings, names = PROGRAMS[program]

    status, said = await ended(program, settings, tmp_path)

    assert status not in (0, None)
    assert "Traceback" not in said
    assert MARK not in said
    for name in names:
        assert name in said


@pytest.mark.parametrize("address", [*NO_ADDRESSES, *NO_SERVERS])
def test_no_address_is_quoted(address: str) -> None:
    with pytest.raises(SystemExit) as refused:
        startup.check(address, SCHEMAS[1], test_clock=False)

    assert str(refused.value).startswith("LEDGER_DATABASE_URL: ")
    assert MARK not in str(refused.value)


@pytest.mark.parametrize("address", NO_ADDRESSES[2:])
def test_what_is_no_address_is_told_before_anybody_is_asked(address: str) -> None:
    assert dsn.address_flaw(address)


@pytest.mark.parametrize(
    "address",
    [
        *NO_SERVERS,
        "postgresql://u@h-1.example:5432/billing_live?sslmode=require",
        "postgresql://u:p@[::1]:5432/x",
        "postgresql://u:p@a,b:1,2/x",
        "postgresql:///x?host=/var/run/postgresql",
    ],
)
def test_what_can_be_an_address_passes(address: str) -> None:
    assert dsn.address_flaw(address) is None
