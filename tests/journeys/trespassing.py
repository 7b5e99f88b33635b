"""What brings canaries to every door of a running suite: deliveries, calls of every method, and sinks that answer badly."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import importlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

import grpc
import httpx
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.journeys.canaries import NAMES, Canaries, spaced
from tests.suite.running import RunningSuite
from tests.webhooks.harness import charged, sample

CONTRACTS = (
    *(
        "ledger.v1.ledger",
        "ledger.v1.ledger_admin",
        "ledger.v1.ledger_funding",
        "ledger.v1.ledger_maintenance",
    ),
    *("subscriptions.v1.subscriptions", "subscriptions.v1.subscriptions_admin"),
    *("subscriptions.v1.subscriptions_maintenance", "subscriptions.v1.payment_events"),
    *("webhooks.v1.webhooks_admin", "webhooks.v1.webhooks_maintenance", "scheduler.v1.scheduler"),
)
# Left alone by design: a tenant's id may be a number.
IDS = ("id", "ids", "key", "token", "sha256", "signature", "reference")
CALL_SECONDS = 10
BODY_BYTES_MAX = 1 << 20


@dataclass
class Heard:
    """Everything that callers were told."""

    answers: list[Any] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what a door should have done, and did not

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.wrong.append(otherwise)


# -- deliveries --------------------------------------------------------------------------------------------


def signed(suite: RunningSuite, body: bytes, *, previous: bool = False) -> dict[str, str]:
    secrets = suite.runtime["secrets"]
    secret = (
        suite.settings["RAZORPAY_WEBHOOK_SECRET_PREVIOUS"] if previous else secrets["razorpay_webhook_secret"]
    )
    return {"X-Razorpay-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def whole_bodies(canaries: Canaries, tenant: str) -> Iterator[bytes]:
    """Well-formed ones, with a canary in every place that a body has."""
    cards, names = canaries.cards(), canaries.named()
    for number, place in enumerate(("payment", "subscription")):
        document = json.loads(charged(f"{tenant}_{number}"))
        entity = document["payload"][place]["entity"]
        entity["notes"] = {
            **names,
            "tenant_id": f"{tenant}_{number}",
            "said": f"paid by {spaced(canaries.card(), ' ')}, thanks",
            next(cards): "as a name",
        }
        entity["description"] = canaries.card()
        entity["unknown"] = [
            [{"deep": [names, next(cards)]}],
            {"pin": canaries.digits, "number": f"{canaries.digits}00"},
        ]
        document["unknown"] = {"card": {"number": next(cards), "cvv": ["7", canaries.secret()]}, **names}
        document["as numbers"] = [
            int(canaries.card()),
            float(canaries.card("4111", 16)),
            {"x": int(canaries.card())},
        ]
        yield json.dumps(document).encode()
        yield json.dumps(document, ensure_ascii=False, indent=2).encode()
    for name in ("order.paid.json", "subscription.charged.json"):
        yield with_cards_everywhere(sample(name), cards)
    # A key given twice hides the first value from whoever reads the object.
    twice = (
        f'{{"event":"payment.captured","a":"{canaries.card()}","a":1,"cvv":"{canaries.secret()}","cvv":null}}'
    )
    yield twice.encode()
    yield f'{{"event":"{canaries.card()}","created_at":{canaries.card()}}}'.encode()
    yield f'{{"event":"unheard.of","\\u0063vv":"{canaries.secret()}","x":"\\u0034{canaries.card()[1:]}"}}'.encode()


def with_cards_everywhere(body: bytes, cards: Iterator[str]) -> bytes:
    """The sample with a card in the place of every text that is no word of the provider's."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: walk(each, key) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, name) for each in value]
        keep = name in ("event", "entity", "contains", "status", "id") or not isinstance(value, str)
        return value if keep else next(cards)

    return json.dumps(walk(json.loads(body), "")).encode()


