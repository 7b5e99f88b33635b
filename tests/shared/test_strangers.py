"""Nothing that a stranger says of itself puts a card's number, a key or a control character into our books."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ops import strangers

CARD = "4111111111111111"


@pytest.mark.parametrize(
    "text",
    [
        *(
            CARD,
            f"Mozilla/5.0 {CARD}",
            f"x{CARD}y",
            f"1{CARD}2",
            "4111 1111 1111 1111",
            "4111-1111-1111-1111",
        ),
        *("4111.1111.1111.1111", "5500 0000 0000 0004 curl", f"card={CARD};", "curl 378282246310005"),
    ],
)
def test_no_card_is_kept(text: str) -> None:
    for kept in (strangers.agent(text), strangers.identifier(text)):
        assert kept is not None
        assert "[masked]" in kept
        assert not any(part in kept for part in ("1111", "0000", "2822"))
    assert strangers.address(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Authorization: Bearer canary77",
            "authorization=Basic canary77",
            "x Bearer canary77",
            "password=canary77",
        ),
        *(
            "client_secret: canary77",
            '{"api_key":"canary77"}',
            "token=canary77&x=1",
            "key = canary77",
            "OTP:canary77",
        ),
    ],
)
def test_no_key_is_kept(text: str) -> None:
    assert "canary77" not in (strangers.agent(text) or "")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Razorpay-Webhook/v1", "Razorpay-Webhook/v1"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101", None),
        ("curl/8.5.0\r\nSet-Cookie: a=b\x00\x7f", "curl/8.5.0??Set-Cookie: a=b??"),
        ("", ""),
    ],
)
def test_what_is_harmless_stays(text: str, kept: str | None) -> None:
    assert (strangers.agent(text) or "") == (text if kept is None else kept)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8::1%4111111111111111", "2001:db8::1"),
        ("a.example", None),
        (None, None),
    ],
)
def test_an_address_is_one_or_none(text: str | None, kept: str | None) -> None:
    assert strangers.address(text) == kept


@pytest.mark.parametrize(
    "text", ["sha256:9f86d081884c7d65", "QHtWkdMR6r0ulo", "pay_29QQoUBi66xm2f", "1791957283123456"]
)
def test_ids_stay_ids(text: str) -> None:
    assert strangers.identifier(text) == text


@given(st.text(max_size=600))
def test_whatever_comes_is_printable_and_bounded(text: str) -> None:
    for kept, longest in ((strangers.agent(text), 200), (strangers.identifier(text), 128)):
        assert kept is None or (len(kept) <= longest and kept.isascii() and kept.isprintable())
