"""Which of a person's settings reach which program."""

from dataclasses import replace
from pathlib import Path

import pytest

from suite import addresses
from suite.files import DataFolder, Secrets
from suite.migrate import LOGINS
from suite.rooms import PROGRAMS, World


def environments(monkeypatch: pytest.MonkeyPatch, **told: str) -> dict[str, dict[str, str]]:
    """What each program would be started with, where somebody sets these."""
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    world = World(
        listen=addresses.DEFAULTS,
        database_urls=dict.fromkeys(LOGINS, "postgresql://"),
        secrets=Secrets("gateway", "operator", "room", "id", "key", "webhook", role_passwords={}),
        log_level="info",
        data_dir=Path("data"),
    )
    return {program.name: world.environment(program) for program in PROGRAMS}


def test_what_a_deployment_decides_reaches_subscriptions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "BILLING_NOTIFICATION_SECRET": "signs-notices",
        "BILLING_PAST_DUE_DAYS": "2,5,9,21",
        "BILLING_UPGRADE_REFUND": "none",
        "BILLING_SUPPLIER_NAME": "Acme",
    }

    made = environments(monkeypatch, **told)

    assert made["subscriptions"].items() >= told.items()
    assert not any(set(told) & set(made[name]) for name in made if name != "subscriptions")


def test_a_persons_other_settings_reach_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    made = environments(monkeypatch, AWS_SECRET_ACCESS_KEY="theirs", LEDGER_LANES="4")

    assert not any("AWS_SECRET_ACCESS_KEY" in environment for environment in made.values())
    assert [name for name in made if "LEDGER_LANES" in made[name]] == ["ledger"]


def test_the_ingress_is_told_of_a_rotation_and_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RAZORPAY_WEBHOOK_SECRET_PREVIOUS": "was-good-before", "WEBHOOKS_ENDPOINTS": "{}"}

    made = environments(monkeypatch, **told)

    assert made["webhooks"].items() >= told.items()
    assert [name for name in made if "WEBHOOKS_ENDPOINTS" in made[name]] == ["webhooks"]


def test_a_webhook_secret_that_somebody_sets_counts_for_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = DataFolder(tmp_path, tmp_path)
    kept = Secrets.keep(folder, LOGINS)
    monkeypatch.setenv("RAZORPAY_WEBHOOK_SECRET", "the-new-one")

    told = Secrets.keep(folder, LOGINS)

    monkeypatch.delenv("RAZORPAY_WEBHOOK_SECRET")
    assert told.razorpay_webhook_secret == "the-new-one"
    assert replace(told, razorpay_webhook_secret=kept.razorpay_webhook_secret) == kept
    assert Secrets.keep(folder, LOGINS) == kept
