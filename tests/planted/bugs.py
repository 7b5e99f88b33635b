"""Which bugs there are, and which tests have to notice each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bug:
    """A patch of this folder, by its name."""

    name: str
    caught_by: tuple[str, ...]

    @property
    def patch(self) -> Path:
        return HERE / f"{self.name}.patch"


RPC = "tests/ledger/test_rpc.py::"
SIMULATION = "tests/ledger/test_simulation.py::test_whatever_fails_everybody_is_told_what_is_there"
LOCKS = "tests/ledger/test_locks.py::"


BUGS = (
    Bug("no_unique_key", (RPC + "test_the_same_key_answers_the_first_result",)),
    Bug("read_then_write", (LOCKS + "test_the_second_debit_sees_what_the_first_one_left",)),
    Bug("reply_before_commit", (SIMULATION,)),
    Bug(
        "key_looked_up_before_the_lock",
        (LOCKS + "test_the_second_call_with_a_key_is_told_what_the_first_one_did",),
    ),
    Bug(
        "fingerprint_not_compared",
        (RPC + "test_a_key_reused_for_something_else_is_refused_naming_the_field",),
    ),
    Bug("refusals_not_remembered", (RPC + "test_a_refusal_is_remembered_after_a_top_up",)),
    Bug("expiry_ignored", (RPC + "test_credits_are_gone_at_their_expiry_without_any_job",)),
    Bug("lost_commit_done_again", (SIMULATION,)),
    Bug(
        "refund_not_capped_per_line",
        ("tests/ledger/test_refunds.py::test_sixteen_refunds_at_once_give_back_no_more_than_was_taken",),
    ),
    Bug(
        "hold_lapse_ignored",
        ("tests/ledger/test_holds.py::test_a_hold_lapses_exactly_at_its_end_without_any_job",),
    ),
    Bug(
        "limits_read_before_the_lock",
        (LOCKS + "test_the_second_of_two_cannot_have_the_last_post_again",),
    ),
)
# A few seconds each: these run with every other test.
QUICK = ("reply_before_commit", "lost_commit_done_again")
