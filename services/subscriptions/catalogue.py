"""`apply-catalog`: shows how the catalogue's file and the database differ, and makes them equal."""

import os
import pwd
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions import catalog as actions
from services.subscriptions.actions.provider_plans import ensure_all
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.errors import CatalogInvalid
from services.subscriptions.rules import catalog as rules
from services.subscriptions.rules.amounts import MANDATE_CEILING_PAISE, format_inr
from services.subscriptions.rules.catalog import CYCLES, Catalog, CatalogChange
from shared.errors import BillingError

FILE = Path(__file__).parent / "catalog.yaml"


class _Loader(yaml.SafeLoader):
    """YAML in which a name that is written twice is an error: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"catalog.yaml: {name} is written twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_catalog(path: Path = FILE) -> Catalog:
    """The catalogue of a file; CatalogInvalid names everything that is wrong with it."""
    try:
        # A loader for plain values only, as safe_load's.
        return rules.parse(yaml.load(path.read_text(encoding="utf-8"), _Loader))  # noqa: S506
    except yaml.YAMLError as error:
        raise CatalogInvalid(f"catalog.yaml is no YAML: {error}") from error
    except ValueError as error:
        raise CatalogInvalid(str(error)) from error


async def apply_file(engine: AsyncEngine, razorpay: Razorpay, *, dry_run: bool, console: Console) -> None:
    """Apply the file and tell a person what differed.

    The provider's plans are made here when it answers, and otherwise by the first Checkout that needs them.
    """
    catalog = load_catalog()
    actor = _whoami()
    show(await actions.apply_catalog(engine, catalog, actor=actor, dry_run=True), console)
    for warning in mandate_warnings(catalog):
        console.print(warning, highlight=False)
    if dry_run:
        console.print("Nothing was changed.")
        return
    await actions.apply_catalog(engine, catalog, actor=actor, dry_run=False)
    console.print(f"Catalogue {catalog.version} is applied.", highlight=False)
    if not razorpay.configured:
        return
    try:
        made = await ensure_all(engine, razorpay, catalog)
    except BillingError as error:
        console.print(f"The provider's plans will be made at the first checkout: {error}", highlight=False)
    else:
        console.print(f"{len(made)} plans stand at the provider.", highlight=False)


def show(changes: list[CatalogChange], console: Console) -> None:
    """The difference as a table."""
    if not changes:
        console.print("The catalogue is up to date.")
        return
    table = Table(title=f"{len(changes)} differences", title_justify="left")
    for heading in ("change", "what", "code", "before", "after"):
        table.add_column(heading)
    for change in changes:
        table.add_row(change.change, change.kind, change.code, change.before, change.after)
    console.print(table)


def mandate_warnings(catalog: Catalog) -> list[str]:
    """Prices that no recurring mandate covers."""
    return [
        f"{plan.name}, {cycle}: {format_inr(plan.total_paise(cycle))} with tax is above the ceiling of a recurring "
        "mandate, so every charge needs the customer."
        for plan in catalog.plans.values()
        for cycle in CYCLES
        if plan.total_paise(cycle) > MANDATE_CEILING_PAISE
    ]


def _whoami() -> str:
    """Who applies it, for the record; a container's user may have no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
