"""Clock, ids, paging, backoff, the words of gRPC."""

import contextlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import backoff, clock, errors, ids, paging
from shared.rpc import status

moments = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def test_the_test_clock_moves_everything_and_can_move_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clock"
    clock.move_to(file, timedelta(days=40))
    monkeypatch.setenv("BILLING_TEST_CLOCK", str(file))

    assert clock.now() - datetime.now(UTC) > timedelta(days=39, hours=23)
    clock.move_to(file, timedelta(days=80, seconds=1))
    assert clock.offset() == timedelta(days=80, seconds=1)

    file.write_text("soon")
    with pytest.raises(RuntimeError, match="number of seconds"):
        clock.now()


@given(moments, moments, st.integers(0, 4095), st.integers(0, 4095))
def test_ordered_ids_sort_by_time_and_then_by_position(one: datetime, two: datetime, a: int, b: int) -> None:
    first, second = ids.ordered_id("txn", one, a), ids.ordered_id("txn", two, b)

    if (one, a) != (two, b):
        assert (first < second) == ((one, a) < (two, b))


def test_ids_are_never_made_twice() -> None:
    assert len({ids.new_id("x") for _ in range(10_000)}) == 10_000


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_page_token_brings_back_its_position(last: str) -> None:
    assert paging.position(paging.token(last)) == last


@given(st.text(min_size=1, max_size=40))
def test_any_other_token_is_refused_or_read_but_never_crashes(token: str) -> None:
    with contextlib.suppress(errors.InvalidArgument):
        assert isinstance(paging.position(token), str)


@pytest.mark.parametrize("last", ["txn_1", "-1", "", "9" * 30, "1\0", "٣"])
def test_a_token_of_another_list_is_refused_where_numbers_are_expected(last: str) -> None:
    token = paging.token(last) or "AA"

    with pytest.raises(errors.InvalidArgument):
        paging.number(token)
    assert paging.number(paging.token("12")) == 12


@given(st.integers(1, 500))
def test_backoff_doubles_up_to_its_ceiling_and_never_comes_at_once(attempt: int) -> None:
    wait = backoff.delay(attempt, base_seconds=2, max_seconds=60).total_seconds()

    assert min(60, 2 ** min(attempt, 40)) / 2 <= wait <= min(60, 2 ** min(attempt, 40))


def test_a_log_line_bears_its_room_whatever_context_it_was_written_in() -> None:
    script = (
        "import contextvars; from shared import logs; logs.configure('ledger');"
        "contextvars.Context().run(logs.get_logger().info, 'far_away')"
    )

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr

    assert (json.loads(said)["room"], json.loads(said)["event"]) == ("ledger", "far_away")


def test_a_call_that_a_stopping_server_drops_is_unavailable() -> None:
    dropped = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata())

    assert isinstance(status.from_rpc_error(dropped), errors.Unavailable)
