"""Bodies that are signed, read well, and would still break what comes after."""

from __future__ import annotations

import json

import pytest

from services.webhooks.errors import Poison
from services.webhooks.rules import razorpay
from tests.webhooks.harness import sample


@pytest.mark.parametrize("moment", [7_258_118_400, 253_402_300_799, 2**62])
def test_a_moment_at_the_end_of_the_calendar_is_poison_rather_than_ten_failed_attempts(moment: int) -> None:
    document = json.loads(sample("subscription.charged.json"))
    document["payload"]["subscription"]["entity"]["current_end"] = moment

    with pytest.raises(Poison) as refused:
        razorpay.normalise(json.dumps(document).encode())

    assert str(refused.value) == "time_malformed: payload.subscription.entity.current_end"
