"""Tax invoices and credit notes: what they add up to, and that their numbers have no gaps."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.invoices import issue_credit_note, issue_tax_invoice
from services.subscriptions.rules.billing_info import BillingInfo
from services.subscriptions.rules.funding import Payment
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.store import billing_info
from services.subscriptions.store import subscriptions as tenants
from shared import database as shared_database
from shared.database import transaction
from shared.ids import new_id
from tests.conftest import Database
from tests.subscriptions.invoicing import ELSEWHERE, NOW, SELLER, payment


@pytest.fixture(scope="module")
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = shared_database.create_engine(
        database.url("subscriptions_rw"), application_name="invoice-tests", pool_size=16
    )
    yield engine
    await engine.dispose()


class Books:
    """Issues documents as the room does, under the tenant's lock, and reads what was issued."""

    def __init__(self, engine: AsyncEngine, admin_url: str) -> None:
        self.engine = engine
        self._admin_url = admin_url

    async def open(self, tenant: str, info: BillingInfo | None = None) -> None:
        async with transaction(self.engine) as db:
            await tenants.insert_subscription(db, Subscription(id=new_id("sub"), tenant_id=tenant))
            if info is not None:
                await billing_info.save_billing_info(db, tenant, info)

    async def sell(self, tenant: str, paid: Payment, *, now: datetime = NOW, fail: bool = False) -> str:
        async with transaction(self.engine) as db:
            await tenants.lock_subscription(db, tenant)
            issued = await issue_tax_invoice(db, SELLER, paid, description="Pro, monthly", now=now)
            if fail:
                raise Lost
            return issued

    async def refund(
        self, tenant: str, paid: Payment, amount: int, *, refund: str = "", now: datetime = NOW
    ) -> str | None:
        async with transaction(self.engine) as db:
            await tenants.lock_subscription(db, tenant)
            return await issue_credit_note(
                db,
                SELLER,
                tenant_id=tenant,
                payment_id=paid.id,
                refund_id=refund or new_id("rfd"),
                amount_paise=amount,
                now=now,
            )

    def issued(self, tenant: str, kind: str = "%") -> list[dict[str, Any]]:
        return self.rows(
            "SELECT * FROM subscriptions.invoices WHERE tenant_id = %s AND kind LIKE %s ORDER BY issued_at, id",
            tenant,
            kind,
        )

    def serials(self, year: str, kind: str) -> list[int]:
        found = self.rows(
            "SELECT serial FROM subscriptions.invoices WHERE financial_year = %s AND kind = %s ORDER BY serial",
            year,
            kind,
        )
        return [row["serial"] for row in found]

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self._admin_url, autocommit=True, row_factory=dict_row) as db:
            return db.execute(query, values).fetchall()


class Lost(Exception):
    """The transaction fails after the number was taken."""


@pytest.fixture
def books(engine: AsyncEngine, database: Database) -> Books:
    return Books(engine, database.admin_url)


async def test_a_payment_has_one_invoice(books: Books, tenant: str) -> None:
    await books.open(tenant)
    paid = payment(tenant)

    assert await books.sell(tenant, paid) == await books.sell(tenant, paid)

    [invoice] = books.issued(tenant)
    assert (
        invoice["taxable_paise"],
        invoice["cgst_paise"],
        invoice["sgst_paise"],
        invoice["igst_paise"],
    ) == (
        199_900,
        17_991,
        17_991,
        0,
    )
    assert (invoice["place_of_supply"], invoice["tax_rate_bps"], invoice["sac"]) == ("29", 1800, "998315")


