"""Plans and customers."""

from sandbox.entities import Entity
from sandbox.rest.call import Call, collection
from sandbox.state import catalogue


def create_plan(call: Call) -> Entity:
    return call.change(lambda world: catalogue.create_plan(world, call.body))


def fetch_plan(call: Call) -> Entity:
    return call.till.world.get("plan", call.entity_id("plan")).entity


def list_plans(call: Call) -> Entity:
    return collection(call.page("plan"))


def create_customer(call: Call) -> Entity:
    return call.change(lambda world: catalogue.create_customer(world, call.body))


def fetch_customer(call: Call) -> Entity:
    return call.till.world.get("customer", call.entity_id("cust")).entity


def edit_customer(call: Call) -> Entity:
    customer_id = call.entity_id("cust")
    return call.change(lambda world: catalogue.edit_customer(world, customer_id, call.body))


def list_customers(call: Call) -> Entity:
    return collection(call.page("customer"))
