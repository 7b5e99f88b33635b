"""What the room refuses to start with, and that its page names every setting."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from services.webhooks.config import WebhooksSettings
from services.webhooks.rules.inbox import Endpoint
from shared.config import load

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.md").read_text()
NEEDED = {
    "GATEWAY_SECRET": "gateway-secret-of-tests",
    "OPERATOR_SECRET": "operator-secret-of-tests",
    "ROOM_SECRET": "room-secret-of-tests",
    "WEBHOOKS_DATABASE_URL": "postgresql://",
    "RAZORPAY_WEBHOOK_SECRET": "the-current-one",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def entry(*secrets: str, account_id: str = "acc_x", mode: str = "live", **more: str) -> dict[str, Any]:
    return {"account_id": account_id, "mode": mode, "secrets": list(secrets), **more}


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load(WebhooksSettings)
    return str(ended.value)


@pytest.mark.parametrize("value", ["", " ", " " * 8, "\t\n" * 8, "short", "  seven77 "])
@pytest.mark.parametrize("name", ["RAZORPAY_WEBHOOK_SECRET", "RAZORPAY_WEBHOOK_SECRET_PREVIOUS"])
def test_blanks_and_short_words_are_no_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    if not value and name.endswith("PREVIOUS"):
        monkeypatch.setenv(name, value)
        assert [end.secrets for end in load(WebhooksSettings).endpoints()] == [(b"the-current-one",)]
        return

    assert f"{name} is wrong" in refusal(monkeypatch, **{name: value})


def test_blanks_around_a_secret_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZORPAY_WEBHOOK_SECRET", " the-current-one\n")
    monkeypatch.setenv("RAZORPAY_WEBHOOK_SECRET_PREVIOUS", "the one before ")

    [endpoint] = load(WebhooksSettings).endpoints()

    assert endpoint.secrets == (b"the-current-one", b"the one before")


def test_the_previous_secret_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, RAZORPAY_WEBHOOK_SECRET_PREVIOUS="the-current-one ")

    assert "RAZORPAY_WEBHOOK_SECRET_PREVIOUS is wrong" in said
    assert "the-current-one" not in said


@pytest.mark.parametrize(
    ("endpoints", "where"),
    [
        ("{'shop': 1}", "WEBHOOKS_ENDPOINTS"),
        ("[]", "WEBHOOKS_ENDPOINTS"),
        ({"shop": entry()}, "WEBHOOKS_ENDPOINTS (shop.secrets)"),
        ({"shop": entry(" " * 8)}, "WEBHOOKS_ENDPOINTS (shop.secrets.0)"),
        ({"shop": entry("first-secret", "")}, "WEBHOOKS_ENDPOINTS (shop.secrets.1)"),
        ({"shop": entry("first-secret", "first-secret ")}, "WEBHOOKS_ENDPOINTS (shop.secrets)"),
        ({"shop": entry("first-secret", mode="both")}, "WEBHOOKS_ENDPOINTS (shop.mode)"),
        ({"shop": entry("first-secret", provider="nobody")}, "WEBHOOKS_ENDPOINTS (shop.provider)"),
        ({"shop": entry("first-secret", secret="x")}, "WEBHOOKS_ENDPOINTS (shop.secret)"),
        ({"a/b": entry("first-secret")}, "WEBHOOKS_ENDPOINTS (a/b)"),
        ({"shop": entry("the-current-one")}, "WEBHOOKS_ENDPOINTS"),
        (
            {"live": entry("secret-1"), "test": entry("secret-2", "secret-1", mode="test")},
            "WEBHOOKS_ENDPOINTS",
        ),
        ('{"shop": {}, "shop": {}}', "WEBHOOKS_ENDPOINTS"),
    ],
)
def test_an_address_that_is_not_safe_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, endpoints: Any, where: str
) -> None:
    told = endpoints if isinstance(endpoints, str) else json.dumps(endpoints)

    said = refusal(monkeypatch, WEBHOOKS_ENDPOINTS=told)

    assert re.search(rf"^  {re.escape(where)} is (wrong: |not set$)", said, re.MULTILINE)
    assert said.count("\n  ") == 1
    assert not re.search("first-secret|the-current-one|secret-[12]", said)


def test_two_addresses_of_one_account_and_mode_may_share_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"one": entry("shared-secret"), "two": entry("other-secret", "shared-secret")}
    monkeypatch.setenv("WEBHOOKS_ENDPOINTS", json.dumps(both))

    found = {end.address: end.secrets for end in load(WebhooksSettings).endpoints()}

    assert found == {
        "/webhooks/razorpay": (b"the-current-one",),
        "/webhooks/razorpay/one": (b"shared-secret",),
        "/webhooks/razorpay/two": (b"other-secret", b"shared-secret"),
    }


def test_no_further_addresses_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOKS_ENDPOINTS", "")

    assert [end.address for end in load(WebhooksSettings).endpoints()] == ["/webhooks/razorpay"]


@pytest.mark.parametrize("secrets", [(), (b"",), (b"a-good-one", b"")])
def test_no_endpoint_is_without_a_secret(secrets: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="/webhooks/any/path has no secret"):
        Endpoint("any", "path", "acc", "test", secrets)


def test_a_setting_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, WEBHOOKS_BUSINESS_DAYS="monday")

    assert "WEBHOOKS_BUSINESS_DAYS is wrong: it is not JSON" in said
    assert "monday" not in said


def rows() -> dict[str, str]:
    """Each setting of the page's table with its default."""
    table = PAGE.split("\n## Settings\n")[1]
    found: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", table, re.MULTILINE):
        named = re.findall(r"`(\w+)`", names)
        defaults = default.split(", ") if len(named) > 1 and default != "needed" else [default] * len(named)
        found |= dict(zip(named, defaults, strict=True))
    return found


def test_the_page_names_every_setting_and_no_other() -> None:
    assert {name.lower() for name in rows()} == WebhooksSettings.model_fields.keys()


@pytest.mark.parametrize(("name", "said"), rows().items())
def test_the_pages_defaults_are_true(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    field = WebhooksSettings.model_fields[name.lower()]
    default = field.get_default(call_default_factory=True, validated_data={})

    if default is PydanticUndefined:
        assert said == "needed"
    elif default in (None, "", {}):
        assert said == "none"
    else:
        monkeypatch.setenv(name, said.strip("`"))
        assert getattr(load(WebhooksSettings), name.lower()) == default


def test_the_pages_example_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("WEBHOOKS_ENDPOINTS", example)

    addresses = [end.address for end in load(WebhooksSettings).endpoints()]

    assert addresses == ["/webhooks/razorpay", "/webhooks/razorpay/live", "/webhooks/razorpay/shop"]
    assert all(f"`{address}`" in PAGE for address in addresses)
