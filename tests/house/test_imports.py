"""The import law: three hops inward, rooms in a line, and each kind of knowledge in one kind of file."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.house import CODE, ROOMS, Module, modules, within

EVERY_MODULE = modules(*CODE)
ROOM_MODULES = [module for module in EVERY_MODULE if module.room]

DOORS = ("rpc", "http", "loop")
# What each layer of a room may never import. `own.` is the room itself.
FORBIDDEN = {
    "rules": (
        *(
            "sqlalchemy",
            "psycopg",
            "grpc",
            "grpc_status",
            "google",
            "billing",
            "starlette",
            "uvicorn",
            "httpx",
            "razorpay",
        ),
        *(
            "asyncio",
            "threading",
            "shared.database",
            "shared.clock",
            "shared.rpc",
            "shared.logs",
            "shared.ops",
        ),
        *(
            "own.store",
            "own.lanes",
            "own.tables",
            "own.clients",
            "own.actions",
            "own.rpc",
            "own.http",
            "own.loop",
            "own.config",
        ),
    ),
    "errors": (
        "sqlalchemy",
        "grpc",
        "billing",
        "own.store",
        "own.tables",
        "own.clients",
        "own.actions",
        "own.rpc",
    ),
    "tables": (
        "grpc",
        "billing",
        "own.store",
        "own.clients",
        "own.actions",
        "own.rpc",
        "own.http",
        "own.loop",
    ),
    "store": (
        "grpc",
        "billing",
        "starlette",
        "httpx",
        "razorpay",
        "shared.rpc",
        "own.clients",
        "own.actions",
        *("own.rpc", "own.http", "own.loop"),
    ),
    "actions": (
        "grpc",
        "grpc_status",
        "billing",
        "starlette",
        "uvicorn",
        "httpx",
        "razorpay",
        "shared.rpc",
        "own.rpc",
        "own.http",
        "own.loop",
    ),
    "clients": (
        "sqlalchemy",
        "own.store",
        "own.lanes",
        "own.tables",
        "own.actions",
        "own.rpc",
        "own.http",
        "own.loop",
    ),
    **dict.fromkeys(DOORS, ("psycopg", "own.store", "own.tables")),
}
# The words that build a statement; types of connections and the errors they raise are no statements.
STATEMENTS = re.compile(
    r"sqlalchemy\.(select|insert|update|delete|text|func|and_|or_|case|dialects|sql)\b|psycopg\.sql\b"
)
SQL = re.compile(
    r"\b(SELECT\s.+\sFROM\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|CREATE\s+TABLE\s|ALTER\s+TABLE\s)",
    re.S,
)
HOLDERS_OF_SQL = ("store", "lanes", "tables", "migrations")


def offences(module: Module, *forbidden: str) -> list[str]:
    return [
        f"{module.place}:{line} imports {name}" for name, line in module.imports() if within(name, *forbidden)
    ]


def calls(module: Module) -> Iterator[tuple[str, int]]:
    """Every call, as it is written before its brackets: `datetime.now`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_the_laws_read_the_house() -> None:
    assert {module.room for module in ROOM_MODULES} >= set(ROOMS)
    assert {"rules", "store", "actions", "rpc"} <= {module.layer for module in ROOM_MODULES}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_never_import_rooms(room: str) -> None:
    others = [f"services.{other}" for other in ROOMS if other != room]

    found = [
        offence for module in ROOM_MODULES if module.room == room for offence in offences(module, *others)
    ]

    assert not found, "rooms speak protobuf, they never import each other:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("services", ("suite", "sandbox", "billctl", "tests")),
        ("shared", ("services", "billing", "suite", "sandbox", "billctl", "tests")),
        ("suite", (*(f"services.{room}" for room in ROOMS), "billctl", "tests")),
        ("sandbox", ("services", "billing", "suite", "billctl", "tests")),
        ("billctl", (*(f"services.{room}" for room in ROOMS), "sandbox", "tests")),
    ],
    ids=CODE,
)
def test_each_part_of_the_house_keeps_its_distance(folder: str, forbidden: tuple[str, ...]) -> None:
    found = [offence for module in modules(folder) for offence in offences(module, *forbidden)]

    assert not found, "\n".join(found)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_inward(layer: str) -> None:
    found = []
    for module in ROOM_MODULES:
        if module.layer == layer:
            forbidden = [name.replace("own.", f"services.{module.room}.") for name in FORBIDDEN[layer]]
            found += offences(module, *forbidden)

    assert not found, f"{layer} reaches where it must not:\n" + "\n".join(found)


def test_nobody_imports_wiring() -> None:
    wiring = [f"{module.name}" for module in EVERY_MODULE if module.path.name == "__main__.py"]

    assert not [offence for module in EVERY_MODULE for offence in offences(module, *wiring)]


def test_imports_stand_at_the_top() -> None:
    found = [
        f"{module.place}:{inner.lineno}"
        for module in modules("services", "shared")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]

    assert not found, f"an import inside a function hides a cycle: {found}"


def prose(tree: ast.Module) -> set[int]:
    """The nodes that are docstrings, which may speak of SQL."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def test_only_the_store_and_the_lanes_hold_sql() -> None:
    found = []
    for module in ROOM_MODULES:
        if module.layer in HOLDERS_OF_SQL:
            continue
        found += [
            f"{module.place}:{line} imports {name}"
            for name, line in module.imports()
            if STATEMENTS.match(name)
        ]
        docstrings = prose(module.tree)
        found += [
            f"{module.place}:{node.lineno} {node.value[:60]!r}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and SQL.search(node.value)
        ]

    assert not found, "\n".join(found)


def test_only_the_clock_reads_the_time() -> None:
    dates = re.compile(r"((datetime|dt|date)\.)+(now|utcnow|today|utcfromtimestamp)")
    seconds = re.compile(r"time\.(time|time_ns|localtime|gmtime)")

    # Identifiers, timers and deadlines on the wire follow the machine, as their other ends do.
    found = [
        f"{module.place}:{line} {call}()"
        for module in EVERY_MODULE
        if module.place != "shared/clock.py"
        for call, line in calls(module)
        if dates.fullmatch(call) or (module.room and module.layer != "loop" and seconds.fullmatch(call))
    ]

    assert not found, "ask shared.clock, which follows the test clock:\n" + "\n".join(found)


def test_only_the_interceptor_aborts_a_call() -> None:
    found = [
        f"{module.place}:{line} {call}()"
        for module in EVERY_MODULE
        if not module.place.startswith("shared/rpc")
        for call, line in calls(module)
        if call.endswith(("context.abort", "context.abort_with_status"))
    ]

    assert not found, "servicers raise:\n" + "\n".join(found)


def test_no_client_is_called_inside_a_transaction() -> None:
    found = [
        f"{module.place}:{call.lineno} {ast.unparse(call.func)}()"
        for module in ROOM_MODULES
        for block in ast.walk(module.tree)
        if isinstance(block, ast.AsyncWith)
        and any("transaction(" in ast.unparse(item.context_expr) for item in block.items)
        for call in ast.walk(block)
        if isinstance(call, ast.Call) and "clients." in ast.unparse(call.func)
    ]

    assert not found, "no network call inside a transaction:\n" + "\n".join(found)