def broken_bodies(canaries: Canaries, tenant: str) -> Iterator[bytes]:
    """What nobody can read, each with a canary in it."""
    whole = next(whole_bodies(canaries, f"{tenant}_broken"))
    card, secret = canaries.card(), canaries.secret
    yield whole[:-1]
    yield from (whole[: len(whole) * part // 7] for part in range(1, 7))
    yield whole.decode().encode("utf-16")
    yield whole.decode().encode("utf-32-be")
    yield gzip.compress(whole)
    yield b"\xef\xbb\xbf" + whole[:-1]
    yield whole.replace(b'"event"', b'"event\xff"')
    yield b"[" + whole + b"]"
    yield f"[{card}]".encode()
    yield card.encode()
    yield f"{card} {card} 123".encode()
    yield f"card[number]={card}&card[cvv]={secret()}&password={secret()}".encode()
    yield f"{{'cvv': '{secret()}', 'n': {card}}}".encode()
    yield f'"{{\\"cvv\\": \\"{secret()}\\", \\"card_number\\": \\"{card}\\"}}'.encode()
    yield f"Authorization: Bearer {secret()}\r\nnumber: {card}".encode()
    yield f'{{"a":NaN,"otp":"{secret()}","card":"{card}"}}'.encode()
    yield b'{"a":' * 3000 + f'"{card}"'.encode()
    yield f'{{"event":"\x00{card}","password":"{secret()}"}}'.encode()
    yield from (f'{{"{name}" : "{secret()}", "x"'.encode() for name in NAMES)


def poisonous_bodies(canaries: Canaries, tenant: str) -> Iterator[bytes]:
    """JSON that no event is, with canaries where the ids, amounts and moments should be."""
    card = canaries.card()
    for place, wrong in (
        *(
            ("id", [card]),
            ("id", f"{card} "),
            ("amount", card),
            ("amount", float(card)),
            ("created_at", card),
        ),
        *(
            ("notes", [card]),
            ("currency", {"cvv": canaries.secret()}),
            ("order_id", {"secret": canaries.secret()}),
        ),
    ):
        document = json.loads(charged(f"{tenant}_poison"))
        document["payload"]["payment"]["entity"][place] = wrong
        yield json.dumps(document).encode()


def telling_headers(canaries: Canaries) -> dict[str, str]:
    """Everything that a stranger may say beside a body."""
    return {
        "User-Agent": f"curl/8 card {canaries.card()} key={canaries.secret()} Bearer {canaries.secret()}",
        "X-Forwarded-For": canaries.card(),
        "X-Razorpay-Event-Id": canaries.card(),
        "X-Request-Id": canaries.card(),
        "Cookie": f"session={canaries.secret()}",
        "Authorization": f"Bearer {canaries.secret()}",
        "X-Api-Key": canaries.secret(),
        "Referer": f"https://shop.example/?card={canaries.card()}&token={canaries.secret()}",
    }


async def knock(suite: RunningSuite, canaries: Canaries, heard: Heard, tenant: str) -> None:
    """Canaries at the providers' door: signed, unsigned, malformed, and in paths, queries and headers."""
    headers = telling_headers(canaries)
    async with httpx.AsyncClient(base_url=suite.runtime["webhooks_http_url"], timeout=CALL_SECONDS) as http:

        async def post(body: bytes, path: str = "/webhooks/razorpay", *, status: int, **more: str) -> None:
            answer = await http.post(path, content=body, headers={**headers, **more})
            heard.answers += [answer.content, repr(answer.headers)]
            # Who keeps sending what nobody signed is turned away before it is read.
            fine = answer.status_code == status or (status == 401 and answer.status_code == 429)
            heard.expect(fine, f"{status} for {path}, and not {answer.status_code}")

        taken = [*whole_bodies(canaries, tenant), *broken_bodies(canaries, tenant)]
        taken += poisonous_bodies(canaries, tenant)
        for number, body in enumerate(taken):
            await post(body, status=200, **signed(suite, body, previous=number % 5 == 4))
        for path in (f"/webhooks/razorpay/{canaries.secret()}", f"/webhooks/razorpay/{canaries.card()}"):
            query = f"?token={canaries.secret()}&card={canaries.card()}"
            await post(taken[0] + b" ", path + query, status=200, **signed(suite, taken[0] + b" "))
        huge = b" " * BODY_BYTES_MAX + taken[0]
        await post(huge, status=413, **signed(suite, huge))
        for body in (*taken[:4], taken[-1]):
            await post(body, status=401)
            await post(body, status=401, **{"X-Razorpay-Signature": canaries.card()})
            await post(body, status=401, **{"X-Razorpay-Signature": canaries.secret()})
        for path in (
            f"/{canaries.secret()}",
            f"/webhooks/{canaries.card()}",
            f"/metrics/{canaries.secret()}",
        ):
            await post(taken[0], f"{path}?card={canaries.card()}", status=404)
    await asyncio.to_thread(knock_rudely, suite, canaries, heard)


def knock_rudely(suite: RunningSuite, canaries: Canaries, heard: Heard) -> None:
    """What is no HTTP, and what ends in the middle."""
    host, port = suite.runtime["webhooks_http_url"].removeprefix("http://").split(":")
    secret, card = canaries.secret(), canaries.card()
    for raw in (
        f"GET /{secret} HTTP/9.9\r\n\r\n",
        f"{secret} / HTTP/1.1\r\nHost: {card}\r\n\r\n",
        f"POST /webhooks/razorpay HTTP/1.1\r\nHost: a\r\n{secret} no header\r\n\r\n{card}",
        f"POST /webhooks/razorpay HTTP/1.1\r\nHost: a\r\nContent-Length: {card}x\r\n\r\n{card}",
        f"POST /webhooks/razorpay HTTP/1.1\r\nHost: a\r\nX-A: {secret * 4000}\r\n\r\n",
        f"POST /webhooks/razorpay HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{card} {secret}",
    ):
        with socket.create_connection((host, int(port)), timeout=1) as link, suppress(OSError):
            link.settimeout(0.3)
            link.sendall(raw.encode())
            heard.answers.append(link.recv(65536))


# -- calls -------------------------------------------------------------------------------------------------


def methods() -> list[MethodDescriptor]:
    """Every RPC of every door of every room."""
    found = []
    for name in CONTRACTS:
        contract = importlib.import_module(f"billing.{name}_pb2").DESCRIPTOR
        found += [each for service in contract.services_by_name.values() for each in service.methods]
    return found


def key_for(suite: RunningSuite, method: MethodDescriptor) -> str:
    service = method.containing_service.name
    secrets: dict[str, str] = suite.runtime["secrets"]
    if service.endswith("AdminService") or service == "SchedulerService":
        return secrets["operator_secret"]
    if service.endswith(("FundingService", "MaintenanceService", "PaymentEventsService")):
        return secrets["room_secret"]
    return secrets["gateway_secret"]


def full_name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def forbidden_requests(method: MethodDescriptor, canaries: Canaries) -> Iterator[tuple[str, Message]]:
    """One request for each place where people write what they like, and that place."""
    cards, names = canaries.cards(), cycle(NAMES)
    request_class = message_factory.GetMessageClass(method.input_type)
    for path in free_texts(method.input_type):
        if path[-1].message_type is None:
            for _ in range(2):
                yield _filled(request_class(), path, next(cards))
        else:
            yield _filled(request_class(), path, {"note": next(cards)})
            yield _filled(request_class(), path, {next(cards): "as a name"})
            for _ in range(6):
                yield _filled(request_class(), path, {next(names): canaries.secret()})


def free_texts(
    message: Descriptor, within: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    for each in message.fields:
        path = (*within, each)
        if each.type == FieldDescriptor.TYPE_STRING:
            if each.name.rpartition("_")[2] not in IDS:
                yield path
        elif each.message_type is not None:
            if each.message_type.GetOptions().map_entry:
                yield path
            elif each.message_type not in [outer.message_type for outer in within]:
                yield from free_texts(each.message_type, path)


def _filled(request: Message, path: tuple[FieldDescriptor, ...], value: Any) -> tuple[str, Message]:
    target: Any = request
    for each in path[:-1]:
        inner = getattr(target, each.name)
        target = inner.add() if each.is_repeated else inner
        target.SetInParent()
    last = path[-1]
    if isinstance(value, dict):
        getattr(target, last.name).update(value)
    elif last.is_repeated:
        getattr(target, last.name).append(value)
    else:
        setattr(target, last.name, value)
    return last.name, request


@dataclass
class Caller:
    """Speaks gRPC to every room, and keeps all that it is told: answers, details and trailers."""

    suite: RunningSuite
    canaries: Canaries
    heard: Heard
    channels: dict[str, grpc.aio.Channel]

    def channel(self, method: MethodDescriptor) -> grpc.aio.Channel:
        return self.channels[method.containing_service.full_name.split(".")[1]]

    async def call(
        self,
        method: MethodDescriptor,
        request: bytes,
        *,
        key: str | None = None,
        name: str = "",
    ) -> tuple[grpc.StatusCode, str]:
        """The status and the fields it names; everything that was told goes to `heard`."""
        told: list[tuple[str, str | bytes]] = [
            ("x-gateway-key", key_for(self.suite, method) if key is None else key),
            ("x-request-id", self.canaries.card()),
            ("authorization", f"Bearer {self.canaries.secret()}"),
            ("cookie", self.canaries.secret()),
            ("x-note-bin", self.canaries.secret().encode()),
        ]
        channel, path = self.channel(method), name or full_name(method)
        call: Any
        if method.client_streaming:
            call = channel.stream_stream(path)(iter([request]), metadata=told, timeout=CALL_SECONDS)  # type: ignore[arg-type]
        else:
            call = channel.unary_unary(path)(request, metadata=told, timeout=CALL_SECONDS)  # type: ignore[arg-type]
        try:
            answer = await (call.read() if method.client_streaming else call)
            self.heard.answers += [b"" if answer is grpc.aio.EOF else answer, await call.trailing_metadata()]
        except grpc.aio.AioRpcError as error:
            refusal = violations(error)
            self.heard.answers += [error.details(), error.trailing_metadata(), refusal]
            return error.code(), " ".join(where for where, _ in refusal)
        return grpc.StatusCode.OK, ""


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    """(field, description) of a refusal."""
    found = []
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        refusal = error_details_pb2.BadRequest()
        if packed.Unpack(refusal):
            found += [(each.field, each.description) for each in refusal.field_violations]
    return found


async def call_every_door(caller: Caller) -> None:
    """Each method: canaries in every free place, bytes that are no request, and keys that are none."""
    few = asyncio.Semaphore(8)

    async def one(method: MethodDescriptor, place: str, request: bytes, **of: Any) -> None:
        async with few:
            status, named = await caller.call(method, request, **of)
        if place:
            refused = status is grpc.StatusCode.INVALID_ARGUMENT and place in named
            caller.heard.expect(refused, f"{full_name(method)} answers {status} to a canary in {place}")

    calls = []
    secret, card = caller.canaries.secret, caller.canaries.card()
    for method in methods():
        requests = list(forbidden_requests(method, caller.canaries))
        calls += [one(method, place, request.SerializeToString()) for place, request in requests]
        garbage = [b"\xff" + secret().encode() + card.encode(), b"\x0a\x7f" + secret().encode()]
        calls += [one(method, "", each) for each in garbage]
        some = requests[0][1].SerializeToString() if requests else secret().encode()
        calls.append(one(method, "", some, key=secret()))
        calls.append(one(method, "", some, key=card))
        calls.append(one(method, "", b"\xfa\x7f\x10" + some[:16].ljust(16, b"0"), key=secret()))
    for method in {each.containing_service.full_name: each for each in methods()}.values():
        service = method.containing_service.full_name
        for name in (f"/{service}/{secret()}", f"/{secret()}/{card}", f"/{service}/{card}"):
            calls += [one(method, "", b"", name=name), one(method, "", b"", name=name, key=secret())]
        calls.append(one(method, "", (secret() * 60_000).encode()))  # more than a message may have
    random.shuffle(calls)
    await asyncio.gather(*calls)


# -- sinks -------------------------------------------------------------------------------------------------


@dataclass
class Sink:
    """Where alerts and notices go; it answers with canaries, and fails first."""

    url: str
    token: str
    received: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def sink(canaries: Canaries, what: str) -> Iterator[Sink]:
    """A receiver whose address is a secret."""
    answers = cycle([500, 302, 200, 200])

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            open_sink.received.append(body + repr(dict(self.headers)).encode())
            open_sink.paths.append(self.path)
            content = f"{canaries.card()} {canaries.secret()}".encode()
            self.send_response(next(answers), canaries.secret())
            self.send_header("Location", f"/{canaries.secret()}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    token = canaries.secret()
    open_sink = Sink(f"http://127.0.0.1:{server.server_address[1]}/{what}/{token}", token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield open_sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
