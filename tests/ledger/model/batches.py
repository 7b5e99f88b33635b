"""Programs that also send batches, with items that stand alone and groups that stand together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from billing.ledger.v1 import ledger_pb2 as pb
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shared import clock
from shared.errors import BillingError, FailedPrecondition
from tests.ledger.model.credits import Booked, Credits
from tests.ledger.model.follow import Asked, Plan
from tests.ledger.model.machine import SOME, LedgerMachine, spent_by
from tests.ledger.model.talk import Reply, plain

# Credits of items that belong together; a single item stands alone.
SEGMENTS = st.lists(st.lists(SOME, min_size=1, max_size=3), min_size=1, max_size=4)
TWICE = st.sampled_from(["", "", "same", "altered"])


class BatchMachine(LedgerMachine):
    """One tenant, whose debits come alone and in batches."""

    @rule(segments=SEGMENTS, twice=TWICE, streamed=st.booleans())
    def batch(self, segments: list[list[int]], twice: str, streamed: bool) -> None:
        groups = [[self.an_item(credits) for credits in segment] for segment in segments]
        request = pb.BatchDebitRequest()
        for number, group in enumerate(groups):
            for debit in group:
                request.items.add(debit=debit, group_id=f"group-{number}" if len(group) > 1 else "")
        again = None
        if twice and len(groups[0]) == 1:
            again = pb.DebitRequest()
            again.CopyFrom(groups[0][0])
            again.credits += twice == "altered"
            request.items.add(debit=again)
        began = clock.now()
        answer = self.talk.stream(request) if streamed else self.talk.ask("BatchDebit", request)
        assert not isinstance(answer, BillingError), answer
        assert len(answer.results) == len(request.items)
        self.follower.pull()
        results = [reply_of(each) for each in answer.results]
        last = results.pop() if again is not None else None
        for number, group in enumerate(groups):
            mine, results = results[: len(group)], results[len(group) :]
            if len(group) == 1:
                self.judge_item(group[0], mine[0], plan_of(group[0]), began)
            else:
                self.judge_group(f"group-{number}", group, mine, began)
        self.follower.touch()
        if again is not None:
            self.judge_second(groups[0][0], last, altered=twice == "altered")

    def an_item(self, credits: int) -> pb.DebitRequest:
        return pb.DebitRequest(**self.named(credits=credits, reason="blog.publish"))

    def judge_item(self, debit: pb.DebitRequest, reply: Reply, plan: Plan, began: datetime) -> None:
        self.follower.judge("Debit", debit, reply, plan, began)
        self.note_spending(reply, False)

    def judge_group(
        self, group_id: str, group: Sequence[pb.DebitRequest], replies: Sequence[Reply], began: datetime
    ) -> None:
        """All booked, or one refused for a reason of its own and the others for its sake."""
        aborted = [
            debit
            for debit, reply in zip(group, replies, strict=True)
            if isinstance(reply, BillingError) and reply.reason == "GROUP_ABORTED"
        ]
        if not aborted:
            for debit, reply in zip(group, replies, strict=True):
                self.judge_item(debit, reply, plan_of(debit), began)
            return
        assert len(aborted) == len(group) - 1, replies
        (culprit,) = (number for number, debit in enumerate(group) if debit not in aborted)

        def after_the_others(model: Credits, at: datetime, reply: Reply) -> list[Booked]:
            for debit in group[:culprit]:
                plan_of(debit)(model, at, "")
            return plan_of(group[culprit])(model, at, reply)

        self.judge_item(group[culprit], replies[culprit], after_the_others, began)
        for debit, reply in zip(group, replies, strict=True):
            if debit in aborted:
                assert reply.metadata["group_id"] == group_id
                assert reply.metadata["culprit"], reply.metadata
                assert self.talk.transaction(self.tenant, debit.idempotency_key) is None
                self.follower.forgotten.append(("Debit", debit, plan_of(debit)))

    def judge_second(self, debit: pb.DebitRequest, reply: Reply, *, altered: bool) -> None:
        """An item whose key stands in the same batch before it."""
        if altered:
            assert isinstance(reply, BillingError), reply
            asked = [each for each in self.follower.asked if each.request == debit]
            if asked:
                assert (reply.reason, reply.metadata["field"]) == ("IDEMPOTENCY_KEY_REUSED", "credits")
            else:  # a first one that left no memory frees the key
                assert reply.reason != "IDEMPOTENCY_KEY_REUSED"
            return
        first = next((each for each in self.follower.asked if each.request == debit), None)
        if first is not None:
            self.compare_second(first, reply)

    def compare_second(self, first: Asked, reply: Reply) -> None:
        if isinstance(reply, BillingError):
            assert isinstance(first.reply, BillingError), (first, reply)
            assert (reply.reason, plain(reply)) == (first.reply.reason, plain(first.reply))
        else:
            assert reply.replayed, reply
            assert reply.transaction == first.reply.transaction


def plan_of(debit: pb.DebitRequest) -> Plan:
    def plan(model: Credits, at: datetime, reply: Reply) -> list[Booked]:
        return model.debit(at, debit.credits, transaction_id=spent_by(reply) if reply else "")

    return plan


def reply_of(result: pb.BatchDebitResult) -> Reply:
    """An item's result as a call alone would have got it."""
    if result.WhichOneof("result") == "debit":
        return result.debit
    refusal = result.refusal
    return FailedPrecondition(refusal.message, reason=refusal.reason, **refusal.metadata)
