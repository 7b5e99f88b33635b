"""The audit log, line by line."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Record:
    """One change; None where there was nothing before, or is nothing after."""

    id: str
    action: str
    actor_type: str
    actor_id: str
    tenant_id: str | None
    resource_type: str
    resource_id: str
    before: Any
    after: Any
    reason: str
    created_at: datetime