async def test_an_invoice_keeps_the_customer_of_its_day(books: Books, tenant: str) -> None:
    await books.open(tenant, ELSEWHERE)
    paid = payment(tenant)
    await books.sell(tenant, paid)
    async with transaction(books.engine) as db:
        await billing_info.save_billing_info(db, tenant, BillingInfo(company_name="Renamed", state_code="29"))

    await books.refund(tenant, paid, 100_000)
    await books.sell(tenant, payment(tenant), now=NOW + timedelta(days=1))

    first, note, second = books.issued(tenant)
    assert first["recipient"] == note["recipient"]
    assert (first["recipient"]["company_name"], second["recipient"]["company_name"]) == (
        "Fabrikam LLP",
        "Renamed",
    )
    assert (first["igst_paise"], first["cgst_paise"]) == (35_982, 0)
    assert (note["igst_paise"], note["cgst_paise"], note["place_of_supply"]) == (15_254, 0, "27")
    assert (second["igst_paise"], second["cgst_paise"]) == (0, 17_991)


@pytest.mark.parametrize("info", [BillingInfo(), ELSEWHERE], ids=["within the state", "between states"])
async def test_a_refund_in_parts_gives_back_the_invoice_to_the_paisa(
    books: Books, tenant: str, info: BillingInfo
) -> None:
    await books.open(tenant, info)
    paid = payment(tenant, 41_501)
    await books.sell(tenant, paid)

    for part in (100, 333, 20_001, 41_501):
        await books.refund(tenant, paid, part)

    [invoice] = books.issued(tenant, "tax_invoice")
    notes = books.issued(tenant, "credit_note")
    assert [note["total_paise"] for note in notes] == [100, 333, 20_001, 41_501 - 20_434]
    for column in ("taxable_paise", "cgst_paise", "sgst_paise", "igst_paise", "total_paise"):
        assert sum(note[column] for note in notes) == invoice[column]
    assert await books.refund(tenant, paid, 1) is None


async def test_a_refund_has_one_credit_note_and_none_without_an_invoice(books: Books, tenant: str) -> None:
    await books.open(tenant)
    paid = payment(tenant)
    assert await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}") is None
    await books.sell(tenant, paid)

    first = await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}")

    assert first is not None
    assert await books.refund(tenant, paid, 500, refund=f"rfd_{tenant}") == first
    assert len(books.issued(tenant, "credit_note")) == 1


async def test_numbers_have_no_gaps_whatever_fails_and_however_many_come_at_once(
    books: Books, tenant: str
) -> None:
    year, at = "3132", datetime(2031, 8, 1, tzinfo=UTC)
    customers = [f"{tenant}_{number}" for number in range(12)]
    for customer in customers:
        await books.open(customer)

    async def trade(customer: str) -> None:
        for round_ in range(4):
            paid = payment(customer)
            if round_ % 2:
                with pytest.raises(Lost):
                    await books.sell(customer, paid, now=at, fail=True)
            await books.sell(customer, paid, now=at)
            await books.refund(customer, paid, 1_000, now=at)

    await asyncio.gather(*(trade(customer) for customer in customers))

    assert books.serials(year, "tax_invoice") == list(range(1, 49))
    assert books.serials(year, "credit_note") == list(range(1, 49))


async def test_invoice_and_note_of_one_transaction_never_lock_each_other_out(
    books: Books, tenant: str
) -> None:
    year, at = "3233", datetime(2032, 8, 1, tzinfo=UTC)
    customers = [f"{tenant}_{number}" for number in range(12)]
    for customer in customers:
        await books.open(customer)

    async def paid_and_refunded(customer: str) -> None:
        paid = payment(customer)
        async with transaction(books.engine) as db:
            await tenants.lock_subscription(db, customer)
            await issue_tax_invoice(db, SELLER, paid, description="Pro", now=at)
            await asyncio.sleep(0.01)
            await issue_credit_note(
                db,
                SELLER,
                tenant_id=customer,
                payment_id=paid.id,
                refund_id=new_id("rfd"),
                amount_paise=500,
                now=at,
            )

    await asyncio.gather(*(paid_and_refunded(customer) for customer in customers))

    assert books.serials(year, "tax_invoice") == books.serials(year, "credit_note") == list(range(1, 13))
