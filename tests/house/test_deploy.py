"""The image and the compose file, as far as they can be checked without an engine."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import Settings
from suite import addresses
from suite.migrate import LOGINS
from tests.house.house import ROOMS, ROOT

TOOLS = Path(sys.executable).parent
COMPOSE = ROOT / "docker-compose.yml"
Service = Mapping[str, Any]

compose: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
services: dict[str, Service] = compose["services"]
OURS = [name for name, service in services.items() if "build" in service]
MONITORING = ("prometheus", "grafana")
# Of a room's settings, what no deployment in containers may set.
NOT_FOR_CONTAINERS = {"billing_test_clock"}
# The only door that the world may knock at.
PUBLIC = {("webhooks", "8080")}


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
    ],
    ids=lambda command: command[0],
)
def test_the_tool_has_nothing_to_say(command: list[str]) -> None:
    told = subprocess.run(
        [TOOLS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stdout + told.stderr


def test_every_room_is_here() -> None:
    assert {"postgres", "migrate", "backup", "sandbox", *MONITORING, *ROOMS} == services.keys()
    assert services["sandbox"]["profiles"] == ["sandbox"]
    assert all(services[name]["profiles"] == ["monitoring"] for name in MONITORING)
    assert not any("profiles" in services[name] for name in ("postgres", "migrate", "backup", *ROOMS))


@pytest.mark.parametrize("room", ROOMS)
def test_a_service_runs_its_room(room: str) -> None:
    assert services[room]["command"] == ["python", "-m", f"services.{room}"]


@pytest.mark.parametrize("name", services)
def test_every_name_that_a_service_uses_is_declared(name: str) -> None:
    service = services[name]

    assert set(service.get("depends_on", ())) <= services.keys()
    assert set(service["networks"]) <= compose["networks"].keys()
    mounted = [volume.split(":")[0] for volume in service.get("volumes", ())]
    assert {volume for volume in mounted if not volume.startswith("./")} <= compose["volumes"].keys()
    assert all((ROOT / volume).is_dir() for volume in mounted if volume.startswith("./"))
    for variable, value in service["environment"].items():
        # Our own services by name; the rest of the world by variables.
        for host in re.findall(r"(?:^|@|//)([a-z][a-z0-9-]*):\d+", value or ""):
            assert host in services, f"{variable} names {host}"


@pytest.mark.parametrize("name", services)
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    expected = {
        "postgres": {},
        "sandbox": {},
        "prometheus": {},
        "grafana": {},
        "migrate": {"postgres": {"condition": "service_healthy"}},
    }.get(name, {"migrate": {"condition": "service_completed_successfully"}})

    assert services[name].get("depends_on", {}) == expected


@pytest.mark.parametrize("name", services)
def test_no_secret_is_written_down(name: str) -> None:
    secret = re.compile(r"SECRET|PASSWORD|KEY_ID")

    for variable, value in services[name]["environment"].items():
        if secret.search(variable):
            assert value is None or re.fullmatch(rf"\$\{{{variable}:\?[^}}]+\}}", value), variable
        if password := re.search(r"://[^:/]+:([^@]+)@", value or ""):
            assert re.fullmatch(r"\$\{[A-Z_]+_PASSWORD:\?[^}]+\}", password[1]), variable


def test_backups_are_taken_and_a_missing_one_is_noticed() -> None:
    backup = services["backup"]

    assert backup["command"] == ["python", "-m", "suite", "backup", "--every", "6h", "--to", "/backups"]
    assert backup["volumes"] == ["backups:/backups"]
    assert backup["healthcheck"]["test"] == [
        "CMD",
        *("python", "-m", "suite", "backups", "list", "--to", "/backups"),
    ]
    assert "/backups" in next(value for word, value in reversed(instructions()) if word == "RUN")


def settings_of(process: str) -> type[Settings]:
    """The one settings class of a room, or of the sandbox."""
    module = f"services.{process}.config" if process in ROOMS else f"{process}.config"
    config = importlib.import_module(module)
    own = [kind for _, kind in inspect.getmembers(config, inspect.isclass) if kind.__module__ == module]
    [settings] = [kind for kind in own if issubclass(kind, Settings)]
    return settings


def given(name: str) -> set[str]:
    return {variable.lower() for variable in services[name]["environment"]}


def required(process: str) -> set[str]:
    return {name for name, field in settings_of(process).model_fields.items() if field.is_required()}


@pytest.mark.parametrize("process", [*ROOMS, "sandbox"])
def test_a_process_is_given_its_settings_and_no_others(process: str) -> None:
    assert required(process) <= given(process)
    # What OpenTelemetry reads by itself is no setting of ours.
    ours = {name for name in given(process) if not name.startswith("otel_")}
    assert ours <= settings_of(process).model_fields.keys(), f"{process} reads no such setting"


@pytest.mark.parametrize("room", ROOMS)
def test_whoever_runs_it_in_containers_can_set_what_a_room_reads(room: str) -> None:
    assert settings_of(room).model_fields.keys() - given(room) == NOT_FOR_CONTAINERS


def test_the_migration_is_given_every_role_and_what_the_catalogue_needs() -> None:
    assert {variable.lower() for variable in LOGINS.values()} | {"database_url"} <= given("migrate")
    assert required("subscriptions") <= given("migrate")


def ports(service: Service) -> Iterator[tuple[str, str]]:
    for published in service.get("ports", ()):
        address, _, inside = published.rpartition(":")
        yield address, inside


@pytest.mark.parametrize("name", services)
def test_only_the_webhooks_door_is_open_to_the_world(name: str) -> None:
    opened = {
        (name, inside)
        for address, inside in ports(services[name])
        if not re.fullmatch(r"127\.0\.0\.1:\d+", address)
    }

    assert opened <= PUBLIC


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_numbers_are_shown_inside_and_nowhere_else(room: str) -> None:
    host, _, port = services[room]["environment"][f"{room.upper()}_METRICS_LISTEN"].rpartition(":")

    assert host == "0.0.0.0"  # noqa: S104 - of a container
    assert port == addresses.DEFAULTS[f"{room}_metrics"].rpartition(":")[2]
    assert port not in {inside for _, inside in ports(services[room])}


@pytest.mark.parametrize("name", MONITORING)
def test_monitoring_is_pinned_reads_its_configuration_and_keeps_to_the_rooms(name: str) -> None:
    service = services[name]

    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["networks"] == ["rooms"]
    assert "build" not in service
    from_here = [volume for volume in service["volumes"] if volume.startswith("./")]
    assert from_here
    assert all(volume.endswith(":ro") and volume.startswith("./deploy/") for volume in from_here)


def test_grafana_has_no_password_to_guess() -> None:
    environment = services["grafana"]["environment"]

    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in environment if "PASSWORD" in name]


def test_the_database_has_no_way_out() -> None:
    assert compose["networks"]["database"] == {"internal": True}
    assert services["postgres"]["networks"] == ["database"]
    assert "ports" not in services["postgres"]
    assert "database" not in services["sandbox"]["networks"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_asked_for_its_health_where_it_listens(room: str) -> None:
    port = services[room]["environment"][f"{room.upper()}_LISTEN"].rpartition(":")[2]

    assert services[room]["healthcheck"]["test"] == [
        "CMD",
        "python",
        "-m",
        "shared.rpc.health",
        f"127.0.0.1:{port}",
    ]


def test_rooms_find_each_other_where_they_listen() -> None:
    listens = {
        f"{room}:{services[room]['environment'][f'{room.upper()}_LISTEN'].rpartition(':')[2]}"
        for room in ROOMS
    }

    for name in OURS:
        for variable, value in services[name]["environment"].items():
            if (
                variable.endswith("_ADDRESS") and variable != "BILLING_SUPPLIER_ADDRESS"
            ):  # a street, not a host
                assert value in listens, f"{name}: {variable}"


@pytest.mark.parametrize("name", services)
def test_everything_that_stays_has_a_health_check(name: str) -> None:
    assert ("healthcheck" in services[name]) == (name != "migrate")


@pytest.mark.parametrize("name", OURS)
def test_a_container_has_no_more_rights_than_a_room_needs(name: str) -> None:
    service = services[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line]


def test_the_image_is_pinned_hashed_and_unprivileged() -> None:
    said = instructions()

    assert all(re.match(r"python:3\.\d+-slim-\w+", value) for word, value in said if word == "FROM")
    assert "--require-hashes" in next(value for word, value in said if word == "RUN")
    assert [value for word, value in said if word == "USER"] == ["10001"]
    assert not [word for word, _ in said if word == "ADD"]


def test_an_image_with_traces_is_an_argument_away() -> None:
    [lock] = [value for word, value in instructions() if word == "ARG"]

    assert lock == "LOCK=requirements.lock"
    assert all(services[name]["build"]["args"].keys() == {"LOCK"} for name in OURS)


def test_the_image_takes_in_what_the_rooms_import_and_nothing_else() -> None:
    taken = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert taken == {
        "LICENSE",
        "gen",
        "sandbox",
        "services",
        "shared",
        "suite",
        "requirements.lock",
        "requirements-traces.lock",
    }
    assert all((ROOT / name).exists() for name in taken)
