"""Disputes."""

from sandbox.entities import Entity
from sandbox.rest.call import Call, collection
from sandbox.state import disputes

_FILTERS = ("payment_id", "status", "phase")


def fetch_dispute(call: Call) -> Entity:
    return call.till.world.get("dispute", call.entity_id("disp")).entity


def list_disputes(call: Call) -> Entity:
    wanted = {name: call.query[name] for name in _FILTERS if name in call.query}
    return collection(
        call.page(
            "dispute",
            also=" ".join(_FILTERS),
            keep=lambda entity: all(entity[name] == value for name, value in wanted.items()),
        )
    )


def accept_dispute(call: Call) -> Entity:
    dispute_id = call.entity_id("disp")
    return call.change(lambda world: disputes.settle(world, dispute_id, "lost"))


def contest_dispute(call: Call) -> Entity:
    dispute_id = call.entity_id("disp")
    return call.change(lambda world: disputes.contest(world, dispute_id, call.body))
