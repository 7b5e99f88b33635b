"""What a reader of any contract may rely on, beyond what buf's own rules say."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import protovalidate
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2 as descriptor
from google.protobuf import descriptor_pool, message_factory
from protovalidate._gen.buf.validate import validate_pb as engine

from tests.house.house import ROOMS, ROOT, modules

BUF = str(Path(sys.executable).parent / "buf")
READS = re.compile(r"(Get|List|Preview|Render|Diagnose)[A-Z]\w*|CheckLimit|VerifyLedger")
FIELD = descriptor.FieldDescriptorProto
# Answers of the webhooks' HTTP door; no RPC gives them.
HTTP_REFUSALS = {"NOT_STORED"}


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def image() -> descriptor.FileDescriptorSet:
    built = subprocess.run([BUF, "build", "proto", "-o", "-"], cwd=ROOT, capture_output=True, check=True)
    return descriptor.FileDescriptorSet.FromString(built.stdout)


def contracts() -> list[descriptor.FileDescriptorProto]:
    return [file for file in image().file if file.package.startswith("billing.")]


@cache
def messages() -> dict[str, descriptor.DescriptorProto]:
    return {
        f".{file.package}.{message.name}": message for file in contracts() for message in file.message_type
    }


def rpcs() -> Iterator[tuple[str, descriptor.MethodDescriptorProto]]:
    for file in contracts():
        for service in file.service:
            for method in service.method:
                yield f"{file.package}.{service.name}/{method.name}", method


def field(message: descriptor.DescriptorProto, name: str) -> descriptor.FieldDescriptorProto | None:
    return next((candidate for candidate in message.field if candidate.name == name), None)


def rules(of: descriptor.FieldDescriptorProto) -> validate_pb2.FieldRules:
    return of.options.Extensions[validate_pb2.field]


def test_every_room_has_a_contract() -> None:
    assert {f"billing.{room}.v1" for room in ROOMS} <= {file.package for file in contracts() if file.service}


@pytest.mark.parametrize(
    "arguments",
    [
        ("lint",),
        ("format", "-d", "--exit-code", "proto"),
        ("breaking", "proto", "--against", "proto/baseline.binpb"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_buf_agrees(arguments: tuple[str, ...]) -> None:
    told = buf(*arguments)

    assert told.returncode == 0, told.stdout + told.stderr


def carries_a_key(message: descriptor.DescriptorProto) -> bool:
    """True if the message, or what it wraps, names the idempotency key that makes it safe to repeat."""
    if key := field(message, "idempotency_key"):
        return rules(key).string.min_len == 1 and rules(key).string.max_len == 255
    return any(carries_a_key(inner) for part in message.field if (inner := messages().get(part.type_name)))


def test_every_mutation_can_be_repeated() -> None:
    lacking = [
        name
        for name, method in rpcs()
        if not READS.fullmatch(method.name) and not carries_a_key(messages()[method.input_type])
    ]

    assert not lacking, f"idempotency_key of 1 to 255 characters: {lacking}"


def test_a_read_has_no_idempotency_key() -> None:
    odd = [
        name
        for name, method in rpcs()
        if READS.fullmatch(method.name)
        and not method.name.startswith("Get")  # a transaction may be asked for by its key
        and field(messages()[method.input_type], "idempotency_key")
    ]

    assert not odd


def test_every_list_is_read_in_pages() -> None:
    wrong = []
    for name, method in rpcs():
        if not method.name.startswith("List"):
            continue
        request, response = messages()[method.input_type], messages()[method.output_type]
        size, token, following = (
            field(request, "page_size"),
            field(request, "page_token"),
            field(response, "next_page_token"),
        )
        if not size or size.type != FIELD.TYPE_INT32 or not token or token.type != FIELD.TYPE_STRING:
            wrong.append(f"{name}: int32 page_size, string page_token")
        if (
            not response.field
            or response.field[0].number != 1
            or response.field[0].label != FIELD.LABEL_REPEATED
        ):
            wrong.append(f"{name}: the items come first")
        if not following or following.type != FIELD.TYPE_STRING:
            wrong.append(f"{name}: string next_page_token")

    assert not wrong, "\n".join(wrong)


def test_the_tenant_comes_first() -> None:
    # A selection may choose a tenant among other things, and the scheduler's requests begin with their tick.
    late = [
        name
        for name, method in rpcs()
        if (tenant := field(messages()[method.input_type], "tenant_id"))
        and not tenant.HasField("oneof_index")
        and "MaintenanceService/" not in name
        and tenant.number != 1
    ]

    assert not late, f"tenant_id is field 1: {late}"


def test_a_tenant_id_is_checked_at_the_door() -> None:
    loose = [
        name
        for name, method in rpcs()
        if (tenant := field(messages()[method.input_type], "tenant_id"))
        and rules(tenant).string.max_len != 128
    ]

    assert not loose, f"at most 128 characters: {loose}"


def test_no_contract_has_a_float() -> None:
    floats = [
        f"{name}.{part.name}"
        for name, message in messages().items()
        for part in message.field
        if part.type in {FIELD.TYPE_FLOAT, FIELD.TYPE_DOUBLE}
    ]

    assert not floats


def comments(file: descriptor.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}


def error_reasons() -> dict[str, dict[str, str]]:
    """For each room: its refusals, and what the contract says of each."""
    found: dict[str, dict[str, str]] = {}
    for file in contracts():
        said = comments(file)
        for index, enum in enumerate(file.enum_type):
            if enum.name == "ErrorReason":
                found[file.package.split(".")[1]] = {
                    value.name: said.get((5, index, 2, place), "") for place, value in enumerate(enum.value)
                }
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_refusal_is_documented(room: str) -> None:
    reasons = error_reasons()[room]

    terse = [
        name for name, text in reasons.items() if not name.endswith("_UNSPECIFIED") and len(text.split()) < 6
    ]

    assert len(reasons) > 1
    assert not terse, f"say when it happens, its metadata keys and what the caller does: {terse}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_refusal_of_the_code_is_in_the_contract(room: str) -> None:
    raised = {
        found
        for module in modules(f"services/{room}")
        if module.layer == "errors"
        for found in re.findall(r'^    reason(?:: str)? = "([A-Z0-9_]+)"', module.path.read_text(), re.M)
    }

    assert {f"ERROR_REASON_{reason}" for reason in raised - HTTP_REFUSALS} <= error_reasons()[room].keys()


def generated(file: descriptor.FileDescriptorProto) -> None:
    importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")


def test_every_rule_compiles() -> None:
    validator = protovalidate.Validator()
    pool = descriptor_pool.Default()

    for file in contracts():
        generated(file)
        for message in file.message_type:
            kind = message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            )
            validator.collect_violations(kind())  # raises if a rule does not compile


def test_our_copy_of_the_validation_rules_is_the_engines() -> None:
    theirs = descriptor.FileDescriptorProto.FromString(engine.__dict__["_DESC"].proto.to_binary())
    [ours] = [file for file in image().file if file.name == theirs.name]

    for file in (ours, theirs):
        file.ClearField("source_code_info")
        file.DiscardUnknownFields()
        for message in file.message_type:
            for part in message.field:
                part.ClearField("json_name")
    assert ours == theirs
