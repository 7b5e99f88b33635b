"""Webhook endpoints: with a merchant's keys they can be created and listed, nothing else."""

from sandbox import ids
from sandbox.entities import Entity, collection
from sandbox.errors import Refusal
from sandbox.rest.call import Call
from sandbox.state import checks

_ID = "webhook"


def create_webhook(call: Call) -> Entity:
    checks.only(call.body, "url alert_email secret events active")
    url = str(checks.required(call.body, "url"))
    if not url.startswith(("http://", "https://")):
        raise Refusal("The url format is invalid.", field="url")
    events = call.body.get("events")
    wanted = [name for name, on in events.items() if checks.truth(on)] if isinstance(events, dict) else events
    secret = checks.text(call.body, "secret") or ""
    call.till.outbox.register(url, secret, checks.names(wanted, "events"))
    call.till.world.add(_ID, {"id": ids.token(14), "created_at": call.till.world.now()})
    call.till.world.commit()
    return _shown(call)


def list_webhooks(call: Call) -> Entity:
    return collection([_shown(call)] if call.till.outbox.endpoint.url else [])


def _shown(call: Call) -> Entity:
    made = call.till.world.all(_ID)
    known = made[-1].entity if made else {"id": "0" * 14, "created_at": call.till.world.now()}
    endpoint = call.till.outbox.endpoint
    return {
        "id": known["id"],
        "created_at": known["created_at"],
        "updated_at": known["created_at"],
        "owner_id": call.till.world.account_id.removeprefix("acc_"),
        "owner_type": "merchant",
        "context": [],
        "disabled_at": call.till.world.now() if endpoint.disabled else 0,
        "url": endpoint.url,
        "secret_exists": bool(endpoint.secret),
        "entity": "webhook",
        "active": not endpoint.disabled,
        "events": endpoint.events or ["*"],
    }
