"""Ports: the usual ones if they are free, never one that somebody else has or is about to have."""

import socket
from contextlib import ExitStack

import pytest

from suite import addresses


def ports_of(chosen: dict[str, str]) -> list[int]:
    return [addresses.split(address)[1] for address in chosen.values()]


def test_two_launchers_that_start_at_once_share_no_port() -> None:
    """The rooms bind seconds after the choice; gRPC would let two of them share one port without a word."""
    with ExitStack() as reserved:
        first = addresses.choose({}, reserved)
        second = addresses.choose({}, reserved)

    assert len({*ports_of(first), *ports_of(second)}) == 2 * len(addresses.DEFAULTS)


def test_a_port_that_is_given_back_can_be_had_again() -> None:
    with ExitStack() as reserved:
        port = ports_of(addresses.choose({"ledger": "127.0.0.1:0"}, reserved))[0]

    with ExitStack() as reserved:
        again = addresses.choose({"ledger": f"127.0.0.1:{port}"}, reserved)

    assert again["ledger"] == f"127.0.0.1:{port}"


def test_a_port_that_another_program_has_is_refused_if_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as reserved:
        wish = f"127.0.0.1:{other.getsockname()[1]}"

        with pytest.raises(addresses.AddressTaken, match=f"SANDBOX_LISTEN asks for {wish}"):
            addresses.choose({"sandbox": wish}, reserved)


def test_who_is_not_at_the_usual_place_is_named() -> None:
    chosen = {**addresses.DEFAULTS, "ledger": "127.0.0.1:7001", "sandbox": "127.0.0.1:7002"}

    assert addresses.moves({"sandbox": "127.0.0.1:7002"}, chosen) == [
        "127.0.0.1:50051 is taken by another program; ledger listens on 127.0.0.1:7001"
    ]


@pytest.mark.parametrize(
    ("listen", "called"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        (":50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        ("10.0.0.7:50051", "10.0.0.7:50051"),
    ],
)
def test_a_neighbour_calls_what_listens_everywhere_over_loopback(listen: str, called: str) -> None:
    assert addresses.reachable(listen) == called
