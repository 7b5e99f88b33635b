"""What looks like a number of ours or of daily life is no card: fewer than one in a thousand of any kind."""

import random
import string
import time
import uuid
from collections.abc import Callable

import pytest
from billing.ledger.v1 import ledger_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from services.webhooks.rules import bodies
from shared import sensitive
from shared.ids import new_id
from shared.rpc import validation

Dice = random.Random
OF_EACH = 4000
PREFIXES = (
    "evt",
    "pur",
    "req",
    "txn",
    "hold",
    "lot",
    "int",
    "rfd",
    "ntf",
    "tsk",
    "adj",
    "dlq",
    "own",
    "inv",
    "run",
    "ovr",
)
STATES = ("29", "27", "07", "33", "36", "24", "06", "19")
NOW_MS = int(time.time() * 1000)


def digits(dice: Dice, count: int) -> str:
    return "".join(dice.choice(string.digits) for _ in range(count))


def of_provider(dice: Dice) -> str:
    letters = "".join(dice.choice(string.ascii_letters + string.digits) for _ in range(14))
    return f"{dice.choice(('pay', 'sub', 'order', 'rfnd', 'inv', 'cust', 'plan', 'disp', 'token'))}_{letters}"


def gstin(dice: Dice) -> str:
    letters = "".join(dice.choice(string.ascii_uppercase) for _ in range(6))
    return f"{dice.choice(STATES)}{letters[:5]}{digits(dice, 4)}{letters[5]}1Z{dice.choice('0123456789Q')}"


def phone(dice: Dice) -> str:
    number = f"{dice.choice('6789')}{digits(dice, 9)}"
    return dice.choice(("+91{}", "91{}", "0{}", "+91 {}", "+91-{}", "{}")).format(
        dice.choice((number, f"{number[:5]} {number[5:]}", f"{number[:3]}-{number[3:6]}-{number[6:]}"))
    )


KINDS: dict[str, Callable[[Dice], str]] = {
    "our ids": lambda dice: new_id(dice.choice(PREFIXES)),
    "the provider's ids": of_provider,
    "UUIDs": lambda dice: str(uuid.UUID(int=dice.getrandbits(128), version=4)),
    "UUIDs without dashes": lambda dice: uuid.UUID(int=dice.getrandbits(128), version=4).hex,
    "hashes": lambda dice: f"{dice.getrandbits(256):064x}",
    "snowflakes": lambda dice: str(
        (NOW_MS - 1288834974657 + dice.randrange(10**9) << 22) + dice.randrange(4096)
    ),
    "moments in ms": lambda dice: str(NOW_MS + dice.randrange(-(10**11), 10**11)),
    "moments in µs": lambda dice: str(NOW_MS * 1000 + dice.randrange(10**12)),
    "moments in ns": lambda dice: str(NOW_MS * 10**6 + dice.randrange(10**15)),
    "moments as people write them": lambda dice: time.strftime(
        dice.choice(("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y%m%d%H%M%S", "%d/%m/%Y %H.%M.%S")),
        time.gmtime(NOW_MS / 1000 + dice.randrange(-(10**9), 10**8)),
    ),
    "phones": phone,
    "GSTINs": gstin,
    "PIN codes": lambda dice: f"{dice.choice('12345678')}{digits(dice, 5)}",
    "addresses": lambda dice: (
        f"{digits(dice, 2)} MG Road, Bengaluru {dice.choice('56')}{digits(dice, 5)}, +91 {digits(dice, 10)}"
    ),
    "invoice numbers": lambda dice: f"INV/{dice.choice(('24-25', '2026-27'))}/{digits(dice, 8)}",
    "order numbers in words": lambda dice: f"order {digits(dice, 16)} of {digits(dice, 2)} November",
    "amounts": lambda dice: f"₹{dice.randrange(10**12):,}.{digits(dice, 2)}",
    "amounts in paise": lambda dice: str(dice.randrange(10**12)),
    "addresses of machines": lambda dice: ".".join(str(dice.randrange(256)) for _ in range(4)),
    "fractions": lambda dice: repr(dice.random() * 1000),
    "places on earth": lambda dice: f"{dice.uniform(8, 37):.12f},{dice.uniform(68, 97):.12f}",
    "bank references": lambda dice: digits(dice, 12),
    "years in a title": lambda dice: (
        f"Budgets of {dice.choice(' -/').join(str(dice.randrange(2000, 2040)) for _ in range(4))} compared"
    ),
    "versions": lambda dice: ".".join(str(dice.randrange(100)) for _ in range(7)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_daily_life_are_no_cards(kind: str) -> None:
    dice = Dice(kind)
    taken = [text for text in (KINDS[kind](dice) for _ in range(OF_EACH)) if sensitive.holds_card(text)]
    assert len(taken) < OF_EACH / 1000, taken[:5]


@pytest.mark.parametrize("kind", KINDS)
def test_they_pass_every_door_and_stay_as_they_are_in_bodies(kind: str) -> None:
    dice = Dice(kind)
    for _ in range(20):
        text = KINDS[kind](dice)
        validation.check(
            pb.DebitRequest(
                tenant_id="acme",
                idempotency_key=text[:255],
                credits=1,
                reason="article.post",
                description=text,
                metadata={"note": text, "pin": "560001", "number": "123456789012"},
            )
        )
        document = f'{{"id":"{text}","note":"{text}","created_at":{NOW_MS},"amount":999999999999}}'.encode()
        assert bodies.prepare(document) == bodies.Stored(document, False, bodies.parse(document))


def test_a_number_of_a_schemes_shape_passes_for_a_card_as_often_as_chance_has_it() -> None:
    """One digit in ten is right: whoever draws ids of sixteen digits that begin with 4 will be refused some."""
    dice = Dice(16)
    held = sum(sensitive.holds_card(f"4{digits(dice, 15)}") for _ in range(OF_EACH))
    assert OF_EACH / 20 < held < OF_EACH / 5


@settings(max_examples=300)
@given(st.text(max_size=80))
def test_words_without_thirteen_digits_are_never_taken(text: str) -> None:
    if sum(letter in string.digits for letter in text) < 13:
        assert not sensitive.holds_card(text)
