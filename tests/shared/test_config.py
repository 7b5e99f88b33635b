"""Settings: every mistake named at once, no secret shown."""

import pytest
from pydantic import Field, SecretStr

from shared.config import RoomSettings, Settings, load


class ASettings(Settings):
    some_listen: str = Field(pattern=r"^.+:\d+$")
    some_secret: SecretStr = Field(min_length=16)
    some_count: int = 3


def test_every_missing_or_wrong_setting_is_named_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    monkeypatch.setenv("SOME_COUNT", "canary")

    with pytest.raises(SystemExit) as ended:
        load(ASettings)

    message = str(ended.value)
    assert "SOME_LISTEN is not set" in message
    assert "SOME_SECRET is wrong" in message
    assert "SOME_COUNT is wrong" in message
    assert "hunter2" not in message
    assert "canary" not in message


def test_a_secret_is_never_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEWAY_SECRET", "OPERATOR_SECRET", "ROOM_SECRET"):
        monkeypatch.setenv(name, f"a-canary-of-sixteen-or-more-{name}")

    assert "canary" not in repr(load(RoomSettings))


@pytest.mark.parametrize(
    ("operator", "room", "wrong"),
    [
        ("gateway", "rooms", ["OPERATOR"]),
        ("operator", "gateway", ["ROOM"]),
        ("operator", "operator", ["ROOM"]),
    ],
)
def test_a_key_opens_no_other_callers_door(
    monkeypatch: pytest.MonkeyPatch, operator: str, room: str, wrong: list[str]
) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "key-of-the-gateway")
    monkeypatch.setenv("OPERATOR_SECRET", f"key-of-the-{operator}")
    monkeypatch.setenv("ROOM_SECRET", f"key-of-the-{room}")

    with pytest.raises(SystemExit) as ended:
        load(RoomSettings)

    message = str(ended.value)
    assert [line.split("_")[0].strip() for line in message.splitlines() if "is wrong" in line] == wrong
    assert "key-of-the" not in message
