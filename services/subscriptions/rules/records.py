"""What was recorded: the audit log line by line, and findings as people see them."""

from collections.abc import Mapping
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
    room: str
    request_id: str | None


@dataclass(frozen=True)
class FindingRow:
    """A finding as it stands; without `resolved_at` it is open."""

    id: str
    tenant_id: str | None
    check_type: str
    severity: str
    observed: Mapping[str, Any]
    created_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
