"""Whom invoices are made out to: what is accepted, kept and told."""

from dataclasses import asdict, replace

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.subscriptions.errors import GstinInvalid
from services.subscriptions.rules import billing_info, gstin
from services.subscriptions.rules.billing_info import BillingInfo
from shared.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.subscriptions.conftest import Room
from tests.subscriptions.invoicing import ELSEWHERE

REAL = ("27AAPFU0939F1ZV", "24AABCJ1087G1ZT")


@pytest.mark.parametrize("real", REAL)
def test_a_real_gstin_is_accepted_and_no_other_that_differs_in_one_character(real: str) -> None:
    assert gstin.flaw(real) is None

    let_through = [
        corrupted
        for place, character in enumerate(real)
        for other in gstin.ALPHABET
        if other != character and gstin.flaw(corrupted := real[:place] + other + real[place + 1 :]) is None
    ]

    assert let_through == []


@given(st.text(gstin.ALPHABET, min_size=14, max_size=14), st.integers(0, 13), st.sampled_from(gstin.ALPHABET))
def test_the_check_digit_alone_tells_every_single_character(text: str, place: int, other: str) -> None:
    corrupted = text[:place] + other + text[place + 1 :]

    assert (gstin.check_digit(corrupted) == gstin.check_digit(text)) == (corrupted == text)


@given(st.text(max_size=20))
def test_nothing_that_is_typed_breaks_the_check(text: str) -> None:
    assert gstin.flaw(text) is None or isinstance(gstin.flaw(text), str)


@pytest.mark.parametrize(
    ("given_gstin", "words"),
    [
        ("27AAPFU0939F1Z", "not 15 characters"),
        ("27AAPFU0939F1XV", "not 15 characters"),
        ("27AAPFU0939F0ZV", "not 15 characters"),
        ("٢٧AAPFU0939F1ZV", "not 15 characters"),
        ("00AAPFU0939F1Z" + gstin.check_digit("00AAPFU0939F1Z"), "no state"),
        ("27AAPFU0939F1ZW", "check digit"),
    ],
)
def test_a_flaw_is_told_in_words(given_gstin: str, words: str) -> None:
    with pytest.raises(GstinInvalid) as refused:
        billing_info.accept(BillingInfo(gstin=given_gstin))

    [(field, told)] = refused.value.violations
    assert field == "billing_info.gstin"
    assert words in told


def test_a_registration_of_a_state_that_was_divided_belongs_to_its_heir() -> None:
    for former, today in (("28", "37"), ("25", "26")):
        registered = former + "AAPFU0939F1Z"
        registered += gstin.check_digit(registered)
        assert gstin.flaw(registered) is None
        assert billing_info.accept(BillingInfo(gstin=registered, state_code=today)).state == today


def test_details_are_stored_in_one_form() -> None:
    typed = replace(ELSEWHERE, gstin=" 27aapfu0939f1zv ", company_name="  Fabrikam \n LLP\t", country="in")

    assert billing_info.accept(typed) == ELSEWHERE
    assert billing_info.accept(BillingInfo()) == BillingInfo()


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"state_code": "29"}, ["state_code"]),
        ({"state_code": "40", "gstin": ""}, ["state_code"]),
        ({"state_code": "96", "gstin": ""}, ["state_code"]),
        ({"country": "US"}, ["gstin", "state_code"]),
        ({"company_name": "Fabrikam\0", "city": "Mum\x1bbai"}, ["company_name", "city"]),
        ({"country": "US", "gstin": "27AAPFU0939F1ZW"}, ["gstin", "gstin", "state_code"]),
    ],
)
def test_every_contradiction_is_named_at_once(change: dict[str, str], fields: list[str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        billing_info.accept(replace(ELSEWHERE, **change))

    assert [field for field, _ in refused.value.violations] == [f"billing_info.{field}" for field in fields]


def update(tenant: str, info: BillingInfo = ELSEWHERE, key: str = "info") -> pb.UpdateBillingInfoRequest:
    return pb.UpdateBillingInfoRequest(
        tenant_id=tenant, idempotency_key=key, billing_info=pb.BillingInfo(**asdict(info))
    )


async def told(room: Room, tenant: str) -> pb.BillingInfo:
    return (await room.product.GetBillingInfo(pb.GetBillingInfoRequest(tenant_id=tenant))).billing_info


async def test_details_are_kept_in_one_form_and_a_repeat_is_told_apart(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    assert await told(room, tenant) == pb.BillingInfo()

    first = await room.product.UpdateBillingInfo(update(tenant, replace(ELSEWHERE, gstin="27aapfu0939f1zv")))
    again = await room.product.UpdateBillingInfo(update(tenant))

    assert first.billing_info == again.billing_info == await told(room, tenant)
    assert first.billing_info.gstin == "27AAPFU0939F1ZV"
    assert (first.replayed, again.replayed) == (False, True)
    with pytest.raises(FailedPrecondition) as refused:
        await room.product.UpdateBillingInfo(update(tenant, replace(ELSEWHERE, city="Pune")))
    assert (refused.value.reason, refused.value.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "city")
    assert (await told(room, tenant)).city == "Mumbai"


async def test_an_update_replaces_everything_and_an_old_key_brings_nothing_back(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    await room.product.UpdateBillingInfo(update(tenant))

    await room.product.UpdateBillingInfo(update(tenant, BillingInfo(company_name="Fabrikam"), "second"))
    late = await room.product.UpdateBillingInfo(update(tenant))

    assert late.replayed
    assert await told(room, tenant) == pb.BillingInfo(company_name="Fabrikam")


async def test_a_change_is_audited_with_what_it_was_and_became_and_a_repeat_is_not(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    await room.product.UpdateBillingInfo(update(tenant))
    await room.product.UpdateBillingInfo(update(tenant))
    await room.product.UpdateBillingInfo(update(tenant, replace(ELSEWHERE, city="Pune"), "moved"))

    lines = room.rows(
        "SELECT actor_id, metadata FROM billing_audit_log WHERE tenant_id = %s"
        " AND action = 'billing_info.changed' ORDER BY created_at",
        tenant,
    )
    assert [line["actor_id"] for line in lines] == ["product", "product"]
    assert lines[0]["metadata"]["after"]["gstin"] == "27AAPFU0939F1ZV"
    assert (lines[1]["metadata"]["before"], lines[1]["metadata"]["after"]) == (
        {"city": "Mumbai"},
        {"city": "Pune"},
    )


async def test_a_wrong_gstin_is_a_refusal_with_its_field_and_changes_nothing(room: Room, tenant: str) -> None:
    await room.provision(tenant)

    with pytest.raises(InvalidArgument) as refused:
        await room.product.UpdateBillingInfo(update(tenant, replace(ELSEWHERE, gstin="27AAPFU0939F1ZW")))

    assert (refused.value.reason, refused.value.metadata["gstin"]) == ("GSTIN_INVALID", "27AAPFU0939F1ZW")
    assert [field for field, _ in refused.value.violations] == ["billing_info.gstin"]
    assert await told(room, tenant) == pb.BillingInfo()


async def test_an_unknown_tenant_has_no_details(room: Room, tenant: str) -> None:
    for call, request in (
        (room.product.GetBillingInfo, pb.GetBillingInfoRequest(tenant_id=tenant)),
        (room.product.UpdateBillingInfo, update(tenant)),
        (room.product.ListInvoices, pb.ListInvoicesRequest(tenant_id=tenant)),
    ):
        with pytest.raises(NotFound) as refused:
            await call(request)
        assert refused.value.reason == "UNKNOWN_TENANT"
