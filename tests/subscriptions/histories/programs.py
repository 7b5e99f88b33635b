"""Random programs of a tenant's life, and random ways in which it is told."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from hypothesis import strategies as st

from sandbox.entities import Entity
from sandbox.state import disputes, refunds, subscriptions
from services.subscriptions.rules import lifecycle
from tests.subscriptions.builders import START
from tests.subscriptions.histories.books import Books
from tests.subscriptions.histories.life import Done, Item, Life, Told

PLANS = ("starter", "pro", "business")
CYCLES = ("monthly", "yearly")
Step = tuple[Any, ...]

_which = st.integers(0, 3)
_share = st.sampled_from([0.1, 1 / 3, 0.5, 1.0])
_plan = st.sampled_from(PLANS)
_cycle = st.sampled_from(CYCLES)

STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 26, 24 * 6, 24 * 17, 24 * 40])),
    st.tuples(
        st.just("checkout"), _plan, _cycle, st.booleans(), st.sampled_from([0, 0, 0, 2]), st.booleans()
    ),
    st.tuples(st.just("pay"), _which, st.sampled_from(["card", "upi"])),
    st.tuples(st.just("pay"), _which, st.just("card")),
    st.tuples(st.just("fail"), _which),
    st.tuples(st.just("fail until halted"), _which),
    st.tuples(st.just("authenticate"), _which, st.sampled_from([0, 500])),
    st.tuples(st.just("pause"), _which),
    st.tuples(st.just("resume"), _which),
    st.tuples(st.just("customer cancels"), _which, st.booleans()),
    st.tuples(st.just("charge late"), _which),
    st.tuples(st.just("change"), _plan, _cycle),
    st.tuples(st.just("end at period end")),
    st.tuples(st.just("end now")),
    st.tuples(st.just("pack"), st.sampled_from(["small", "medium", "large"]), st.booleans(), st.booleans()),
)
MONEY_BACK = st.one_of(
    st.tuples(
        st.just("refund there"), _which, _share, st.sampled_from(["process", "process", "fail", "leave"])
    ),
    st.tuples(st.just("refund here"), _which, _share),
    st.tuples(st.just("settle refund"), _which, st.booleans()),
    st.tuples(
        st.just("dispute"),
        _which,
        _share,
        st.sampled_from(["fraud", "chargeback", "pre_arbitration"]),
        st.sampled_from([(), ("under_review",), ("lost",), ("under_review", "lost"), ("won",)]),
    ),
    st.tuples(st.just("settle dispute"), _which, st.sampled_from(["lost", "won"])),
)
BOUGHT: list[Step] = [("checkout", "pro", "monthly", False, 0, False), ("pay", 0, "card")]
BEGINNINGS = st.sampled_from([
    BOUGHT,
    [("checkout", "starter", "monthly", False, 0, True), ("pay", 0, "card"),
     ("change", "pro", "monthly"), ("pay", 0, "upi")],
    [*BOUGHT, ("change", "business", "monthly"), ("pay", 0, "upi")],
    [*BOUGHT, ("wait", 144), ("change", "starter", "monthly"), ("authenticate", 0, 0), ("pay", 0, "card")],
    [("checkout", "pro", "monthly", True, 0, False), ("authenticate", 0, 500)],
    [("checkout", "business", "yearly", False, 2, False), ("pay", 0, "card")],
    [("pack", "medium", True, True)],
    [],
])  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    """What a tenant and its customers do, step by step; steps that cannot be are passed over."""
    steps = draw(st.lists(st.one_of(STEPS, STEPS, MONEY_BACK), min_size=1, max_size=10))
    return [*draw(BEGINNINGS), *steps, *draw(st.lists(MONEY_BACK, max_size=4))]


def live(program: list[Step]) -> Life:
    """Lives a program."""
    life = Life()
    for name, *details in program:
        _ACTS[name](life, *details)
    life.pass_time(timedelta(hours=5))
    return life


def _pick(found: list[str], which: int) -> str | None:
    return found[-1 - which % len(found)] if found else None


def _on_subscription(act: Callable[..., Any]) -> Callable[..., Any]:
    def step(life: Life, which: int, *details: Any) -> None:
        subscription_id = _pick(life.subscription_ids(), which)
        if subscription_id is not None:
            act(life, subscription_id, *details)

    return step


def _fail_until_halted(life: Life, subscription_id: str) -> None:
    for _ in range(4):
        life.fail(subscription_id)


def _refund_there(life: Life, which: int, share: float, outcome: str) -> None:
    payment_id = _pick(sorted(life.books.payments), which)
    if payment_id is None:
        return
    made: list[str] = []
    amount = max(100, int(life.books.payments[payment_id].amount_paise * share))
    request: Entity = {} if share == 1.0 else {"amount": amount}
    created = life.happen(
        lambda world: made.append(refunds.create_refund(world, payment_id, request)[0].entity["id"])
    )
    if created and outcome != "leave":
        settle = refunds.process_refund if outcome == "process" else refunds.fail_refund
        life.happen(lambda world: settle(world, made[0]))


def _refund_here(life: Life, which: int, share: float) -> None:
    payment_id = _pick(sorted(life.books.payments), which)
    if payment_id is not None:
        life.refund(payment_id, share)


def _settle_refund(life: Life, which: int, processed: bool) -> None:
    refund_id = _pick(life.ids("refund"), which)
    settle = refunds.process_refund if processed else refunds.fail_refund
    if refund_id is not None:
        life.happen(lambda world: settle(world, refund_id))


def _dispute(life: Life, which: int, share: float, phase: str, outcomes: tuple[str, ...]) -> None:
    payment_id = _pick(sorted(life.books.payments), which)
    if payment_id is None:
        return
    amount = int(life.books.payments[payment_id].amount_paise * share)
    opened: list[str] = []
    request = {"amount": amount, "phase": phase}
    life.happen(lambda world: opened.append(disputes.open_dispute(world, payment_id, request).entity["id"]))
    for outcome in outcomes:
        life.happen(partial(disputes.settle, dispute_id=opened[0], outcome=outcome))


def _settle_dispute(life: Life, which: int, outcome: str) -> None:
    dispute_id = _pick(life.ids("dispute"), which)
    if dispute_id is not None:
        life.happen(lambda world: disputes.settle(world, dispute_id, outcome))


_ACTS: dict[str, Callable[..., Any]] = {
    "wait": lambda life, hours: life.pass_time(timedelta(hours=hours)),
    "checkout": lambda life, plan, cycle, trial, count, lost: life.checkout(
        plan, cycle, trial=trial, count=count, lost=lost
    ),
    "pay": _on_subscription(Life.pay),
    "fail": _on_subscription(Life.fail),
    "fail until halted": _on_subscription(_fail_until_halted),
    "authenticate": _on_subscription(Life.authenticate),
    "pause": _on_subscription(
        lambda life, s: life.happen(lambda w: subscriptions.pause(w, s, by="customer"))
    ),
    "resume": _on_subscription(
        lambda life, s: life.happen(lambda w: subscriptions.resume(w, s, by="customer"))
    ),
    "customer cancels": _on_subscription(
        lambda life, s, later: life.happen(
            lambda w: subscriptions.cancel(w, s, at_cycle_end=later, by="customer")
        )
    ),
    "charge late": _on_subscription(Life.charge_late),
    "change": Life.change,
    "end at period end": Life.end_at_period_end,
    "end now": Life.end_now,
    "pack": lambda life, pack, fails_first, paid: life.buy_pack(pack, fails_first=fails_first, paid=paid),
    "refund there": _refund_there,
    "refund here": _refund_here,
    "settle refund": _settle_refund,
    "dispute": _dispute,
    "settle dispute": _settle_dispute,
}


def told_again(
    log: list[Item], end: datetime, chance: random.Random, watch: Callable[[Books, Books], None]
) -> Books:
    """The room after the same life was told in another order, one to three times, and late.

    What is decided here is decided on what is known: so the events that a decision rests on come before it, in any
    order, and all others whenever they like.
    """
    spans = _spans(log)
    arrivals: list[list[Told]] = [[] for _ in spans]
    for place, span in enumerate(spans):
        for item in span:
            if isinstance(item, Told):
                last = _last_span(item, place, spans)
                arrivals[chance.randint(place, last)].append(item)
                for _ in range(chance.choice([0, 0, 1, 2])):
                    arrivals[chance.randint(place, len(spans) - 1)].append(item)
    books = Books()
    waiting: list[Told] = []
    for place, span in enumerate(spans):
        since = START
        if span and isinstance(span[0], Done):
            since = span[0].at
            span[0].do(books, since)
        if place == len(spans) - 1 and chance.random() < 0.5:
            since = end  # the provider could not reach us until now
        told = [*waiting, *arrivals[place]]
        chance.shuffle(told)
        waiting = _arrive(books, told, since, watch)
    assert not waiting, "an event that our own task causes comes after the task is owed"
    books.settle(end)
    return books


def _spans(log: list[Item]) -> list[list[Item]]:
    """The log cut before each decision."""
    spans: list[list[Item]] = [[]]
    for item in log:
        if isinstance(item, Done):
            spans.append([])
        spans[-1].append(item)
    return spans


def _last_span(item: Told, place: int, spans: list[list[Item]]) -> int:
    for later in range(place + 1, len(spans)):
        decision = spans[later][0]
        assert isinstance(decision, Done)
        if decision.on == "everything" or (decision.on == "money back") == item.is_money_back:
            return later - 1
    return len(spans) - 1


def _arrive(
    books: Books, told: list[Told], now: datetime, watch: Callable[[Books, Books], None]
) -> list[Told]:
    while ready := [item for item in told if not item.needs or item.needs in books.tasks]:
        item = ready[0]
        told.remove(item)
        now = max(now, item.at)
        before = snapshot(books)
        books.apply(item.event, now)
        watch(before, books)
    return told


def snapshot(books: Books) -> Books:
    """The room as it was, for comparing."""
    return Books(
        row=books.row, known=dict(books.known), payments=dict(books.payments), grants=dict(books.grants)
    )


def promises(before: Books, after: Books) -> None:
    """What must hold after every event, in any order."""
    for payment in after.payments.values():
        brought = [g for g in after.grants.values() if g.payment_id == payment.id]
        assert len(brought) == 1
    for grant in after.grants.values():
        assert 0 <= after.taken_of(grant.reference_id) <= grant.credits
    for old in before.known.values():
        new = after.known[old.id]
        assert new.paid_count >= old.paid_count
        assert new.ended >= old.ended
    known = list(after.known.values())
    paid = [k for k in known if k.took_over and lifecycle.entitles(k, known, k.observed_at)]
    assert len(paid) <= 1
