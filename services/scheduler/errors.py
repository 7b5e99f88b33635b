"""Every refusal of the scheduler.

BillingError
├── NotFound            UnknownJob
├── FailedPrecondition  JobRunning, IdempotencyKeyReused
└── InvalidArgument     BadSchedule, InvalidPageToken
"""

from shared.errors import FailedPrecondition, InvalidArgument, NotFound


class UnknownJob(NotFound):
    """There is no such job."""

    reason = "UNKNOWN_JOB"

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {job!r}; ListJobs names them all", job=job)


class JobRunning(FailedPrecondition):
    """Runs of one job never overlap."""

    reason = "JOB_RUNNING"

    def __init__(self, job: str, run_id: str) -> None:
        super().__init__(f"{job} is running ({run_id}); ask again when it ended", job=job, run_id=run_id)


class IdempotencyKeyReused(FailedPrecondition):
    """The key was used before for something else."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self, field: str) -> None:
        super().__init__(f"the idempotency key was used before with another {field}", field=field)


class BadSchedule(InvalidArgument):
    """The schedule is no cron expression that ever has a tick."""

    reason = "BAD_SCHEDULE"

    def __init__(self, problem: str) -> None:
        super().__init__(f"schedule: {problem}", reason=self.reason, violations=[("schedule", problem)])
