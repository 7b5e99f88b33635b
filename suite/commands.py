"""The commands of `python -m suite`: run it, look into it, clean up after it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shared.config import load
from shared.migrations import MigrationFailed
from suite import binaries
from suite import demo as story
from suite.addresses import AddressTaken
from suite.backups import commands as backups
from suite.console import Console, fail
from suite.files import DataFolder, Runtime
from suite.launcher import Launcher, SuiteError
from suite.migrate import migrate_from_environment
from suite.postgres import PostgresError
from suite.settings import SuiteSettings
from suite.visit import NotStarted, running_suite

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print the values of variables, and some of those are secrets
    help="The billing suite on one machine.",
)
app.command()(backups.backup)
app.add_typer(backups.app, name="backups")
app.command()(backups.restore)
KEYS = "gateway, operator, room, razorpay_key or razorpay_webhook"
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def run(
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
) -> None:
    """Start Postgres, the rooms and the Razorpay sandbox; Ctrl-C stops everything."""
    settings = load(SuiteSettings, **({"log_level": log_level} if log_level else {}))
    folder = DataFolder.choose(settings.billing_data_dir)
    folder.make()
    lock = folder.lock()
    if lock is None:
        fail(_who_runs(folder))
    with lock:
        try:
            asyncio.run(Launcher(settings, folder, Console()).run())
        except (SuiteError, PostgresError, binaries.NoPostgres, AddressTaken, MigrationFailed) as error:
            fail(str(error))
        except psycopg.OperationalError as error:
            fail(f"The database does not answer: {error}\nStart it, or correct DATABASE_URL.")
        except psycopg.errors.InsufficientPrivilege as error:
            fail(
                f"The user of DATABASE_URL may not prepare the database: {error}\n"
                "It must be allowed to create roles (CREATEROLE) and must own the database."
            )


def _who_runs(folder: DataFolder) -> str:
    runtime = Runtime.of_running_suite(folder)
    if runtime is None:
        return f"Process {folder.holder()} is starting or stopping the suite in {folder.path}."
    places = [f"  {room:<14} {address}" for room, address in runtime.addresses.items()]
    places += [
        f"  {'webhooks http':<14} {runtime.webhooks_http_url}",
        f"  {'sandbox':<14} {runtime.sandbox_url}",
    ]
    return "\n".join([f"The suite is running already, as process {runtime.pid}:", *places])


@app.command()
def demo() -> None:
    """Tell the main job as a story, against the running suite or one started for it."""
    folder = DataFolder.choose(load(SuiteSettings).billing_data_dir)
    try:
        with running_suite(folder) as runtime:
            status = story.main(runtime)
    except NotStarted as error:
        fail(str(error))
    raise typer.Exit(status)


@app.command(context_settings=PASS_ON)
def psql(context: typer.Context) -> None:
    """Open psql as the operator on the running suite; arguments after -- go to psql."""
    _, runtime = _running()
    address = conninfo_to_dict(runtime.database.urls["billing_operator"])
    # In the environment, because everybody on the machine can read a command line.
    environment = {**os.environ, "PGPASSWORD": str(address.pop("password"))}
    program = binaries.find().program("psql")
    os.execve(program, [program, make_conninfo("", **address), *context.args], environment)  # noqa: S606


@app.command()
def key(kind: Annotated[str, typer.Argument(help=KEYS)] = "gateway") -> None:
    """Print a key of the running suite, for use in a command line."""
    _, runtime = _running()
    if f"{kind}_secret" not in runtime.secrets:
        fail(f"There is no {kind} key: choose {KEYS}.")
    print(runtime.secrets[f"{kind}_secret"])


@app.command()
def migrate() -> None:
    """Bring DATABASE_URL to the newest schema; the roles' passwords come out of their URLs."""
    migrate_from_environment()


@app.command()
def clean() -> None:
    """Remove the data, the secrets and the embedded database of this checkout."""
    folder = DataFolder.choose(load(SuiteSettings).billing_data_dir)
    folder.make()
    lock = folder.lock()
    if lock is None:
        fail(f"Process {folder.holder()} is running the suite: stop it first.")
    with lock:
        folder.remove()


def _running() -> tuple[DataFolder, Runtime]:
    folder = DataFolder.choose(load(SuiteSettings).billing_data_dir)
    runtime = Runtime.of_running_suite(folder)
    if runtime is None:
        fail("The suite is not running: start it with `make run`.")
    return folder, runtime


def main() -> None:
    """Any command; what the suite keeps is open to its owner only, and another user is told so."""
    try:
        app()
    except PermissionError as error:
        sys.exit(f"{error.filename} belongs to another user, who ran the suite here; use another checkout.")
