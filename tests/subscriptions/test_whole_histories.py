"""Whole lives at the provider, told in any order, several times and late, end in one state: generated, not listed."""

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.subscriptions.histories.programs import Step, live, programs, promises, told_again

EXAMPLES = 1500
_settings = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_settings
@given(programs(), st.integers(0, 2**32))
def test_a_life_ends_in_one_state_however_it_is_told(program: list[Step], seed: int) -> None:
    life = live(program)
    in_order = life.books
    in_order.settle(life.now)

    shuffled = told_again(life.log, life.now, random.Random(seed), promises)

    expected, found = in_order.state(life.now), shuffled.state(life.now)
    assert {name: found[name] for name in expected if found[name] != expected[name]} == {
        name: expected[name] for name in expected if found[name] != expected[name]
    }
